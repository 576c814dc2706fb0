"""What a run takes from the one that it starts from: complete, checked by hash, and part of its fingerprint."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scripts.common.errors import UserError
from scripts.common.files import file_sha256, read_json, write_json
from scripts.config.run import RunConfig
from scripts.provenance.manifest_files import manifest_files
from scripts.train import is_finished, warn_changed_inputs
from scripts.training import start as module
from scripts.training.fingerprint import input_hashes, run_fingerprint
from scripts.training.run_inputs import run_settings, start_of
from scripts.training.start import continued_parts, find_start, is_taken, read_stages, start_files, take_start
from scripts.workflow.products import other_files
from tests.runs import TrainingSetup

ADAPTERS = {"train_language": "lora", "language_lora_rank": 4}


def settings(**changes) -> RunConfig:
    return RunConfig(model="m", blend="b", **changes)


def finish(folder: Path, value: float, before: Path | None = None, **changes) -> Path:
    """Write the result of a run in `folder`, whose final weights hold `value` and whose best ones twice that.

    `before` is the folder of the run that it starts from.
    """
    own = settings(**changes)
    state = folder / "state/f"
    write_json(state / "settings.json", own.model_dump(mode="json"))
    write_json(state / "inputs.json", {"model": "hash of the model"})
    for name in ("plans.json", "environment.json"):
        write_json(state / name, [])
    if before:
        take_start(state, find_start(before, own, "hash of the model"))
    entries = {}
    for step, (which, weight) in enumerate({"final": value, "best": 2 * value}.items(), start=1):
        path = state / f"weights/{which}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file({"w": torch.tensor([weight])}, path)
        entries[which] = {"step": step, "weights": f"state/f/weights/{which}.safetensors", "sha256": file_sha256(path)}
    facts = {"run": folder.name, "fingerprint": "f", "state": "state/f", **entries, **module.summary(state)}
    for path in (state / "finished.json", folder / "finished.json"):
        write_json(path, facts)
    return folder


@pytest.fixture
def align(tmp_path: Path) -> Path:
    return finish(tmp_path / "align", 1.0)


def found(run: Path, **changes) -> module.Start:
    return find_start(run, settings(**{"start": run.name} | changes), "hash of the model")


def test_the_weights_count_and_not_the_name_of_the_run(align: Path, tmp_path: Path):
    renamed = finish(tmp_path / "renamed", 1.0)
    assert found(align).sha256 == found(renamed).sha256 == found(align, start="align:final").sha256
    assert found(align).sha256 != found(align, start="align:best").sha256
    assert found(align).sha256 != found(finish(tmp_path / "other", 3.0)).sha256


def test_runs_without_a_start_keep_their_fingerprints(lab: TrainingSetup, align: Path):
    read = input_hashes(lab.model, lab.blends, lab.heldout)
    assert read.keys() == {"model", "blend", "heldout"}
    prints = {
        run_fingerprint(
            settings(start=start), input_hashes(lab.model, lab.blends, lab.heldout, found(align, start=start))
        )
        for start in ("align", "align:final", "align:best")
    }
    assert len(prints) == 2 and run_fingerprint(settings(), read) not in prints


def test_adapters_of_the_same_part_rank_and_scale_continue():
    before = settings(**ADAPTERS, train_vision="lora")
    assert continued_parts(before, before) == ["language", "vision"]
    assert continued_parts(before, settings(**ADAPTERS)) == ["language"]
    assert continued_parts(before, settings(**ADAPTERS | {"language_lora_rank": 8}, train_vision="lora")) == ["vision"]
    assert continued_parts(before, settings(**ADAPTERS, lora_scale=1.0)) == []
    assert continued_parts(settings(), settings()) == []


def test_a_state_stays_complete_without_the_runs_before_it(align: Path, tmp_path: Path):
    tune = finish(tmp_path / "tune", 5.0, align, start="align:best")
    last = finish(tmp_path / "last", 7.0, tune, start="tune")
    state = last / "state/f"
    assert [(stage["run"], stage["which"]) for stage in read_stages(state)] == [("align", "best"), ("tune", "final")]
    start = found(tune, start="tune")
    assert is_taken(state, start) and is_finished(state, start)
    shutil.rmtree(align)
    shutil.rmtree(tune)
    assert is_taken(state, start)
    assert [file_sha256(path) for path, _ in start_files(state)] == [stage["sha256"] for stage in start.stages]
    # Provenance and repairs cover them.
    expected = {path.relative_to(tmp_path).as_posix() for path, _ in start_files(state)}
    expected.add("last/state/f/start/start.json")
    (tmp_path / "train").mkdir()
    last.rename(tmp_path / "train/last")
    listed = {file.path.removeprefix("train/") for file in manifest_files(tmp_path, "train/last/finished.json")}
    extras = other_files("train", tmp_path, ["train/last/finished.json"])
    assert expected <= listed
    assert expected <= {path.relative_to(tmp_path / "train").as_posix() for path in extras}


@pytest.mark.parametrize("links", [True, False])
def test_what_is_missing_or_damaged_is_taken_again(align: Path, tmp_path: Path, links: bool, monkeypatch):
    if not links:

        def no_links(source, target):
            raise OSError(module.errno.EXDEV, "another file system")

        monkeypatch.setattr(module.os, "link", no_links)
    state, start = tmp_path / "state", found(align)
    assert not is_taken(state, start)
    take_start(state, start)
    (path, sha256) = start_files(state)[0]
    assert is_taken(state, start) and (path.stat().st_nlink == 2) == links
    assert sorted(file.name for file in path.parent.iterdir()) == ["0.safetensors", "start.json"]
    path.unlink()
    assert not is_taken(state, start)
    path.write_bytes(b"other")
    take_start(state, start)
    assert is_taken(state, start) and file_sha256(path) == sha256
    path.unlink()
    (align / "state/f/weights/final.safetensors").write_bytes(b"other")
    with pytest.raises(UserError, match=r"final.safetensors is missing or damaged \(a run starts from these weights\)"):
        take_start(state, start)
    assert not path.exists()


def test_what_cannot_be_started_from_is_refused(align: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no finished run to start from .* train missing first"):
        found(tmp_path / "missing")
    with pytest.raises(UserError, match="was trained from another model than the one given here"):
        find_start(align, settings(start="align"), "hash of another model")
    last = finish(tmp_path / "last", 2.0, align, start="align")
    (last / "state/f/start/start.json").unlink()
    with pytest.raises(UserError, match=r"start.json is missing or damaged"):
        found(last)
    for start, folder in ((None, align), ("align", None)):
        with pytest.raises(UserError, match="--start and `start` in the settings of the run belong together"):
            start_of(Namespace(start=folder, model=tmp_path), settings(start=start))


def test_a_start_that_has_changed_is_printed_where_an_unfinished_run_is_left(align: Path, tmp_path: Path, capsys):
    first, second = (tmp_path / "tune/state" / name for name in ("first", "second"))
    take_start(first, found(align))
    write_json(first / "plans.json", [])
    finish(align, 4.0)
    second.mkdir()
    warn_changed_inputs("tune", second, [], found(align))
    expected = (
        f"tune starts anew, beside the unfinished {first}: the final weights of align, which it starts from, are "
    )
    assert capsys.readouterr().err.startswith(expected)
    warn_changed_inputs("tune", second, [], found(align, start="align:best"))
    assert "it starts from align:best, and not from align:final" in capsys.readouterr().err
    write_json(first / "finished.json", {})
    warn_changed_inputs("tune", second, [], found(align))
    assert capsys.readouterr().err == "", "a finished run is left as it is"


def test_a_description_of_another_version_is_refused(align: Path, tmp_path: Path):
    take_start(tmp_path / "state", found(align))
    path = tmp_path / "state/start/start.json"
    path.write_text(json.dumps(read_json(path) | {"v": 2}))
    with pytest.raises(UserError, match="is not a description of version 1"):
        read_stages(tmp_path / "state")


def test_automatic_precision_of_a_run_by_hand_is_that_of_the_machine(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    run = '{"model": "m", "blend": "b", "precision": "%s"}'
    assert run_settings(run % "auto", "{}").precision == "fp32"
    assert run_settings(run % "bf16", "{}").precision == "bf16"
