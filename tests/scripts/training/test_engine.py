"""The arithmetic of a step: the same at every ZeRO stage and after every change of stage; rates, groups and seeds."""

import json
import math
import os
import sys

import pytest
import torch

from scripts.config.run import RunConfig
from scripts.training.deepspeed_config import deepspeed_config
from scripts.training.engine import step_seed
from tests.preload import client as preload
from tests.runs import REPOSITORY, TrainingSetup


@pytest.fixture(scope="module")
def steps(lab: TrainingSetup, tmp_path_factory) -> dict[str, list[float]]:
    """Losses and gradient norms of four steps on two ranks, by name of the variant (see `run_zero_stages.py`)."""
    out = tmp_path_factory.mktemp("stages") / "steps.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.scripts.training.run_zero_stages", str(lab.root), str(out)]
    environment = os.environ | {"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = preload.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("variant", ["1", "2", "3", "2>0", "2>3", "0>2"])
def test_losses_and_gradients_do_not_depend_on_the_stage_nor_on_changing_it(steps: dict, variant: str):
    assert steps[variant] == pytest.approx(steps["0"], rel=2e-6)


@pytest.mark.parametrize("what", ["adapters", "whole"])
@pytest.mark.parametrize("zero", [2, 3])
def test_a_trained_encoder_lies_inside_the_engine_at_every_stage(steps: dict, what: str, zero: int):
    assert steps[f"{what} {zero}"] == pytest.approx(steps[f"{what} 0"], rel=1e-5)


def test_batches_without_images_on_some_ranks_or_on_all(steps: dict):
    """The encoder inside the engine, and frozen outside it."""
    assert steps["mixed inside 2"] == pytest.approx(steps["mixed inside 0"], rel=1e-5)
    assert steps["mixed inside 3"] == pytest.approx(steps["mixed inside 0"], rel=1e-5)
    assert steps["mixed frozen 3"] == pytest.approx(steps["mixed frozen 2"], rel=1e-5)


@pytest.mark.parametrize("zero", ["1", "2", "3", "recomputed 3"])
def test_a_stage_that_trains_the_projector_alone_takes_batches_without_images(steps: dict, zero: str):
    """Of four batches, one has images on the first rank, one on the second, one on both and one nowhere."""
    found = steps[f"mixed projector {zero}"]
    assert found == pytest.approx(steps["mixed projector 0"], rel=1e-5)
    norms, losses = found[1::3], found[2::3]
    assert [norm == 0 for norm in norms] == [False, True, False, False]
    assert losses[0] != losses[2], "the projector is trained"


@pytest.mark.parametrize("zero", [0, 3])
def test_in_half_precision_too(steps: dict, zero: int):
    assert steps[f"mixed projector bf16 {zero}"] == pytest.approx(steps["mixed projector bf16 2"], rel=2e-2)


def test_adapters_continue_at_another_stage(steps: dict):
    assert steps["adapters 3>2"] == pytest.approx(steps["adapters 2"], rel=1e-5)


@pytest.mark.parametrize("variant", ["2", "frozen 2", "bf16 2", "fp16 2", "offload 2", "adapters 2", "adapters bf16 2"])
def test_continued_at_the_same_stage_it_is_exact(steps: dict, variant: str):
    assert steps[f"{variant}>2"] == steps[variant]
    assert steps["bf16 0>0"] == steps["bf16 0"]


@pytest.mark.parametrize(("variant", "like"), [("offload 2", "2"), ("offload 3", "3"), ("recomputed 2", "2")])
def test_memory_is_saved_without_changing_a_number(steps: dict, variant: str, like: str):
    assert steps[variant] == pytest.approx(steps[like], rel=2e-6)
    assert steps["recomputed adapters 3"] == pytest.approx(steps["adapters 3"], rel=2e-6)


def test_frozen_and_trained_weights_are_gathered_from_their_second_copy(steps: dict):
    assert steps["second copy adapters 3"] == pytest.approx(steps["adapters 3"], rel=2e-6)
    assert steps["second copies"] > 0


def test_compiled_layers_are_divided_and_computed_again(steps: dict):
    assert steps["compiled 2"] == pytest.approx(steps["2"], rel=2e-6)


@pytest.mark.parametrize("zero", [0, 3])
def test_half_precision_is_the_same_at_every_stage_and_near_to_whole(steps: dict, zero: int):
    assert steps[f"bf16 {zero}"] == pytest.approx(steps["bf16 2"], rel=2e-3)
    assert steps[f"fp16 {zero}"] == pytest.approx(steps["fp16 2"], rel=2e-3)
    assert steps["fp16 2"][:3] == pytest.approx(steps["2"][:3], rel=1e-3)
    assert steps["fp16 2"][:3] != steps["2"][:3], "nothing was rounded"


@pytest.mark.parametrize("zero", [2, 3])
def test_features_in_place_of_pixels_give_the_same_steps_without_a_tower(steps: dict, zero: int):
    assert steps[f"bf16 features {zero}"] == steps[f"bf16 {zero}"]


def test_fp16_skips_what_overflows_and_keeps_its_scale_through_a_checkpoint(steps: dict):
    """The second gradient overflows, so the third step begins with half the scale and the weights of the second."""
    assert [math.isinf(norm) for norm in steps["fp16 2"][1::2]] == [False, True, False, True]
    assert steps["fp16 3>0"] == pytest.approx(steps["fp16 2"], rel=2e-3)


def test_what_is_trained_matters(steps: dict):
    assert steps["frozen 2"] != pytest.approx(steps["2"], rel=1e-4)


def run(**changes) -> RunConfig:
    return RunConfig(**{"model": "m", "blend": "b"} | changes)


def test_seeds_differ_by_step_and_rank_and_repeat():
    seeds = {step_seed(seed, step, rank) for seed in range(3) for step in range(3) for rank in range(3)}
    assert len(seeds) == 27 and step_seed(1, 2, 0) == step_seed(1, 2, 0)
    for seed in seeds:
        torch.manual_seed(seed)


def test_deepspeeds_configuration_has_no_optimizer_and_no_schedule():
    config = deepspeed_config(run(zero=3, precision="bf16", max_grad_norm=0.5), accumulation=4, trained=1000, pin=False)
    assert not {"optimizer", "scheduler"} & set(config)
    assert config["zero_optimization"]["stage"] == 3 and config["bf16"] == {"enabled": True}
    assert config["gradient_accumulation_steps"] == 4 and config["gradient_clipping"] == 0.5
    assert "offload_optimizer" not in config["zero_optimization"] and not config["fp16"]["enabled"]


@pytest.mark.parametrize(("offload", "devices"), [("optimizer", ("cpu", None)), ("parameters", ("cpu", "cpu"))])
def test_deepspeeds_configuration_names_what_to_offload(offload: str, devices: tuple):
    zero = deepspeed_config(run(zero=3, offload=offload), 1, 1000, pin=True)["zero_optimization"]
    assert tuple(zero.get(f"offload_{what}", {}).get("device") for what in ("optimizer", "param")) == devices


def test_deepspeeds_configuration_names_a_second_copy_where_there_is_one():
    name = "zero_hpz_partition_size"
    settings = run(zero=3, zero_hpz=4, ranks=16, nodes=2)
    assert deepspeed_config(settings, 1, 1000, pin=True)["zero_optimization"][name] == 4
    assert name not in deepspeed_config(run(zero=3), 1, 1000, pin=True)["zero_optimization"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero": 2, "zero_hpz": 2}, "needs zero 3, not 2"),
        ({"zero": 3, "zero_hpz": 2, "offload": "parameters"}, "and offload: parameters takes them away"),
        ({"zero": 3, "zero_hpz": 8, "ranks": 8, "nodes": 2}, "does not divide the 4 ranks of a node; use 4"),
        ({"compile": True, "fused_layers": "liger"}, "replace the same operations"),
        ({"compile": True, "zero": 3}, "compile needs zero 0, 1 or 2"),
        ({"offload": "optimizer", "zero": 1}, "offload optimizer needs zero >= 2"),
        ({"offload": "parameters", "zero": 2}, "offload parameters needs zero >= 3"),
        ({"nodes": 2, "ranks": 3}, "cannot be spread equally"),
    ],
)
def test_combinations_that_cannot_work_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        run(**changes)
