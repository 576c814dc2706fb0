"""Run by torchrun in `test_engine.py`: the same steps at every ZeRO stage, and continued at another stage than begun.

    torchrun --nproc-per-node 2 -m tests.scripts.training.run_zero_stages LAB OUT

OUT becomes {name: losses and gradient norms of the steps}; `2>0` is run `2` up to its second step, then at stage 0.
`second copies` counts the weights of which the last run holds a second copy; runs that are `mixed` measure the loss of
all their batches after each step. No step waits for its device until its gradient is complete.
"""

import copy
import functools
import gc
import json
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from scripts.training.worker import start_distributed
from tests.scripts.training.small_weights import divide_small_weights
from tests.scripts.training.waits import RefuseWaits

FIRST, STEPS = 2, 4
FROZEN = {"train_language": "frozen", "projector_learning_rate": 1e-2, "weight_decay": 0.1}
# The encoder is inside the engine here, and in every batch a rank has a filler, which shows no image.
ADAPTERS = {"train_language": "lora", "train_vision": "lora", "language_lora_rank": 4, "vision_lora_rank": 2}
ADAPTERS |= {"embeddings_learning_rate": 1e-3, "vision_learning_rate": 2e-3}
# The settings of runs of four steps, by name.
RUNS = {str(zero): {"zero": zero} for zero in (0, 1, 2, 3)}
RUNS |= {"frozen 2": {"zero": 2} | FROZEN}
RUNS |= {f"bf16 {zero}": {"zero": zero, "precision": "bf16"} for zero in (0, 2, 3)}
RUNS |= {f"bf16 features {zero}": {"zero": zero, "precision": "bf16", "features": True} for zero in (2, 3)}
RUNS |= {f"fp16 {zero}": {"zero": zero, "precision": "fp16"} for zero in (0, 2, 3)}
RUNS |= {"offload 2": {"zero": 2, "offload": "optimizer"}, "offload 3": {"zero": 3, "offload": "parameters"}}
RUNS |= {"recomputed 2": {"zero": 2, "gradient_checkpointing": True}}
RUNS |= {"recomputed adapters 3": {"zero": 3, "gradient_checkpointing": 2} | ADAPTERS}
RUNS |= {"compiled 2": {"zero": 2, "compile": True, "gradient_checkpointing": 2}}
RUNS |= {"adapters bf16 2": {"zero": 2, "precision": "bf16"} | ADAPTERS}
RUNS |= {f"adapters {zero}": {"zero": zero} | ADAPTERS for zero in (0, 1, 2, 3)}
RUNS |= {f"whole {zero}": {"zero": zero, "train_vision": "full"} for zero in (0, 2, 3)}
RUNS |= {f"mixed inside {zero}": {"zero": zero} | ADAPTERS for zero in (0, 2, 3)}
RUNS |= {f"mixed frozen {zero}": {"zero": zero} for zero in (2, 3)}
# Without an image nothing that is trained takes part in the loss.
PROJECTOR = {"train_language": "frozen", "train_embeddings": False}
RUNS |= {f"mixed projector {zero}": {"zero": zero} | PROJECTOR for zero in (0, 1, 2, 3)}
RUNS |= {f"mixed projector bf16 {zero}": {"zero": zero, "precision": "bf16"} | PROJECTOR for zero in (0, 2, 3)}
RUNS |= {"mixed projector recomputed 3": {"zero": 3, "gradient_checkpointing": True} | PROJECTOR}
# DeepSpeed keeps its groups of ranks until the process ends. Frozen and trained weights are in this one.
LAST = "second copy adapters 3"
RUNS |= {LAST: {"zero": 3, "zero_hpz": 2} | ADAPTERS}
CONTINUED = ["2>0", "2>3", "0>2", "2>2", "frozen 2>2", "bf16 2>2", "bf16 0>0", "fp16 2>2", "fp16 3>0", "offload 2>2"]
CONTINUED += ["adapters 2>2", "adapters 3>2", "adapters bf16 2>2"]


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
    from scripts.training import engine as engine_module
    from scripts.training.checkpoints import load_weights, weights_of
    from scripts.training.compiled_layers import compile_layers
    from scripts.training.dataset import MicroBatchDataset
    from scripts.training.engine import TrainingEngine
    from scripts.training.precision import dtype_of
    from scripts.training.trainable import mark_trainable

    divide_small_weights(every_run=True)
    # Traced and cut into graphs, which are run as they are: this needs no C++ compiler.
    engine_module.compile_layers = functools.partial(compile_layers, backend="eager")
    # DeepSpeed collects garbage at stage 3: without looking through the libraries each time.
    gc.freeze()
    reader = BlendReader(root / "blend/tiny/epoch-000", root)
    share = {"rank": dist.get_rank(), "ranks": dist.get_world_size()}

    @functools.cache
    def loaded(dtype: torch.dtype, keep_language_dtype: bool) -> tuple:
        """The model, of which every engine takes a copy, and its processor."""
        return load_model(root / "models/tiny", root, "mmca", dtype, keep_language_dtype=keep_language_dtype)

    processor = loaded(torch.float32, False)[1]
    # Batches of three: in each one, a rank has two conversations and the other one and a filler.
    options = loaded(torch.float32, False)[0].layout_options()
    shared = MicroBatchDataset([reader], processor, options, global_batch=3, micro_batch=1, **share)
    every = [shared[number] for number in range(STEPS * shared.accumulation)]
    mixed = mixtures(MicroBatchDataset([reader], processor, options, global_batch=1, micro_batch=1))

    found, states = {}, {}

    def run(name: str, settings: RunConfig, first: int, state: tuple | None) -> tuple[list[float], tuple | None]:
        """Take the steps from `first`, continuing from `state`; return their numbers, and the state after two steps."""
        model = copy.deepcopy(loaded(dtype_of(settings.precision), settings.zero == 3)[0])
        mark_trainable(model, settings)
        if state:
            load_weights(model, weights_of(state[0]))
        batches = mixed if name.startswith("mixed") else every
        if settings.features:
            batches = [encoded(batch, model.vision_tower) for batch in every]
        accumulation = len(batches) // STEPS
        engine = TrainingEngine(model, settings, datasets=reader.datasets, accumulation=accumulation, steps=STEPS)
        assert (engine.tower is None) == (settings.features or settings.train_vision != "frozen")
        if state:
            engine.restore(*state, shared.filler(), accumulation)
        losses, begun = [], None
        for step in range(first, STEPS):
            # DeepSpeed waits for gradients that it moves to the CPU; and at stage 3, whenever weights are used in
            # another order than before, it compares that order on all ranks.
            reordered = settings.zero == 3 and (step == first or name.startswith("mixed"))
            share = batches[step * accumulation : (step + 1) * accumulation]
            result = take_step(engine, step, share, may_wait=settings.offload != "none" or reordered)
            losses += [result.losses.loss, result.grad_norm]
            losses += [engine.evaluate(batches).loss] * name.startswith("mixed")
            if step == FIRST - 1 and any(other.startswith(f"{name}>") for other in CONTINUED):
                begun = engine.state(), engine.facts()
        copies = [value for value in model.parameters() if getattr(value, "ds_secondary_tensor", None) is not None]
        found["second copies"] = len(copies)
        return losses, begun

    def settings_of(name: str, **changes) -> RunConfig:
        options = {"precision": "fp32", "train_language": "full", "learning_rate": 3e-3} | RUNS[name] | changes
        return RunConfig(model="m", blend="b", epochs=1, micro_batch=1, **options)

    for name in [name for name in RUNS if name != LAST]:
        found[name], states[name] = run(name, settings_of(name), 0, None)
    for name in CONTINUED:
        begun, zero = name.split(">")
        continued, _ = run(begun, settings_of(begun, zero=int(zero)), FIRST, states[begun])
        found[name] = found[begun][: 2 * FIRST] + continued
    found[LAST], _ = run(LAST, settings_of(LAST), 0, None)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(found))


