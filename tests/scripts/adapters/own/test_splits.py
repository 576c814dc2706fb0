"""What is kept for evaluation of own data: by column, by file, by a share of the rows."""

from collections import Counter
from dataclasses import replace

import pytest

from scripts.adapters.own.row_files import find_row_files
from scripts.adapters.own.splits import KEPT, TRAIN, UNKNOWN_SPLIT, OwnSplits, content_share, keep_rows, splits_by_name
from scripts.common.errors import UserError
from scripts.common.records import HELD_OUT, ImageRef, Record, Round
from scripts.config.custom import SplitConfig
from scripts.config.holdout import KeptRowsConfig
from tests.scripts.adapters.test_custom import chat, convert


def talk(number, images=(), **changes):
    shown = tuple(range(len(images)))
    rounds = (Round((f"Question {number}?",), (f"Answer {number}.",), shown),)
    return replace(Record(f"row-{number}", tuple(ImageRef("mine", key) for key in images), rounds), **changes)


def judged(settings, *values):
    splits = OwnSplits("mine", settings)
    found = [splits.split_of("chats.json", value, f"row {number}") for number, value in enumerate(values)]
    return [split for split, _ in found], Counter(note.reason for _, notes in found for note in notes), splits


@pytest.mark.parametrize("value", ["val", "VAL", " Validation", "dev", "Test", "eval", "heldout"])
def test_usual_names_of_a_column_are_kept(value):
    splits, notes, state = judged(SplitConfig(column="part"), value, "train", "")
    assert splits == [HELD_OUT, TRAIN, TRAIN] and notes == {KEPT: 1}
    state.check()


def test_other_values_are_trained_on_and_counted():
    splits, notes, _ = judged(SplitConfig(column="part"), "minival", "Train")
    assert splits == [TRAIN, TRAIN] and notes == {UNKNOWN_SPLIT: 1}
    assert judged(SplitConfig(column="part", values=("MiniVal",)), "minival", "val")[0] == [HELD_OUT, TRAIN]


@pytest.mark.parametrize("settings", [None, SplitConfig(rows=0.1)])
def test_the_split_of_a_datasets_folder_counts_without_being_asked_for(settings):
    splits, notes, state = judged(settings, "train", "validation", "test", "")
    assert splits == [TRAIN, HELD_OUT, HELD_OUT, TRAIN] and notes == {KEPT: 2}
    state.check()


def test_no_values_train_on_all():
    splits, _, state = judged(SplitConfig(column="__split__", values=()), "validation")
    assert splits == [TRAIN]
    state.check()


def test_files():
    splits = OwnSplits("mine", SplitConfig(files=("val.jsonl", "test-*.jsonl")))
    assert [splits.split_of(file, "", "row")[0] for file in ("train.jsonl", "val.jsonl")] == [TRAIN, HELD_OUT]
    with pytest.raises(UserError, match=r"custom.mine.split.files: no row was read from test-\*.jsonl"):
        splits.check()
    assert splits.split_of("test-1.jsonl", "", "row")[0] == HELD_OUT
    splits.check()


def test_a_column_that_is_nowhere_or_keeps_nothing_is_refused():
    with pytest.raises(UserError, match=r"custom.mine.split.column: no row has a value in 'prat'"):
        judged(SplitConfig(column="prat"), "", "")[2].check()
    with pytest.raises(UserError, match=r"'part' holds 'train' \(2\), 'minival' \(1\)"):
        judged(SplitConfig(column="part"), "train", "train", "minival")[2].check()


def test_a_share_is_of_content_and_not_of_ids_or_places():
    records = [talk(number) for number in range(2000)]
    shares = [content_share(record, 0) for record in records]
    assert sum(share < 0.1 for share in shares) == pytest.approx(200, abs=40)
    assert [content_share(replace(record, id="other"), 0) for record in records] == shares
    assert content_share(talk(1, ["a"]), 0) == content_share(
        replace(talk(1, ["a"]), images=(ImageRef("renamed", "a"),)), 0
    )
    changed = [talk(1, ["a"]), talk(1, ["b"]), talk(1, system="Be brief."), talk(2)]
    assert len({content_share(record, 0) for record in [talk(1), *changed]}) == 5
    assert content_share(talk(1), 1) != content_share(talk(1), 0)


def test_rows_are_kept_by_share():
    records = [talk(number) for number in range(200)] + [talk(number, id="again") for number in range(200)]
    noted = Counter()
    kept = list(keep_rows(records, KeptRowsConfig(share=0.3), lambda reason, example: noted.update([reason])))
    splits = [record.split for record in kept]
    assert splits[:200] == splits[200:] and 30 < splits[:200].count(HELD_OUT) < 90
    assert noted == {KEPT: splits.count(HELD_OUT)}
    with_images = [talk(number, ["a"]) for number in range(50)]
    settings = KeptRowsConfig(share=0.9, text_only=True)
    assert {record.split for record in keep_rows(with_images, settings, lambda *_: None)} == {TRAIN}


def test_the_adapter_reads_column_and_files(tmp_path):
    rows = [chat("Hello", "Hi.", part="train"), chat("Bye", "Bye.", part="Val"), chat("So", "So.")]
    records, _, notes = convert(tmp_path / "column", rows, split={"column": "part"})
    assert [record.split for record in records] == [TRAIN, HELD_OUT, TRAIN] and notes == {KEPT: 1}
    (tmp_path / "files/mine").mkdir(parents=True)
    (tmp_path / "files/mine/val.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}\n'
    )
    plain = [{"messages": row["messages"]} for row in rows]
    records, _, notes = convert(tmp_path / "files", plain, split={"files": ["val.jsonl"]})
    assert [record.split for record in records] == [TRAIN, TRAIN, TRAIN, HELD_OUT] and notes == {KEPT: 1}


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("val.jsonl", "val"),
        ("Test.json.gz", "test"),
        ("test-00000-of-00002.parquet", "test"),
        ("data/validation/part-1.parquet", "validation"),
        ("dev_2.csv", "dev"),
        ("train.jsonl", ""),
        ("testimonials.jsonl", ""),
        ("my_test.jsonl", ""),
        ("test_answers.jsonl", ""),
        ("latest/rows.jsonl", ""),
    ],
)
def test_files_of_a_folder_have_the_split_of_their_name(path, split):
    assert splits_by_name(["rows.jsonl", path]) == {"rows.jsonl": "", path: split}


def test_a_folder_with_nothing_else_is_trained_on():
    assert splits_by_name(["test.jsonl"]) == {"test.jsonl": ""}


def test_files_of_a_folder_are_listed_with_their_splits(tmp_path):
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text('{"question": "Q", "answer": "A"}\n')
    assert find_row_files(tmp_path, ["./"]).splits == {"train.jsonl": "", "val.jsonl": "val"}
    assert find_row_files(tmp_path, ["train.jsonl", "val.jsonl"]).splits == {"train.jsonl": "", "val.jsonl": ""}
