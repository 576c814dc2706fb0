"""The loss scale of fp16: halved where a gradient overflows, doubled after a long time without one."""

from dataclasses import asdict

import torch

from scripts.config.run import RunConfig
from scripts.training.precision import LossScale, dtype_of


def test_only_fp16_has_a_scale():
    found = {name: LossScale.of(RunConfig(model="m", blend="b", precision=name)) for name in ("fp32", "bf16", "fp16")}
    assert found["fp32"] is found["bf16"] is None and found["fp16"] == LossScale(2.0**16)
    assert dtype_of("fp16") == torch.float16 and dtype_of("bf16") == torch.bfloat16


def test_the_scale_falls_at_once_and_rises_slowly():
    scale = LossScale(1024.0, interval=3)
    for overflowed, expected in ((True, 512), (False, 512), (False, 512), (False, 1024), (False, 1024), (True, 512)):
        scale.update(overflowed)
        assert scale.scale == expected
    assert LossScale(**asdict(scale)) == scale


def test_overflow_at_the_smallest_scale_is_hopeless():
    scale = LossScale(2.0)
    scale.update(True)
    assert not scale.exhausted
    scale.update(True)
    assert scale.exhausted
