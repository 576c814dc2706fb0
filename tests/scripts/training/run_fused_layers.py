"""Run by `test_fused_layers.py` with TRITON_INTERPRET=1: a decoder with Liger's kernels beside the same without.

    TRITON_INTERPRET=1 python -m tests.scripts.training.run_fused_layers KIND

KIND is a type of decoder. The last line of its output is JSON: the kernels that ran, whether the state has the same
names, the largest differences of loss and gradients, and the bytes that the layers keep over their estimate.
"""

import json
import sys

import numpy as np
import triton
import triton.language as tl
from liger_kernel.ops import rms_norm
from transformers import LlamaConfig, Qwen3Config
from triton.runtime import interpreter

from scripts.config.run import RunConfig
from scripts.estimation.activations import layer_bytes
from scripts.training.fused_layers import fuse_layers
from scripts.training.trainable import mark_trainable
from tests.scripts.training.saved_tensors import SavedBytes
from tests.scripts.training.tiny_decoders import backward, layer_sizes, tiny_batch, tiny_model, tiny_text

KINDS = {"llama": LlamaConfig, "qwen3": Qwen3Config}


@triton.jit
def _rsqrt(value):
    return 1.0 / tl.sqrt(value)


def complete_interpreter() -> None:
    """Give the interpreter what the norm's kernel uses and only a GPU has: `rsqrt`, and scalars of type float."""
    rms_norm.rsqrt = _rsqrt
    convert = interpreter._implicit_cvt

    def convert_float(value: object) -> object:
        if not isinstance(value, float):
            return convert(value)
        return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)

    interpreter._implicit_cvt = convert_float


def main(kind: str) -> None:
    complete_interpreter()
    run = RunConfig(model="m", blend="b", train_language="full", fused_layers="liger")
    models = []
    for fused in (False, True):
        model = tiny_model(tiny_text(KINDS[kind], layers=1)).train()
        mark_trainable(model, run)
        if fused:
            fuse_layers(model.language_model)
        saved = SavedBytes(model.get_decoder())
        batch = tiny_batch(rows=1, length=32)
        with saved.count():
            loss = backward(model, batch)
        models.append((model, loss))
    (plain, expected), (model, loss) = models
    differences = [
        (value.grad - other.grad).abs().max().item()
        for value, other in zip(model.parameters(), plain.parameters(), strict=True)
        if other.grad is not None
    ]
    modeling = sys.modules[type(model.get_decoder()).__module__]
    kernels = {module._get_name() for module in model.get_decoder().modules()}
    kernels.add(modeling.apply_rotary_pos_emb.__name__)
    found = {
        "kernels": sorted(kernels),
        "names": list(model.state_dict()) == list(plain.state_dict()),
        "loss": (loss - expected).abs().item(),
        "gradients": max(differences),
        "saved": saved.bytes["layer"] / layer_bytes(layer_sizes(model, run, tokens=32), "fp32"),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