def take_step(engine, step, batches, may_wait):
    """Take a step that does not wait before its gradient is complete, unless it may."""
    count = engine._sum_step
    with RefuseWaits() as mode:

        def sum_step(*args):
            mode.allow()
            return count(*args)

        if may_wait:
            mode.allow()
        engine._sum_step = sum_step
        result = engine.step(step, engine.feed(batches))
    engine._sum_step = count
    return result


def encoded(batch, tower):
    """A micro-batch as it is with the feature store."""
    tensors = dict(batch.tensors)
    if "pixel_values" in tensors:
        with torch.no_grad():
            tensors["image_features"] = tower(tensors.pop("pixel_values")).to(torch.bfloat16)
    return replace(batch, tensors=tensors)


def mixtures(single) -> list:
    """Batches of this rank: an image here and none there, none anywhere, none here and an image there, two."""
    from scripts.training.dataset import StepCounts

    every = [single[number] for number in range(10)]
    text, shown = ([b for b in every if ("pixel_values" in b.tensors) == images] for images in (False, True))
    rows = [(shown[0], text[0]), (text[0], text[1]), (text[1], shown[1]), (shown[2], shown[3])]
    # Each was the only one of its step, and is now computed beside another.
    steps = [StepCounts(sum((b.labels for b in row), Counter()), sum(b.tokens for b in row)) for row in rows]
    return [replace(row[dist.get_rank()], step=step) for row, step in zip(rows, steps, strict=True)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)
