"""Runs that start from each other: exactly where the one before ended, in every precision, however work is divided."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scripts.export import export
from scripts.inference.model_assembly import load_model
from scripts.inference.model_loading import load_model as load_exported
from tests.preload import client as preload
from tests.runs import REPOSITORY, TrainingSetup, finished, metrics, state_of

PROJECTOR = {"train_language": "frozen", "train_embeddings": False}
ADAPTERS = {"train_language": "lora", "language_lora_rank": 4, "lora_scale": 1.5}
ADAPTERS |= {"train_projector": False, "train_embeddings": False}
STILL = {"learning_rate": 1e-60}
RUNS = {
    "align": PROJECTOR,
    "tune": ADAPTERS | {"start": "align"},
    # It continues the adapters of `tune`.
    "more": ADAPTERS | {"start": "tune:best", "seed": 1},
    "more still": ADAPTERS | {"start": "more", "seed": 2} | STILL,
    # Adapters of another rank: those before are merged. And a part that no stage before has trained.
    "last": ADAPTERS | {"start": "more:final", "language_lora_rank": 2, "train_embeddings": True},
    "last still": {"start": "last", "train_language": "full", "train_vision": "lora"} | STILL,
    "tune interrupted": ADAPTERS | {"start": "align", "stop": 5},
    "tune 0": ADAPTERS | {"start": "align", "zero": 0},
    "tune 3": ADAPTERS | {"start": "align", "zero": 3},
}
"""The settings of runs on one rank, by name; one with `stop` is stopped after that step and continued."""

HALF = {"half": {"precision": "bf16"}}
HALF |= {f"half {zero}": {"precision": "bf16", "start": "half", "zero": zero} | STILL for zero in (0, 2, 3)}
HALF |= {"half_adapters": ADAPTERS | {"precision": "bf16", "start": "half"}}
HALF |= {f"half full {zero}": {"precision": "bf16", "start": "half_adapters", "zero": zero} | STILL for zero in (2, 3)}

TWO_RANKS = {name: RUNS[name] for name in ("align", "tune", "tune 0", "tune 3", "more")}


def staged(lab: TrainingSetup, out: Path, ranks: int) -> Path:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command += ["-m", "tests.scripts.training.run_stages", str(lab.root), str(out)]
    environment = os.environ | {"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = preload.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def runs(lab: TrainingSetup, tmp_path_factory) -> Path:
    return staged(lab, tmp_path_factory.mktemp("stages"), 1)


def weights(out: Path, which: str = "final") -> dict[str, torch.Tensor]:
    return load_file(out / finished(out)[which]["weights"])


def heldout(out: Path) -> list[float]:
    return [line["heldout_loss"] for line in metrics(out) if "heldout_loss" in line]


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("run", "before"), [("tune", "align"), ("more still", "more"), ("last", "more"), ("last still", "last")]
)
def test_it_begins_with_the_loss_that_the_one_before_ended_with(runs: Path, run: str, before: str):
    merged = run.startswith("last")
    assert heldout(runs / run)[0] == pytest.approx(heldout(runs / before)[-1], rel=1e-6 if merged else 1e-12)
    assert heldout(runs / run)[0] != pytest.approx(heldout(runs / "align")[0], rel=1e-4)


def test_best_weights_are_those_of_the_lowest_loss(runs: Path):
    assert heldout(runs / "more")[0] == finished(runs / "tune")["best"]["heldout_loss"]


def test_both_stages_by_hand_in_one_process_give_the_same_weights(runs: Path):
    assert same(load_file(runs / "by hand.safetensors"), weights(runs / "tune"))
    assert same(weights(runs / "tune interrupted"), weights(runs / "tune"))
    assert metrics(runs / "tune interrupted") == metrics(runs / "tune")


def test_without_a_rate_a_run_ends_with_the_adapters_that_it_continues(runs: Path):
    assert same(weights(runs / "more still"), weights(runs / "more"))
    assert not same(weights(runs / "more"), weights(runs / "tune", "best"))


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_in_half_precision_training_goes_on_from_the_fp32_copies(runs: Path, zero: int):
    begun = weights(runs / "half")
    assert not all(torch.equal(value, value.bfloat16().float()) for value in begun.values())
    assert same(weights(runs / f"half {zero}"), begun)


def test_adapters_are_merged_alike_at_every_stage(runs: Path):
    """Stage 3 leaves the decoder in the precision of its files until it is divided."""
    assert same(weights(runs / "half full 2"), weights(runs / "half full 3"))
    assert heldout(runs / "half full 2")[0] == pytest.approx(heldout(runs / "half_adapters")[-1], rel=5e-3)


@pytest.mark.parametrize("zero", ["tune 0", "tune 3"])
def test_ranks_and_stages_of_zero_do_not_change_a_stage(runs: Path, two: Path, zero: str):
    for found in (runs / zero, two / zero, two / "tune"):
        assert heldout(found) == pytest.approx(heldout(runs / "tune"), rel=1e-5)
    assert heldout(two / "more") == pytest.approx(heldout(runs / "more"), rel=1e-5)


@pytest.fixture(scope="module")
def two(lab: TrainingSetup, tmp_path_factory) -> Path:
    return staged(lab, tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def alone(runs: Path, tmp_path_factory) -> Path:
    """The last stage without the folders of the runs before it."""
    return shutil.copytree(runs / "last", tmp_path_factory.mktemp("alone") / "last")


@pytest.mark.parametrize("which", ["final", "best"])
def test_an_export_holds_what_all_stages_have_trained(lab: TrainingSetup, runs: Path, alone: Path, tmp_path, which):
    from tests.scripts.test_export import heldout_loss

    for form in ("full", "delta"):
        export(alone, lab.model, lab.root, tmp_path / form, form)
    full, delta = (load_exported(tmp_path / form / which, "cpu") for form in ("full", "delta"))
    assert heldout_loss(lab, *full) == pytest.approx(finished(alone)[which]["heldout_loss"], rel=1e-6)
    values = dict(full[0].named_parameters())
    assert all(torch.equal(value, values[name]) for name, value in delta[0].named_parameters())
    projector = weights(runs / "align")
    assert projector and all(torch.equal(values[name], value) for name, value in projector.items())

    # The adapters of `tune` are those that `more` continues, so they count once; each merge is rounded once.
    base = dict(load_model(lab.model, lab.root, "mmca")[0].named_parameters())
    more, last = weights(runs / "more"), weights(alone, which)
    names = [name for name in last if name.endswith("lora_A.default.weight")]
    for name in names:
        target, other = name.replace("lora_A.default.weight", "weight"), name.replace("lora_A", "lora_B")
        once = (base[target].double() + 1.5 * more[other].double() @ more[name].double()).float()
        twice = (once.double() + 1.5 * last[other].double() @ last[name].double()).float()
        assert torch.equal(values[target], twice)
    assert len(names) > 10


def test_the_result_names_its_stages(runs: Path):
    start = finished(runs / "last")["start"]
    names = [(stage["run"], stage["which"]) for stage in start["stages"]]
    assert names == [("align", "final"), ("tune", "best"), ("more", "final")]
    assert [stage["sha256"] for stage in start["stages"]] == [
        finished(runs / run)[which]["sha256"] for run, which in names
    ]
    assert start["sha256"] == json.loads((state_of(runs / "last") / "inputs.json").read_text())["start"]
    assert "start" not in finished(runs / "align")
