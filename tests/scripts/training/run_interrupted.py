"""Run by `test_trainer.py` in a process of its own: whole runs on one rank, stopped at chosen moments and continued.

    python -m tests.scripts.training.run_interrupted LAB OUT

A run is stopped while it reports its progress, which is between a step and what is due after it: an evaluation is
broken off, and where none is due the ranks receive it in the next step, which is the last. OUT/<name>/ becomes
the state of each run, OUT/<name>.json the messages of its attempts and whether each reached the end.
"""

import json
import os
import sys
import time
from argparse import Namespace
from pathlib import Path

from tests.runs import SETTINGS, free_port


def main(root: Path, out: Path) -> None:
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone, MASTER_PORT=str(free_port()))
    import torch

    from scripts.training.worker import start_distributed

    torch.set_num_threads(1)
    start_distributed()
    from scripts.config.run import RunConfig
    from scripts.training.trainer import Trainer

    def attempt(name: str, stop: str | int | None, left: float | None = None, slowest: float = 0.0, **changes) -> dict:
        """`left` seconds until the deadline, if there is one; `slowest` seconds that a step has taken so far."""
        output: list[str] = []
        args = Namespace(
            name=name,
            fingerprint="f" * 16,
            model=root / "models/tiny",
            root=root,
            heldout=root / "blend/tiny/heldout",
            blend=[root / "blend/tiny/epoch-000", root / "blend/tiny/epoch-001"],
            pixels=[],
            features=[],
            state=out / name / "state" / ("f" * 16),
            deadline=None if left is None else time.time() + left,
            hang_timeout=60.0,
        )
        trainer = None

        def send(message: dict) -> None:
            output.append(message.get("log", ""))
            if trainer is not None and stop is not None and stop == message.get("step"):
                trainer.stopping = True

        trainer = Trainer(args, RunConfig(**SETTINGS | {"ranks": 1} | changes), send)
        trainer.stopping = stop == "at once"
        trainer._longest_step = slowest
        return {"end": trainer.run(), "done": trainer.done, "output": "\n".join(output)}

    # Measurements are due after every fifth step, and after 13 and 26, where epochs end; checkpoints after 4, 8, ...
    runs = {
        "undisturbed": [{"stop": None}],
        "stopped": [{"stop": stop} for stop in ("at once", 5, 7, 12, 19, 25, None)],
        "late": [{"stop": None, "left": 0.0}] + [{"stop": 1}] + [{"stop": None, "left": 0.0}] * 2,
        "slow": [{"stop": None, "left": 1000.0, "slowest": 600.0}],
        # So fast that it gets worse; and continued after the measurement that ended it.
        "early": [
            {"stop": stop, "learning_rate": 0.3, "early_stopping_patience": 2, "evaluate_every": 1}
            for stop in (2, None)
        ],
        # So fast that nothing is as good as what it began with.
        "worse": [
            {"stop": None, "learning_rate": 1.0, "warmup_steps": 0, "early_stopping_patience": 1, "evaluate_every": 1}
        ],
    }
    for name, attempts in runs.items():
        (out / f"{name}.json").write_text(json.dumps([attempt(name, **options) for options in attempts]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)
