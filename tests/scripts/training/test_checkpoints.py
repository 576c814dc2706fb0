"""Checkpoints on disk: whole or absent, the newest good one found, damage reported, equal tensors in equal bytes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from scripts.common.errors import UserError
from scripts.common.files import file_sha256
from scripts.common.tensors import write_tensors
from scripts.training.checkpoints import Checkpoints, load_weights, weights_of
from tests.disks import PowerCut, small_disk

FACTS = {"metrics_bytes": 10, "best": None}


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weight/b": torch.full((3, 2), value), "exp_avg/b": torch.zeros(3, 2), "weight/a": torch.ones(4)}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (3, 6, 9):
        made.save(step, tensors(step), FACTS, print)
    return made


def newest(checkpoints: Checkpoints) -> tuple[int, list[str]]:
    output: list[str] = []
    facts = checkpoints.newest(output.append)
    return (facts["step"] if facts else 0), output


def test_the_newest_is_found_and_the_oldest_are_gone(checkpoints: Checkpoints):
    assert newest(checkpoints) == (9, [])
    assert torch.equal(checkpoints.load(9)["weight/b"], tensors(9)["weight/b"])
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-00000006", "step-00000009"]
    assert [facts["step"] for facts in checkpoints.facts()] == [6, 9]


def damage_tensors(path: Path) -> None:
    content = bytearray((path / "state.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "state.safetensors").write_bytes(content)


def cut_tensors(path: Path) -> None:
    (path / "state.safetensors").write_bytes((path / "state.safetensors").read_bytes()[:50])


def cut_json(path: Path) -> None:
    (path / "checkpoint.json").write_text('{"v": 1, "st')


def remove_json(path: Path) -> None:
    (path / "checkpoint.json").unlink()


def other_version(path: Path) -> None:
    facts = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(facts | {"v": 99}))


@pytest.mark.parametrize("damage", [damage_tensors, cut_tensors, cut_json, remove_json, other_version])
def test_a_damaged_newest_one_is_reported_and_the_one_before_used(checkpoints: Checkpoints, damage):
    damage(checkpoints.folder / "step-00000009")
    step, output = newest(checkpoints)
    assert step == 6 and len(output) == 1 and "step-00000009 is damaged" in output[0]
    assert newest(checkpoints) == (6, [])
    checkpoints.save(9, tensors(9), FACTS, print)
    assert newest(checkpoints) == (9, [])


def test_lost_best_weights_send_the_run_back_to_before_them(checkpoints: Checkpoints):
    path = checkpoints.folder.parent / "weights/best.safetensors"
    write_tensors(path, {"a": torch.ones(1)})
    best = {"weights": "weights/best.safetensors", "sha256": file_sha256(path)}
    checkpoints.save(12, tensors(12), FACTS | {"best": best}, print)
    assert newest(checkpoints) == (12, [])
    path.unlink()
    assert newest(checkpoints)[0] == 9


def test_without_any_good_one_the_run_begins_anew(checkpoints: Checkpoints):
    for path in checkpoints.folder.iterdir():
        cut_tensors(path)
    step, output = newest(checkpoints)
    assert step == 0 and len(output) == 2


def test_half_written_drafts_are_swept_away(checkpoints: Checkpoints):
    draft = checkpoints.folder / ".step-00000012"
    draft.mkdir()
    (draft / "state.safetensors").write_bytes(b"half")
    assert newest(checkpoints) == (9, []) and not draft.exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with small_disk(tmp_path / "disk", 1) as folder:
        yield folder


def test_a_full_disk_costs_the_newest_checkpoint_at_most(disk: Path):
    """Checkpoints of 300 kB on a disk for three: older ones make room, and at last the newest whole one stays."""
    checkpoints, output = Checkpoints(disk / "checkpoints", keep=3), []

    def big(value: float) -> dict[str, torch.Tensor]:
        return {"weight/a": torch.full((75_000,), value)}

    for step in (1, 2, 3):
        checkpoints.save(step, big(float(step)), FACTS, output.append)
    assert output == []
    checkpoints.save(4, big(4.0), FACTS, output.append)
    assert output == ["the disk is full: removing step-00000001, step-00000002 for the checkpoint of step 4"]
    assert checkpoints.steps() == [3, 4]
    shutil.rmtree(checkpoints.folder / "step-00000003")
    (disk / "ballast").write_bytes(bytes(600_000))
    for _ in range(2):
        with pytest.raises(OSError, match="No space left on device"):
            checkpoints.save(5, big(5.0), FACTS, output.append)
    assert newest(checkpoints) == (4, []) and torch.equal(checkpoints.load(4)["weight/a"], big(4.0)["weight/a"])
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-00000004"]


def test_a_power_cut_costs_no_checkpoint(checkpoints: Checkpoints, monkeypatch):
    """The new one is on the disk with its name before an older one goes."""
    disk = PowerCut(monkeypatch)
    checkpoints.save(12, tensors(12), FACTS, print)
    assert disk.renames == [("state.safetensors", True), ("checkpoint.json", True), ("step-00000012", True)]
    assert disk.spares(checkpoints.folder / "step-00000012") and disk.spares_name(checkpoints.folder / "step-00000012")
    assert disk.names(checkpoints.folder) == {"step-00000006", "step-00000009", "step-00000012"}


def test_weights_that_a_checkpoint_may_name_are_on_the_disk_with_their_name(tmp_path: Path, monkeypatch):
    disk = PowerCut(monkeypatch)
    path = tmp_path / "weights/step-00000003.safetensors"
    write_tensors(path, tensors(3))
    assert disk.spares(path) and disk.spares_name(path)


def test_equal_tensors_make_equal_bytes(tmp_path: Path):
    write_tensors(tmp_path / "one", tensors(1))
    write_tensors(tmp_path / "two", dict(reversed(tensors(1).items())))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_weights_go_into_the_model_or_are_refused():
    model = nn.Linear(2, 3, bias=False).bfloat16()
    load_weights(model, weights_of({"weight/weight": torch.full((3, 2), 0.5), "exp_avg/weight": torch.ones(3, 2)}))
    assert model.weight.dtype == torch.bfloat16 and (model.weight == 0.5).all()
    for bad in ({"other": torch.ones(3, 2)}, {"weight": torch.ones(2, 3)}):
        with pytest.raises(UserError, match="do not fit the model"):
            load_weights(model, bad)
