"""Which files hold the rows of a custom dataset: named, by pattern, all of a folder, or saved by `datasets`."""

import gzip
import json
import os
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts.adapters.own.row_files import find_row_files
from scripts.adapters.raw import RawFiles
from scripts.common.errors import UserError
from scripts.config.custom import CustomDatasetConfig
from scripts.config.registry import custom_dataset, custom_source, path_matches
from scripts.fetch import fetch

LINES = '{"question": "q", "answer": "a"}\n' * 2


def make(folder, *names, text=LINES):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def found(folder, *names, **options):
    return list(find_row_files(folder, names or ("./",), **options).splits)


@pytest.mark.parametrize(
    ("pattern", "matching"),
    [
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("b*", ["b.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "d/a.jsonl", "d/e/c.jsonl"]),
        ("d/**", ["d/a.jsonl", "d/e/c.jsonl"]),
        ("*/a.jsonl", ["d/a.jsonl"]),
        ("d/**/c.jsonl", ["d/e/c.jsonl"]),
        ("./d/a.jsonl", ["d/a.jsonl"]),
        ("d", ["d/a.jsonl", "d/e/c.jsonl"]),
        ("d/", ["d/a.jsonl", "d/e/c.jsonl"]),
        ("[x]?.jsonl", ["[x]?.jsonl"]),
    ],
)
def test_paths_patterns_and_folders(tmp_path, pattern, matching):
    make(tmp_path, "b.jsonl", "a.jsonl", "d/a.jsonl", "d/e/c.jsonl", ".hidden.jsonl")
    if pattern.startswith("["):
        make(tmp_path, pattern)
    assert found(tmp_path, pattern) == matching


def test_a_file_counts_once_and_files_come_in_the_order_of_the_names(tmp_path):
    make(tmp_path, "a.jsonl", "b.jsonl", "c.csv")
    assert found(tmp_path, "c.csv", "b*", "*.jsonl") == ["c.csv", "b.jsonl", "a.jsonl"]


def test_question_marks_and_brackets_in_patterns_stand_for_themselves():
    assert path_matches("a?.jsonl", "a?*") and not path_matches("ab.jsonl", "a?*")
    assert path_matches("[a]/x", "[a]/*") and not path_matches("a/x", "[a]/*")
    assert path_matches("a/b/c", "**") and path_matches("c", "**/c") and not path_matches("a/c", "*")


def test_names_that_stand_for_nothing_list_what_is_there(tmp_path):
    make(tmp_path, "rows.jsonl")
    with pytest.raises(UserError, match=r"row\.jsonl is not there .*; files of rows that are there: rows\.jsonl"):
        found(tmp_path, "row.jsonl")
    with pytest.raises(UserError, match=r"no file in .* matches 'x-\*'; files of rows that are there: rows\.jsonl"):
        found(tmp_path, "x-*")


def test_without_names_all_files_of_rows_are_taken_and_others_left_out(tmp_path):
    make(tmp_path, "b.csv", "a.jsonl.gz", "d/c.parquet", "d/x.tsv", ".git/x.jsonl", "README.md", "node_modules/x.json")
    make(tmp_path, "package.json", "results/records/x.parquet", "results/configuration.json")
    make(tmp_path, "settings.json", text='{"lr": [1, 2], "names": ["a"]}')
    make(tmp_path, "numbers.json", text="[1, 2]")
    make(tmp_path, "list.json", text='[{"question": "q"}]')
    make(tmp_path, "inner.json", text='{"n": 1,\n "rows": [{"question": "q"}]}')
    make(tmp_path, "turns.json", text='{"messages": [{"role": "user"}]}')
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("a.jpg", "x")
        archive.writestr("config.json", "{}")
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("d/rows.json", '[{"question": "q"}]')
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(tmp_path / "README.md", "a.jpg")
    with tarfile.open(tmp_path / "samples.tar", "w") as archive:
        archive.add(tmp_path / "README.md", "a.txt")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "gone.json").symlink_to("nowhere")
    files = find_row_files(tmp_path, ["./"])
    taken = ["a.jsonl.gz", "b.csv", "d/c.parquet", "d/x.tsv", "inner.json", "list.json", "rows.zip", "samples.tar"]
    assert list(files.splits) == [*taken, "turns.json"]
    left_out = {"gone.json", "images.zip", "numbers.json", "photos.tar", "pipe.jsonl", "settings.json"}
    assert set(files.left_out) == left_out
    assert "rows.zip" not in found(tmp_path, "./", not_rows=("rows.zip",))
    (tmp_path / "alone").mkdir()
    (tmp_path / "rows.zip").rename(tmp_path / "alone/rows.zip")
    with pytest.raises(UserError, match=r"rows.zip is one of `images`: if it holds rows, too, add it to `files`"):
        found(tmp_path / "alone", "./", not_rows=("rows.zip",))


def test_the_same_rows_in_two_forms_are_refused(tmp_path):
    make(tmp_path, "d/train.jsonl", "d/train.csv.gz", "d/train-2.jsonl", "train.jsonl")
    with pytest.raises(
        UserError, match=r"more than once: d/train\.csv\.gz, d/train\.jsonl\. Name the files .* `files:`"
    ):
        found(tmp_path)
    assert found(tmp_path, "d/train.jsonl") == ["d/train.jsonl"]


def test_a_folder_without_files_of_rows_says_what_was_left_out(tmp_path):
    make(tmp_path, "settings.json", text="{}")
    with pytest.raises(UserError, match=r"has no files of rows; known are .*settings\.json is JSON that is not one"):
        found(tmp_path)


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    make(tmp_path, "rows\udcff.jsonl")
    with pytest.raises(UserError, match=r"'rows\\udcff\.jsonl' is not valid UTF-8: rename the file"):
        found(tmp_path)


def saved(folder, split, rows, files=1):
    """Write a dataset as `datasets` saves one: Arrow streams, their list, and a description."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    for number, name in enumerate(names):
        table = pa.Table.from_pylist(rows[number::files])
        with pa.ipc.new_stream(folder / name, table.schema) as file:
            file.write_table(table)
    state = {"_data_files": [{"filename": name} for name in reversed(names)], "_split": split, "_fingerprint": "1"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}, "splits": {}, "citation": ""}))


ROWS = [{"question": f"q{number}", "answer": "a"} for number in range(4)]


def rows_of(tmp_path, folder, **settings):
    config = CustomDatasetConfig(folder=str(folder), **settings)
    manifest = fetch(custom_source("own", config), folder, tmp_path / "raw", dataset=custom_dataset("own", config))
    raw = RawFiles({"own": tmp_path / "raw"})
    return [row for path in manifest["dataset"]["files"] for row in raw.rows(path)]


@pytest.mark.parametrize("settings", [{}, {"files": ["mine"]}])
def test_a_saved_dataset_has_the_files_and_the_order_of_its_state(tmp_path, settings):
    folder = tmp_path / "data"
    saved(folder / "mine" if settings else folder, "train", ROWS, files=2)
    rows = rows_of(tmp_path, folder, **settings)
    assert [row.value["question"] for row in rows] == ["q1", "q3", "q0", "q2"]
    assert {row.value["__split__"] for row in rows} == {"train"}


def test_the_splits_of_a_saved_dataset_are_in_its_rows(tmp_path):
    folder = tmp_path / "data"
    for split, rows in (("train", ROWS[:3]), ("test", ROWS[3:])):
        saved(folder / split, split, rows)
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    rows = rows_of(tmp_path, folder)
    assert [row.value["__split__"] for row in rows] == ["train", "train", "train", "test"]
    assert rows[-1].file == "test/data-00000-of-00001.arrow" and rows[-1].id == "0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_data_files": [{"filename": "lost.arrow"}]}, r"lists d/lost\.arrow, which is not there"),
        ({"_indices_data_files": [{"filename": "i.arrow"}]}, "selects rows by an index"),
        ({"_data_files": None}, "lists no files of data"),
        ({"_data_files": [{"filename": "../other.arrow"}]}, r"state\.json lists '\.\./other\.arrow', which is no path"),
        ({"_data_files": [{"filename": "/etc/hosts"}]}, "lists '/etc/hosts', which is no path below its folder"),
        ({"_data_files": ["data.arrow"]}, "lists None, which is no path"),
    ],
)
def test_a_saved_dataset_that_is_not_whole_is_refused(tmp_path, change, message):
    saved(tmp_path / "d", "train", ROWS)
    state = json.loads((tmp_path / "d/state.json").read_text())
    (tmp_path / "d/state.json").write_text(json.dumps(state | change))
    with pytest.raises(UserError, match=message):
        found(tmp_path, "d")


@pytest.mark.parametrize("index", ['{"splits": ["../train"]}', '{"splits": [1]}', '["train"]', '{"splits": {}}'])
def test_splits_of_a_saved_dataset_are_folders_in_it(tmp_path, index):
    saved(tmp_path / "train", "train", ROWS)
    (tmp_path / "d").mkdir()
    (tmp_path / "d/dataset_dict.json").write_text(index)
    with pytest.raises(UserError, match=r"dataset_dict\.json (lists|names no splits)"):
        found(tmp_path, "d")


def test_rows_of_several_files_are_read_with_their_names_and_checked(tmp_path):
    folder = tmp_path / "data"
    make(folder, "a.jsonl", "b.json", "settings.json")
    (folder / "settings.json").write_text("{}")
    assert [(row.file, row.id) for row in rows_of(tmp_path, folder)] == [
        ("a.jsonl", "0"),
        ("a.jsonl", "1"),
        ("b.json", "0"),
        ("b.json", "1"),
    ]
    raw = RawFiles({"own": tmp_path / "raw"})
    assert [note.example for note in raw.listed_notes()] == ["settings.json is JSON that is not one list of rows"]
    list(raw.rows("a.jsonl"))
    assert raw.rows_read == 2
    make(folder, "a.jsonl", text=LINES.replace("q", "p"))
    with pytest.raises(UserError, match="has changed since it was fetched"):
        list(raw.rows("a.jsonl"))


@pytest.mark.parametrize("names", [("./",), ("*",)])
def test_files_without_rows_among_others_are_left_out(tmp_path, names):
    (tmp_path / "a.jsonl").write_text('{"question": "Why?", "answer": "So."}\n')
    (tmp_path / "b.jsonl").write_text("")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b" \n\n"))
    (tmp_path / "d.csv").write_text("question,answer\n")
    table = pa.table({"question": pa.array([], pa.string())})
    pq.write_table(table, tmp_path / "e.parquet")
    with pa.OSFile(str(tmp_path / "f.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    found = find_row_files(tmp_path, names)
    assert found.splits == {"a.jsonl": ""}
    empty = ("b.jsonl", "c.jsonl.gz", "d.csv", "e.parquet", "f.arrow")
    assert found.left_out == dict.fromkeys(empty, "has no rows")


def test_only_files_without_rows_are_an_error(tmp_path):
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(UserError, match=r"no files of rows.*b\.jsonl has no rows"):
        find_row_files(tmp_path, ("*.jsonl",))


def test_a_damaged_file_is_not_taken_for_one_without_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "Why?", "answer": "So."}\n')
    (tmp_path / "b.parquet").write_bytes(b"PAR1 cut")
    assert list(find_row_files(tmp_path, ("./",)).splits) == ["a.jsonl", "b.parquet"]
