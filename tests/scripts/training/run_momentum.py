"""Run by `test_optimizers.py` in a process of its own: steps with an optimizer that the project does not have.

    python -m tests.scripts.training.run_momentum LAB OUT

OUT becomes {name: losses of four steps}; `2>0` is a run that does two steps at stage 2 and two more at stage 0. `parts`
are the parts of every parameter that a checkpoint holds.
"""

import json
import os
import sys
from pathlib import Path

from tests.runs import free_port

FIRST, STEPS = 2, 4


def main(root: Path, out: Path) -> None:
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(alone, MASTER_PORT=str(free_port()))
    import torch

    from scripts.training.worker import start_distributed

    torch.set_num_threads(1)
    start_distributed()
    from scripts.config.run import RunConfig
    from scripts.inference.blend_reader import BlendReader
    from scripts.inference.model_assembly import load_model
    from scripts.training.checkpoints import load_weights, weights_of
    from scripts.training.dataset import MicroBatchDataset
    from scripts.training.engine import TrainingEngine
    from scripts.training.optimizers import register
    from scripts.training.trainable import mark_trainable

    @register("momentum", ("momentum_buffer",))
    def _momentum(groups, settings, device):
        return torch.optim.SGD(groups, 0.0, momentum=0.9)

    reader = BlendReader(root / "blend/tiny/epoch-000", root)

    def run(zero: int, first: int, end: int, state: tuple | None = None, optimizer: str = "momentum") -> tuple:
        settings = RunConfig(model="m", blend="b", zero=zero, learning_rate=3e-2, projector_learning_rate=1e-2)
        # Not validated: the configuration knows the project's own optimizers.
        settings = settings.model_copy(update={"optimizer": optimizer})
        model, processor = load_model(root / "models/tiny", root, "mmca", torch.float32)
        batches = MicroBatchDataset([reader], processor, model.layout_options(), global_batch=3, micro_batch=3)
        mark_trainable(model, settings)
        if state:
            load_weights(model, weights_of(state[0]))
        engine = TrainingEngine(model, settings, datasets=reader.datasets, accumulation=1, steps=STEPS)
        if state:
            engine.restore(*state, batches.filler(), 1)
        losses = [engine.step(step, engine.feed([batches[step]])).losses.loss for step in range(first, end)]
        return losses, (engine.state(), engine.facts())

    found = {str(zero): run(zero, 0, STEPS)[0] for zero in (0, 2, 3)}
    for begun, continued in ((2, 0), (0, 2)):
        losses, state = run(begun, 0, FIRST)
        found[f"{begun}>{continued}"] = losses + run(continued, FIRST, STEPS, state)[0]
    found["parts"] = sorted({name.partition("/")[0] for name in state[0]})
    found["adamw"] = run(0, 0, STEPS, optimizer="adamw")[0]
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)
