"""Optimizers: each is what its entry declares, and one that is added needs nothing but its entry."""

import json
import os
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import nn

from scripts.config.run import RunConfig
from scripts.training.optimizers import OPTIMIZERS, set_updates
from tests.preload import client as preload
from tests.runs import REPOSITORY, TrainingSetup


def build(name: str, settings: RunConfig, device: str = "cpu") -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Two parameters in two groups, for a forward pass on `device`."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(4))]
    groups = [{"params": [value], "lr": 0.1, "peak": 0.1, "weight_decay": 0.0} for value in parameters]
    return parameters, OPTIMIZERS[name].build(groups, settings, torch.device(device))


def steps(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, number: int) -> None:
    for _ in range(number):
        optimizer.zero_grad()
        sum((value**2).sum() for value in parameters).backward()
        optimizer.step()


def test_every_optimizer_can_be_configured():
    assert get_args(RunConfig.model_fields["optimizer"].annotation) == tuple(OPTIMIZERS)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_declared_state_is_all_that_a_step_depends_on(name: str):
    """Copied into an optimizer whose state was made before its first step, it gives the same weights."""
    settings = RunConfig(model="m", blend="b", optimizer=name)
    weights, first = build(name, settings)
    copies, second = build(name, settings)
    steps(weights, first, 3)
    OPTIMIZERS[name].make_state(second)
    for value, copy in zip(weights, copies, strict=True):
        assert set(first.state[value]) - {"step"} == set(OPTIMIZERS[name].state_names)
        copy.data.copy_(value.data)
        for part in OPTIMIZERS[name].state_names:
            assert second.state[copy][part].shape == value.shape and not second.state[copy][part].any()
            second.state[copy][part].copy_(first.state[value][part])
    set_updates(second, 3)
    steps(weights, first, 2)
    steps(copies, second, 2)
    assert all(torch.equal(value, copy) for value, copy in zip(weights, copies, strict=True))


def test_the_default_is_adamw_and_leaves_earlier_fingerprints_unchanged():
    _, optimizer = build("adamw", RunConfig(model="m", blend="b", betas=(0.8, 0.9)))
    assert type(optimizer) is torch.optim.AdamW and optimizer.defaults["betas"] == (0.8, 0.9)
    assert optimizer.defaults["eps"] == 1e-8 and "optimizer" not in RunConfig(model="m", blend="b").numbers()


def test_it_is_fused_on_a_gpu_and_where_it_is_offloaded_and_nowhere_else():
    """Runs on CPUs keep their bits."""
    plain, offloads = RunConfig(model="m", blend="b"), RunConfig(model="m", blend="b", offload="optimizer")
    fused = {
        (device, settings.offload): build("adamw", settings, device)[1].defaults["fused"]
        for device in ("cpu", "cuda")
        for settings in (plain, offloads)
    }
    assert fused == {
        ("cpu", "none"): None,
        ("cpu", "optimizer"): True,
        ("cuda", "none"): True,
        ("cuda", "optimizer"): True,
    }


def test_a_fused_optimizer_counts_its_steps_where_its_parameters_are():
    value = nn.Parameter(torch.zeros(2, device="meta"))
    for fused, device in ((True, "meta"), (None, "cpu")):
        optimizer = torch.optim.AdamW([value])
        optimizer.param_groups[0]["fused"] = fused
        OPTIMIZERS["adamw"].make_state(optimizer)
        assert optimizer.state[value]["step"].device.type == device


def test_an_added_optimizer_needs_nothing_but_its_entry(lab: TrainingSetup, tmp_path: Path):
    """Momentum has one state tensor: trained at two stages, saved, and continued at the other."""
    out = tmp_path / "momentum.json"
    command = [sys.executable, "-m", "tests.scripts.training.run_momentum", str(lab.root), str(out)]
    environment = os.environ | {"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = preload.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found["parts"] == ["momentum_buffer", "weight"]
    for variant in ("2", "3", "2>0", "0>2"):
        assert found[variant] == pytest.approx(found["0"], rel=2e-6)
    assert found["0"] != pytest.approx(found["adamw"], rel=1e-4)
