"""The program `plan`: its flags, its errors, and what it prints."""

import json
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from scripts.blending.plan_summary import padding
from scripts.common.errors import UserError
from scripts.common.files import read_json, write_json
from scripts.config.tokens import TemplateTexts
from scripts.plan import main
from tests.scripts.blending.plan_fixtures import ALL, TOKENS, PlanWorkspace, llava, mixed_records, pair


@pytest.fixture
def workspace(tmp_path):
    return PlanWorkspace(tmp_path, mixed_records(), held_out=["i03"])


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["plan", *map(str, arguments)])
    return main()


def flags(workspace, **changed):
    settings = {"tokens": "tiny", "global_batch": 8, "datasets": ALL, "mixed": "drop"} | changed.pop("settings", {})
    values = {
        "name": "b",
        "settings": json.dumps(settings),
        "epoch": "epoch-000",
        "records": workspace.folder / "records",
        "tokens": workspace.folder / "tokens",
        "split": workspace.folder / "split",
        "media": f"coco={workspace.folder / 'media/coco'}",
        "out": workspace.folder / "out",
    } | changed
    return [text for name, value in values.items() for text in (f"--{name}", value)]


def test_the_program_writes_what_the_function_writes(workspace, monkeypatch):
    for part, epoch in (("epoch-000", 0), ("1", 1), ("heldout", None)):
        run(monkeypatch, *flags(workspace, epoch=part))
        expected = workspace.plan_file(ALL, epoch, "b", global_batch=8, mixed="drop")
        name = workspace.path("b", epoch).name
        assert (workspace.folder / "out" / name).read_bytes() == workspace.path("b", epoch).read_bytes()
        assert read_json(workspace.folder / "out" / name.replace("parquet", "json")) == expected


def test_totals_of_the_manifest_are_those_of_the_table(workspace):
    manifest = workspace.plan_file(ALL, global_batch=8)
    table = pq.read_table(workspace.path())
    assert manifest["conversations"] == manifest["units"] == table.num_rows
    assert manifest["tokens"] == sum(table["n_tokens"].to_pylist())
    assert manifest["rounds"] == sum(len(r) for rounds in table["rounds"].to_pylist() for r in rounds)
    assert manifest["global_batches"] == -(-table.num_rows // 8)
    for key in ("tokens", "labels", "images"):
        assert sum(account[key] for account in manifest["datasets"].values()) == manifest[key]
    assert sum(account["realised"] for account in manifest["datasets"].values()) == table.num_rows
    assert manifest["licences"] == {"free": sum(len(uids) for uids in table["uids"].to_pylist())}
    assert table["position"].to_pylist() == table["pack"].to_pylist() == list(range(table.num_rows))
    costs = table["n_tokens"].to_pylist()
    assert all(costs[i : i + 8] == sorted(costs[i : i + 8], reverse=True) for i in range(0, len(costs), 8))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("records/llava_dial.report.json", "needs llava_dial, but .* does not exist: run convert"),
        ("records/llava_dial.parquet", "needs llava_dial, but .* does not exist: run convert"),
        ("tokens/llava_dial.json", "needs llava_dial, but .* does not exist: run count_tokens"),
        ("tokens/llava_dial.parquet", "needs llava_dial, but .* does not exist: run count_tokens"),
        ("split/heldout.parquet", "run holdout first"),
        ("media/coco/index.parquet", "run shard and index for the source coco"),
    ],
)
def test_a_missing_input_is_named_with_the_step_that_makes_it(workspace, broken, message):
    (workspace.folder / broken).unlink()
    with pytest.raises(UserError, match=message):
        workspace.plan_file({"llava_otter_blend": {}})
    assert not workspace.path().exists()


def test_stale_token_tables_are_refused(workspace):
    workspace.write_records("llava", [llava(number, "i00") for number in range(5)])
    with pytest.raises(UserError, match=r"llava.json counts other records .* run count_tokens for llava again"):
        workspace.plan_file(ALL)
    report = workspace.folder / "records/llava.report.json"
    write_json(report, {"sha256": read_json(workspace.folder / "tokens/llava.json")["records_sha256"]})
    with pytest.raises(UserError, match="does not belong to"):
        workspace.plan_file(ALL)


@pytest.mark.parametrize("change", [{"image_tokens": 3}, {"template": TemplateTexts(system="Be kind.")}])
def test_token_tables_of_different_kinds_are_refused(workspace, change):
    workspace.count("llava_dial", TOKENS.model_copy(update=change))
    with pytest.raises(UserError, match="llava_dial and coco_caption were counted with different"):
        workspace.plan_file(ALL)


def test_more_images_than_were_counted_are_refused(workspace):
    with pytest.raises(UserError, match=r"allows 9 images, but the tokens of .* are counted for 8"):
        workspace.plan_file(ALL, max_images=9)


