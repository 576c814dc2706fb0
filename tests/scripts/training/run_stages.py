"""Run by `test_stages.py`: runs that start from each other, on one rank or two, and the same by hand.

    torchrun --nproc-per-node RANKS -m tests.scripts.training.run_stages LAB OUT

OUT/<name>/ becomes the folder of each run, as `scripts.train` writes it. OUT/by hand.safetensors holds the weights that
`tune` ends with if both stages are trained without files between them.
"""

import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scripts.training.worker import start_distributed
from tests.runs import SETTINGS
from tests.scripts.training.small_weights import divide_small_weights
from tests.scripts.training.test_stages import HALF, RUNS, TWO_RANKS


def main(root: Path, out: Path) -> None:
    torch.set_num_threads(1)
    start_distributed()
    from safetensors.torch import save_file

    from scripts.config.run import RunConfig
    from scripts.inference.blend_reader import BlendReader
    from scripts.inference.model_assembly import load_model
    from scripts.training.checkpoints import load_weights
    from scripts.training.dataset import MicroBatchDataset
    from scripts.training.engine import TrainingEngine, compute_device
    from scripts.training.trainable import mark_trainable

    divide_small_weights(every_run=True)
    rank, ranks = dist.get_rank(), dist.get_world_size()

    def settings_of(changes: Mapping[str, Any]) -> RunConfig:
        plain = {"epochs": 1, "evaluate_every": 0, "ranks": ranks}
        return RunConfig(**SETTINGS | plain | changes)

    for name, changes in (RUNS | HALF if ranks == 1 else TWO_RANKS).items():
        settings = settings_of({key: value for key, value in changes.items() if key != "stop"})
        if "stop" in changes:
            train(root, out, name, settings, stop=changes["stop"])
            if rank == 0:
                # What it started from is no longer needed.
                shutil.move(out / "align", out / "moved")
            dist.barrier()
        train(root, out, name, settings, found=out / "moved" if "stop" in changes else None)
        if "stop" in changes and rank == 0:
            shutil.move(out / "moved", out / "align")
        dist.barrier()

    def by_hand(changes: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Train the model, which `weights` change first, as one stage does; what is trained of it."""
        settings = settings_of({key: value for key, value in changes.items() if key != "start"})
        model, processor = load_model(root / "models/tiny", root, settings.attention)
        load_weights(model, dict(weights))
        options = model.train().layout_options(compute_device(), torch.float32)
        mark_trainable(model, settings)
        reader = BlendReader(root / "blend/tiny/epoch-000", root)
        sizes = {"global_batch": reader.global_batch, "micro_batch": settings.micro_batch, "rank": rank, "ranks": ranks}
        batches = MicroBatchDataset([reader], processor, options, **sizes)
        engine = TrainingEngine(
            model, settings, datasets=reader.datasets, accumulation=batches.accumulation, steps=batches.steps
        )
        feed = engine.feed(batches.load(0, 0))
        for step in range(batches.steps):
            engine.step(step, feed)
        return engine.weights()

    if ranks == 1:
        save_file(by_hand(RUNS["tune"], by_hand(RUNS["align"], {})), out / "by hand.safetensors")


def train(root: Path, out: Path, name: str, settings: Any, stop: int | None = None, found: Path | None = None) -> None:
    """Train to the end of a run, or to a step; `found`: where the run that it starts from lies now."""
    from scripts.common.files import write_json
    from scripts.train import publish
    from scripts.training.fingerprint import input_hashes, manifest_sha256, run_fingerprint
    from scripts.training.start import find_start, take_start
    from scripts.training.trainer import Trainer

    model, heldout, blend = root / "models/tiny", root / "blend/tiny/heldout", [root / "blend/tiny/epoch-000"]
    start = None
    if settings.started_from:
        start = find_start(found or out / settings.started_from.run, settings, manifest_sha256(model))
    inputs = input_hashes(model, blend, heldout, start)
    fingerprint = run_fingerprint(settings, inputs)
    state = out / name / "state" / fingerprint
    if dist.get_rank() == 0:
        write_json(state / "settings.json", settings.model_dump(mode="json"))
        write_json(state / "inputs.json", inputs)
        if start and found is None:
            take_start(state, start)
    dist.barrier()
    paths = {"model": model, "root": root, "heldout": heldout, "blend": blend, "state": state}
    args = Namespace(
        name=name, fingerprint=fingerprint, pixels=[], features=[], deadline=None, hang_timeout=60.0, **paths
    )
    trainer: Trainer | None = None

    def send(message: dict[str, Any]) -> None:
        if trainer is not None and stop is not None and message.get("step") == stop:
            trainer.stopping = True

    trainer = Trainer(args, settings, send)
    ended = trainer.run()
    assert ended == (stop is None), f"{name} ended after step {trainer.done}"
    if ended and dist.get_rank() == 0:
        publish(state, out / name)
    dist.barrier()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)
