"""Liger's kernels in place of a decoder's norms, rotary positions and MLP: the same numbers, the same names.

The kernels run in Triton's interpreter, in a process of their own, because Triton reads that choice when it is
imported.
"""

import importlib.util
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from scripts.common.errors import UserError
from scripts.config.run import RunConfig
from scripts.training.fused_layers import check_fused_layers, fuse_layers
from tests.runs import REPOSITORY

LIGER = RunConfig(model="m", blend="b", fused_layers="liger")
MISSING = [name for name in ("liger_kernel", "triton") if importlib.util.find_spec(name) is None]
needs_liger = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def test_a_missing_library_is_named_with_the_command_to_type(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install liger-kernel"):
        check_fused_layers(LIGER)
    check_fused_layers(RunConfig(model="m", blend="b"))


def test_a_machine_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"needs a GPU.*fused_layers: none"):
        check_fused_layers(LIGER)


@needs_liger
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt_neox"}, r"type 'gpt_neox', but .*llama, .*qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu"),
    ],
    ids=["type", "activation"],
)
def test_a_decoder_that_the_kernels_do_not_fit_is_refused(changes: dict, message: str):
    decoder = SimpleNamespace(config=SimpleNamespace(**{"model_type": "llama", "hidden_act": "silu"} | changes))
    with pytest.raises(UserError, match=message):
        fuse_layers(decoder)


@needs_liger
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_the_kernels_agree_with_plain_layers(kind: str):
    """In float32, trained fully; and what the layers keep is what the estimate counts."""
    command = [sys.executable, "-m", "tests.scripts.training.run_fused_layers", kind]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["names"], "the state has other names"
    assert {"LigerRMSNorm", "LigerSwiGLUMLP", "liger_rotary_pos_emb"} <= set(found["kernels"])
    assert found["loss"] < 1e-6 and found["gradients"] < 1e-5
    assert found["saved"] == pytest.approx(1.0, rel=0.1)