def test_images_that_the_media_lack_are_refused(workspace, monkeypatch):
    workspace.write_records("otter_mimicit_cgd", [pair(0, "i00", "gone")])
    workspace.count("otter_mimicit_cgd")
    with pytest.raises(UserError, match=r"show 1 images that .*index.parquet does not hold, such as gone"):
        workspace.plan_file({"otter_mimicit_cgd": {}})
    with pytest.raises(UserError, match="give its media folder with --media coco=FOLDER"):
        run(monkeypatch, *flags(workspace, media="other=x"))


def test_a_dataset_without_a_single_record_is_refused(workspace):
    workspace.write_records("llava", [])
    workspace.count("llava")
    with pytest.raises(UserError, match=r"llava.parquet holds no records"):
        workspace.plan_file(ALL)


@pytest.mark.parametrize("epoch", ["-1", "epoch-1000", "first", "epoch_0", ""])
def test_a_strange_epoch_is_refused(workspace, monkeypatch, epoch):
    with pytest.raises(UserError, match="must be a number"):
        run(monkeypatch, *flags(workspace, **{"epoch": epoch} if epoch != "-1" else {"epoch": " -1"}))


def test_a_fixed_blend_has_one_epoch(workspace, monkeypatch):
    fixed = {"settings": {"redraw": False}}
    run(monkeypatch, *flags(workspace, **fixed))
    with pytest.raises(UserError, match="every epoch is epoch-000"):
        run(monkeypatch, *flags(workspace, epoch="epoch-001", **fixed))


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"llava": {"sample": 3}}, "datasets.llava.sample"),
        ({"llava": {"samples": 0}}, "datasets.llava.samples"),
        ({"llava": {"samples": 1.5}}, "datasets.llava.samples"),
        ({"llava": {"followup": False}}, "only a join takes this option"),
        ({"llava_otter_blend": {"concat": 2}}, "a join is over several images already"),
        ({}, "datasets"),
    ],
)
def test_bad_settings_are_refused(workspace, monkeypatch, datasets, message):
    with pytest.raises(UserError, match=message):
        run(monkeypatch, *flags(workspace, settings={"datasets": datasets}))


def test_after_needs_epochs_that_differ(workspace, monkeypatch):
    with pytest.raises(UserError, match="needs redraw: true"):
        run(monkeypatch, *flags(workspace, settings={"datasets": {"llava": {"after": 0.1}}, "redraw": False}))


def test_media_must_be_pairs(workspace, monkeypatch):
    with pytest.raises(UserError, match="must be SOURCE=FOLDER"):
        run(monkeypatch, *flags(workspace, media="media/coco"))


def test_flags_that_are_missing_are_listed(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--name", "b")
    assert "--settings --epoch --records" in capsys.readouterr().err


def test_show_prints_what_matters_before_training(workspace, monkeypatch, capsys):
    entries = {
        "llava": {"concat": 3, "repeat": 2},
        "llava_dial": {"samples": 0.5},
        "otter_mimicit_cgd": {"after": 0.3},
        "coco_caption": {"after": 1},
    }
    manifest = workspace.plan_file(entries, global_batch=8, sequence=250)
    run(monkeypatch, "--show", workspace.path())
    shown = capsys.readouterr().out
    for words in (
        f"plan {manifest['sha256'][:16]}",
        f"{manifest['tokens']:,}",
        "of the tokens",
        "padded to their longest",
        "all x 2",
        "coco_caption: starts in epoch 1",
        "llava: up to 3 concatenated, 22 records",
        "llava: 1 records not used: held out",
        "otter_mimicit_cgd: 2 records not used: partly held out",
        "only from 0.3 epochs",
        "free",
    ):
        assert words in shown
    histogram = [line.split() for line in shown.splitlines() if line.endswith("#")]
    assert sum(int(line[1]) for line in histogram) == manifest["conversations"]


def test_an_empty_heldout_part_is_reported_and_can_be_shown(workspace, monkeypatch, capsys):
    workspace.hold_out([])
    run(monkeypatch, *flags(workspace, epoch="heldout"))
    assert "nothing will be evaluated" in capsys.readouterr().err
    run(monkeypatch, "--show", workspace.folder / "out/heldout.parquet")
    assert "in 0 global batches" in capsys.readouterr().out


def test_a_plan_that_was_changed_is_not_shown(workspace, monkeypatch):
    manifest = workspace.plan_file(ALL)
    write_json(workspace.path().with_suffix(".json"), manifest | {"sha256": "0"})
    with pytest.raises(UserError, match=r"is not the table that .* describes"):
        run(monkeypatch, "--show", workspace.path())


def test_padding_is_what_longest_rows_add():
    assert padding(np.array([5, 3, 4, 2, 7]), 2) == (10 - 8 + 8 - 6, 10 + 8 + 7)
    assert padding(np.array([], int), 2) == (0, 0)
