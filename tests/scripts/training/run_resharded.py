"""Run by torchrun in `test_train_disturbed.py`: states of a run handed over between numbers of ranks and ZeRO stages.

    torchrun --nproc-per-node N -m tests.scripts.training.run_resharded LAB EXCHANGE OUT

Takes up the states that another number of ranks has left in EXCHANGE, at every stage, and leaves its own there. OUT
becomes {name: losses of the last steps}, where `1,2>2,3` was begun on one rank at stage 2 and continued on two at
stage 3, and `whole` was never handed over.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from scripts.training.worker import start_distributed

FIRST, STEPS = 2, 4


def main(root: Path, exchange: Path, out: Path) -> None:
    torch.set_num_threads(1)
    start_distributed()
    from safetensors.torch import load_file

    from scripts.common.tensors import write_tensors
    from scripts.config.run import RunConfig
    from scripts.inference.blend_reader import BlendReader
    from scripts.inference.model_assembly import load_model
    from scripts.training.checkpoints import load_weights, weights_of
    from scripts.training.dataset import MicroBatchDataset
    from scripts.training.engine import TrainingEngine
    from scripts.training.trainable import mark_trainable

    reader = BlendReader(root / "blend/tiny/epoch-000", root)
    ranks, found = dist.get_world_size(), {}

    def run(zero: int, first: int, end: int, state: tuple | None = None) -> tuple[list[float], tuple]:
        settings = RunConfig(model="m", blend="b", micro_batch=2, zero=zero, train_language="full", learning_rate=3e-3)
        model, processor = load_model(root / "models/tiny", root, "mmca", torch.float32)
        share = {"rank": dist.get_rank(), "ranks": ranks}
        options = model.layout_options()
        batches = MicroBatchDataset(
            [reader], processor, options, global_batch=3, micro_batch=settings.micro_batch, **share
        )
        mark_trainable(model, settings)
        if state:
            load_weights(model, weights_of(state[0]))
        engine = TrainingEngine(
            model, settings, datasets=reader.datasets, accumulation=batches.accumulation, steps=STEPS
        )
        if state:
            engine.restore(*state, batches.filler(), batches.accumulation)
        losses = []
        for step in range(first, end):
            mine = [batches[step * batches.accumulation + micro] for micro in range(batches.accumulation)]
            losses.append(engine.step(step, engine.feed(mine)).losses.loss)
        return losses, (engine.state(), engine.facts())

    for kept in sorted(exchange.glob("*.safetensors")):
        begun, stage = kept.stem.split(",")
        if int(begun) != ranks:
            state = load_file(kept), json.loads(kept.with_suffix(".facts").read_text())
            for zero in range(4):
                found[f"{begun},{stage}>{ranks},{zero}"] = run(zero, FIRST, STEPS, state)[0]
    found["whole"] = run(0, 0, STEPS)[0][FIRST:]
    for zero in range(4):
        _, (tensors, facts) = run(zero, 0, FIRST)
        if dist.get_rank() == 0:
            write_tensors(exchange / f"{ranks},{zero}.safetensors", tensors)
            (exchange / f"{ranks},{zero}.facts").write_text(json.dumps(facts))
    dist.barrier()
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
    os._exit(0)
