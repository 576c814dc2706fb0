"""Run by torchrun in `test_engine.py`: the same steps at every ZeRO stage, and continued at another stage than begun.

    torchrun --nproc-per-node 2 -m tests.scripts.training.run_zero_stages LAB OUT

OUT becomes {name: losses and gradient norms of the steps}; `2>0` is a run that does two steps at stage 2 and two more
at stage 0.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from scripts.training.worker import start_distributed

FIRST, STEPS = 2, 4


def allow_fp16() -> None:
    """Let DeepSpeed use fp16 on a CPU that is slow at it; PyTorch computes it on all of them."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True


def main(root: Path, out: Path) -> None:
    torch.set_num_threads(1)
    start_distributed()
    allow_fp16()
    from scripts.config.run import RunConfig
    from scripts.inference.blend_reader import BlendReader
    from scripts.inference.model_assembly import load_model
    from scripts.training.checkpoints import load_weights, weights_of
    from scripts.training.dataset import MicroBatchDataset
    from scripts.training.engine import TrainingEngine
    from scripts.training.precision import dtype_of
    from scripts.training.trainable import mark_trainable

    reader = BlendReader(root / "blend/tiny/epoch-000", root)
    share = {"rank": dist.get_rank(), "ranks": dist.get_world_size()}

    def mixtures(processor) -> list:
        """Batches of this rank: an image here and none there, none anywhere, none here and an image there, two."""
        single = MicroBatchDataset([reader], processor, global_batch=1, micro_batch=1)
        every = [single[number] for number in range(10)]
        text, shown = ([b for b in every if ("pixel_values" in b.tensors) == images] for images in (False, True))
        rows = [(shown[0], text[0]), (text[0], text[1]), (text[1], shown[1]), (shown[2], shown[3])]
        return [row[dist.get_rank()] for row in rows]

    def run(
        first: int, end: int, state: tuple | None = None, mixed: bool = False, **options
    ) -> tuple[list[float], tuple]:
        options = {"precision": "fp32", "train_language": "full", "learning_rate": 3e-3} | options
        settings = RunConfig(model="m", blend="b", epochs=1, micro_batch=1, **options)
        dtype, keep_language_dtype = dtype_of(settings.precision), settings.zero == 3
        model, processor = load_model(
            root / "models/tiny", root, "mmca", dtype, keep_language_dtype=keep_language_dtype
        )
        # Batches of three: in each one, a rank has two conversations and the other one and a filler.
        batches = MicroBatchDataset([reader], processor, global_batch=3, micro_batch=1, **share)
        mark_trainable(model, settings)
        if state:
            load_weights(model, weights_of(state[0]))
        accumulation = 1 if mixed else batches.accumulation
        engine = TrainingEngine(model, settings, datasets=reader.datasets, accumulation=accumulation, steps=STEPS)
        if state:
            engine.restore(*state, batches.filler(), accumulation)
        losses = []
        for step in range(first, end):
            mine = [batches[step * accumulation + micro] for micro in range(accumulation)]
            mine = mixtures(processor)[step : step + 1] if mixed else mine
            result = engine.step(step, mine)
            losses += [result.measured.loss, result.grad_norm]
        return losses, (engine.state(), engine.facts())

    found = {str(zero): run(0, STEPS, zero=zero)[0] for zero in (0, 1, 2, 3)}
    frozen = {"train_language": "frozen", "projector_learning_rate": 1e-2, "weight_decay": 0.1}
    # The encoder is inside the engine here, and in every batch a rank has a filler, which shows no image.
    adapters = {"train_language": "lora", "train_vision": "lora", "language_lora_rank": 4, "vision_lora_rank": 2}
    adapters |= {"embeddings_learning_rate": 1e-3, "vision_learning_rate": 2e-3}
    for name, first, then, options in (
        ("2>0", 2, 0, {}),
        ("2>3", 2, 3, {}),
        ("0>2", 0, 2, {}),
        ("2>2", 2, 2, {}),
        ("frozen 2>2", 2, 2, frozen),
        ("bf16 2>2", 2, 2, {"precision": "bf16"}),
        ("adapters 2>2", 2, 2, adapters),
        ("adapters 3>2", 3, 2, adapters),
        ("adapters bf16 2>2", 2, 2, adapters | {"precision": "bf16"}),
        ("bf16 0>0", 0, 0, {"precision": "bf16"}),
        ("fp16 2>2", 2, 2, {"precision": "fp16"}),
        ("fp16 3>0", 3, 0, {"precision": "fp16"}),
        ("offload 2>2", 2, 2, {"offload": "optimizer"}),
    ):
        begun, state = run(0, FIRST, zero=first, **options)
        found[name] = begun + run(FIRST, STEPS, state, zero=then, **options)[0]
    found["frozen 2"] = run(0, STEPS, zero=2, **frozen)[0]
    found["bf16 2"] = run(0, STEPS, zero=2, precision="bf16")[0]
    found |= {f"bf16 {zero}": run(0, STEPS, zero=zero, precision="bf16")[0] for zero in (0, 3)}
    found |= {f"fp16 {zero}": run(0, STEPS, zero=zero, precision="fp16")[0] for zero in (0, 2, 3)}
    found["offload 2"] = run(0, STEPS, zero=2, offload="optimizer")[0]
    found["offload 3"] = run(0, STEPS, zero=3, offload="parameters")[0]
    found["recomputed 2"] = run(0, STEPS, zero=2, gradient_checkpointing=True)[0]
    found["recomputed adapters 3"] = run(0, STEPS, zero=3, gradient_checkpointing=True, **adapters)[0]
    found |= {f"mixed inside {zero}": run(0, STEPS, zero=zero, mixed=True, **adapters)[0] for zero in (0, 2, 3)}
    found |= {f"mixed frozen {zero}": run(0, STEPS, zero=zero, mixed=True)[0] for zero in (2, 3)}
    found["adapters bf16 2"] = run(0, STEPS, zero=2, precision="bf16", **adapters)[0]
    found |= {f"adapters {zero}": run(0, STEPS, zero=zero, **adapters)[0] for zero in (0, 1, 2, 3)}
    found |= {f"whole {zero}": run(0, STEPS, zero=zero, train_vision="full")[0] for zero in (0, 2, 3)}
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)
