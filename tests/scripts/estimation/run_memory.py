"""Run by torchrun in `test_memory.py`: what a rank really holds before and after a step, in bytes, variant by variant.

    torchrun --nproc-per-node 2 -m tests.scripts.estimation.run_memory LAB OUT VARIANTS

VARIANTS is JSON, name -> settings. OUT becomes {name: {"step": ..., "rest": ...}}: bytes of all tensors that came with
model and engine, at the end of the backward pass and after the step; of the rank that holds most.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from scripts.training.worker import start_distributed
from tests.scripts.training.small_weights import divide_small_weights


def storages() -> dict[int, int]:
    """Address and bytes of the memory of every living tensor made since `gc.freeze`, by what is left here of it."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    found.pop(0, None)
    return found


def main(root: Path, out: Path, variants: dict[str, dict]) -> None:
    torch.set_num_threads(1)
    start_distributed()
    from model.tensor_maps import map_tensors
    from scripts.config.run import RunConfig
    from scripts.inference.blend_reader import BlendReader
    from scripts.inference.model_assembly import load_model
    from scripts.inference.quantization import quantize_decoder
    from scripts.training.dataset import MicroBatchDataset
    from scripts.training.engine import TrainingEngine
    from scripts.training.trainable import mark_trainable

    divide_small_weights()
    # Nothing that the imports have made is looked through again and again.
    gc.freeze()
    types = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    reader = BlendReader(root / "blend/tiny/epoch-000", root)
    share = {"rank": dist.get_rank(), "ranks": dist.get_world_size()}
    measured = {}
    for name, options in variants.items():
        settings = RunConfig(model="m", blend="b", epochs=1, micro_batch=2, **options)
        dtype = types[settings.precision]
        batches = None
        before = storages()
        quantized = settings.quantize != "none"
        model, processor = load_model(root / "models/tiny", root, "mmca", dtype, keep_language_dtype=quantized)
        if quantized:
            quantize_decoder(model, torch.device("cpu"), dtype)
        batches = MicroBatchDataset([reader], processor, model.layout_options(), global_batch=4, micro_batch=2, **share)
        mark_trainable(model, settings)
        batch = batches[0]
        data: set[int] = set()
        map_tensors(
            [batch.tensors, batch.layout, batch.index, batch.label_datasets],
            lambda x, data=data: data.add(x.untyped_storage().data_ptr()),
        )
        engine = TrainingEngine(model, settings, datasets=reader.datasets, accumulation=1, steps=3)
        del model
        deepspeed, moments = engine._engine, {}
        true_step = deepspeed.step

        def step(*args, true_step=true_step, moments=moments, before=before, data=data):
            moments["step"] = sum(
                size for place, size in storages().items() if place not in before and place not in data
            )
            return true_step(*args)

        deepspeed.step = step
        engine.step(0, engine.feed([batch]))
        engine.step(1, engine.feed([batch]))
        moments["rest"] = sum(size for place, size in storages().items() if place not in before and place not in data)
        by_rank: list = [None] * dist.get_world_size()
        dist.all_gather_object(by_rank, moments)
        measured[name] = {moment: max(rank[moment] for rank in by_rank) for moment in moments}
        deepspeed.step = true_step
        if hasattr(deepspeed, "destroy"):
            deepspeed.destroy()
        del engine, deepspeed, true_step, step, batch, batches, processor
    if dist.get_rank() == 0:
        out.write_text(json.dumps(measured))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
    # Past the interpreter's own end, where libraries' threads are torn down in no fixed order, and sometimes abort.
    os._exit(0)
