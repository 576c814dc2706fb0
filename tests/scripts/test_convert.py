"""convert: records in the shape that the plan relies on, every raw row accounted for, the same bytes every time."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scripts.common.errors import UserError
from scripts.common.files import file_sha256, read_json
from scripts.common.records import RECORD_SCHEMA, SPLITS, ChoiceGroup, ImageRef, Record, Round, check
from scripts.config.registry import DATASETS as REGISTERED
from scripts.convert import convert
from tests.scripts.adapters.raw_folders import data_path, fetch_for
from tests.synthetic_data import DATASETS, build_media, build_records, make_synthetic_data

DIAL = "llava/conversation_58k.json"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    return folder, build_records(make_synthetic_data(folder, images=50), folder)


@pytest.mark.parametrize("dataset", DATASETS)
def test_records_keep_what_the_schema_promises(built, dataset):
    folder, records = built
    table = pq.read_table(records / f"{dataset}.parquet")
    assert table.schema.equals(RECORD_SCHEMA)
    rows, report = table.to_pylist(), read_json(records / f"{dataset}.report.json")
    sources = REGISTERED[dataset].image_sources
    known = {(s, key) for s in sources for key in pq.read_table(folder / f"media/{s}/index.parquet")["key"].to_pylist()}
    assert len({row["uid"] for row in rows}) == len(rows) == report["records"] > 0
    assert report["rows"] == report["kept"] and report["dropped"] == {} and report["expected"] is None
    for row in rows:
        assert row["uid"].startswith(f"{dataset}:") and row["split"] in SPLITS and row["licence"] == report["licence"]
        assert row["images"] and {(image["source"], image["key"]) for image in row["images"]} <= known
        check(_record(row))


def _record(row):
    """A row of the table as a Record, to be checked by the same rules."""
    texts = ("question", "answer", "images")
    rounds = [Round(**{k: tuple(v) if k in texts else v for k, v in round_.items()}) for round_ in row["rounds"]]
    images = tuple(ImageRef(**image) for image in row["images"])
    return Record(
        row["uid"], images, tuple(rounds), tuple(ChoiceGroup(**group) for group in row["groups"]), row["split"]
    )


def test_two_builds_give_the_same_bytes(built, tmp_path):
    again = build_records(make_synthetic_data(tmp_path, images=50), tmp_path)
    names = sorted(path.name for path in built[1].iterdir())
    assert names == sorted(f"{dataset}{end}" for dataset in DATASETS for end in (".parquet", ".report.json"))
    assert all(file_sha256(built[1] / name) == file_sha256(again / name) for name in names)


def test_pairs_share_their_images_with_single_image_conversations(built):
    used = {name: _images(built[1] / f"{name}.parquet") for name in ("llava", "llava_dial", "otter_mimicit_cgd")}
    singles = used["llava"] | used["llava_dial"]
    assert len(used["otter_mimicit_cgd"] & singles) >= 0.9 * len(used["otter_mimicit_cgd"])


def _images(path):
    return {image["key"] for images in pq.read_table(path)["images"].to_pylist() for image in images}


def _dial(number, *turns, row_id="7"):
    conversation = [{"from": ("human", "gpt")[i % 2], "value": turn} for i, turn in enumerate(turns)]
    return {"id": row_id, "image": f"{number:012d}.jpg", "conversations": conversation}


def _convert(tmp_path, rows):
    data = data_path(tmp_path / "data", {DIAL: rows})
    (data / "coco/train2017/000000000111.jpg").write_bytes(b"words")
    whole = (data / "coco/train2017/000000000785.jpg").read_bytes()
    (data / "coco/train2017/000000000222.jpg").write_bytes(whole[:-100])
    media = build_media(data, tmp_path)
    raw = fetch_for("llava_dial", data, tmp_path / "raw")
    report = convert("llava_dial", dict(raw.folders), media, tmp_path / "records")
    return report, pq.read_table(tmp_path / "records/llava_dial.parquet").to_pylist()


def test_every_fault_of_a_row_is_counted_with_its_reason(tmp_path):
    rows = [_dial(number, "Q?", "A.") for number in (785, 111, 222, 333)]
    rows += [_dial(785, "", "A."), _dial(785, "Q?", "<|image:0|>"), {"id": "\ud800", "image": "x"}]
    rows += [_dial(785, "Q?", "A.", "More?")]
    report, records = _convert(tmp_path, rows)
    counts = {reason: entry["count"] for reason, entry in report["dropped"].items()}
    assert counts == {"unreadable_image": 2, "missing_image": 1, "empty_text": 1, "reserved_text": 1, "bad_row": 1}
    examples = report["dropped"]["unreadable_image"]["examples"]
    assert "not_an_image" in examples[0] and "truncated" in examples[1] and f"{DIAL} row 1" in examples[0]
    assert report["notes"]["unanswered_question"]["count"] == 1
    assert (report["rows"], report["kept"], len(records)) == (8, 2, 2)


def test_examples_are_few_and_counts_are_not(tmp_path):
    report, _ = _convert(tmp_path, [_dial(785, "Q?", "A.")] + [_dial(9, "Q?", "A.")] * 50)
    missing = report["dropped"]["missing_image"]
    assert missing["count"] == 50 and len(missing["examples"]) == 20


def test_ids_that_occur_again_are_numbered(tmp_path):
    rows = [_dial(785, "Q?", "A.", row_id=row_id) for row_id in ("7", "7", "7#1", "7", "8")]
    _, records = _convert(tmp_path, rows)
    uids = [row["uid"].removeprefix("llava_dial:") for row in records]
    assert uids == ["7", "7#1", "7#1#1", "7#2", "8"]


def test_nothing_usable_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(UserError, match="none of its 1 rows"):
        _convert(tmp_path, [_dial(111, "Q?", "A.")])
    assert not (tmp_path / "records").exists()


GOOD = Record(
    "1", (ImageRef("coco", "a"),), (Round(("Q?",), ("A.", "B."), (0,), -1, 0),), (ChoiceGroup("a", "pick", 2),)
)
TWO = Record("1", (), (Round(("Q?",), ("A.",)), Round(("R?",), ("B.",))), (ChoiceGroup("order", "permute", 2),))


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (replace(GOOD, rounds=()), "no rounds"),
        (replace(GOOD, split="dev"), "split"),
        (replace(GOOD, images=()), "show its images"),
        (replace(GOOD, rounds=(GOOD.rounds[0]._replace(images=(0, 0)),)), "show its images"),
        (replace(GOOD, rounds=(GOOD.rounds[0]._replace(question=()),)), "bad text"),
        (replace(GOOD, rounds=(GOOD.rounds[0]._replace(question=(" Q?",)),)), "bad text"),
        (replace(GOOD, rounds=(GOOD.rounds[0]._replace(question=("<image>",)),)), "bad text"),
        (replace(GOOD, rounds=(GOOD.rounds[0]._replace(answer_group=-1),)), "group exactly where"),
        (replace(GOOD, groups=()), "that it lacks"),
        (replace(GOOD, groups=(ChoiceGroup("a", "pick", 3),)), "another size"),
        (replace(TWO, groups=(ChoiceGroup("order", "permute", 3),)), "bad order"),
        (replace(TWO, groups=TWO.groups * 2), "two orders"),
    ],
)
def test_a_wrong_adapter_is_found_out(bad, problem):
    check(GOOD)
    check(TWO)
    with pytest.raises(ValueError, match=problem):
        check(bad)


def test_the_program_says_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "scripts.convert", "--out", str(tmp_path), "--dataset"]
    for dataset, word in (("llava_otter_blend", "join"), ("lava", "no dataset"), ("llava", "is not there")):
        done = subprocess.run([*command, dataset], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and word in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_real_photographs_of_a_user(tmp_path):
    samples = os.environ.get("VISUALCHAT_SAMPLES")
    if not samples or not Path(samples).is_dir():
        pytest.skip("VISUALCHAT_SAMPLES names no folder of sample data in the original's layout")
    datasets = [name for name in DATASETS if REGISTERED[name].image_sources == ("coco",)]
    records = build_records(Path(samples), tmp_path, datasets)
    for dataset in datasets:
        report = read_json(records / f"{dataset}.report.json")
        assert report["kept"] == report["rows"] > 0 and report["dropped"] == {}
    cgd = pq.read_table(records / "otter_mimicit_cgd.parquet").to_pylist()
    assert sorted(len(row["rounds"]) for row in cgd) == [1, 1, 2]
    index = pq.read_table(tmp_path / "media/coco/index.parquet").to_pylist()
    assert len(index) == 4 and max(row["width"] for row in index) == 640
