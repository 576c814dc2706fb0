"""Rows of own data from every kind of file, as their usual writers write them, and from damaged ones."""

import bz2
import csv
import gzip
import json
import lzma
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

from scripts.adapters.own import json_rows, table_rows
from scripts.adapters.own.row_readers import kind_of, read_rows
from scripts.adapters.raw import Broken, HugeNumber
from scripts.common.errors import UserError
from scripts.common.files import bytes_sha256, file_sha256

ROOT = Path(__file__).resolve().parents[4]
ROWS = [{"q": "Größe?", "n": [1, 2.5, None]}, {"q": "\u2028", "n": []}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def values(tmp_path, name, data, notes=None):
    """The values of the rows of a file with the bytes or text `data`."""
    path = tmp_path / name
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return [row.value for row in read_rows(path, name, [] if notes is None else notes, file_sha256(path))]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize(
    "data",
    [
        LINES,
        LINES.replace("\n", "\r\n"),
        "\n" + LINES + "\n \n",
        "\ufeff" + LINES,
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2, ensure_ascii=False),
        " \n" + json.dumps(ROWS),
        json.dumps({"version": 1, "rows": ROWS, "classes": ["a", "b"], "empty": []}, indent=1),
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
    ],
)
def test_the_form_of_json_shows_in_its_content(tmp_path, name, data):
    assert values(tmp_path, name, data) == ROWS


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_encodings_with_a_byte_order_mark(tmp_path, name, encoding):
    assert values(tmp_path, name, LINES.encode(encoding)) == ROWS


@pytest.mark.parametrize(
    ("ending", "compress"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
    ],
)
def test_compressed_texts_and_cut_ones(tmp_path, ending, compress):
    long = LINES.encode() + json.dumps({"q": os.urandom(3000).hex()}).encode()
    assert values(tmp_path, f"rows.jsonl{ending}", compress(LINES.encode())) == ROWS
    assert values(tmp_path, f"rows.csv{ending}", compress(b"q,a\n1,2\n")) == [{"q": "1", "a": "2"}]
    # The content counts, not the name.
    assert values(tmp_path, "rows.jsonl", compress(LINES.encode())) == ROWS
    with pytest.raises(UserError, match=rf"rows\.json{ending} is damaged or cut off"):
        values(tmp_path, f"rows.json{ending}", compress(long)[:-40])


def test_a_lone_object_is_a_row_of_lines_and_holds_the_rows_of_other_json(tmp_path):
    value = {"about": "pets", "rows": [{"a": 1}]}
    assert values(tmp_path, "rows.jsonl", json.dumps(value)) == [value]
    assert values(tmp_path, "rows.json", json.dumps(value)) == [{"a": 1}]
    conversation = {"messages": [{"role": "user", "content": "Hello"}]}
    assert values(tmp_path, "rows.json", json.dumps(conversation, indent=1)) == [conversation]


def test_a_damaged_line_costs_its_row_alone(tmp_path):
    data = b'{"a": \n{"a": "\xff"}\n{"a": 1, "a": 2}\n{"a": ' + b"9" * 5000 + b"}\n" + b"[" * 100_000 + b"\n5"
    notes = []
    broken, invalid, repeated, huge, nested, number = values(tmp_path, "rows.jsonl", data, notes)
    assert isinstance(broken, Broken) and broken.reason == "invalid_json"
    assert invalid == {"a": "\udcff"} and repeated == {"a": 2} and number == 5
    assert isinstance(huge["a"], HugeNumber)
    assert isinstance(nested, Broken) and nested.reason == "invalid_json"
    assert [note.example for note in notes] == ["rows.jsonl line 3: 'a' occurs twice in one object"]


def test_ids_are_numbers_of_lines_or_elements_and_files_are_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('\n{"a": 1}\n\n{"a": 2}\n')
    (tmp_path / "rows.json").write_text('[{"a": 1}, {"a": 2}]')
    assert [(row.id, row.file) for row in read_rows(tmp_path / "rows.jsonl", "x/rows.jsonl", [])] == [
        ("1", "x/rows.jsonl"),
        ("3", "x/rows.jsonl"),
    ]
    assert [row.id for row in read_rows(tmp_path / "rows.json", "rows.json", [])] == ["0", "1"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.json", "", "has no rows: it is empty"),
        ("rows.jsonl", " \n", "has no rows: it is empty"),
        ("rows.json", "[]", "has no rows: the top level is empty"),
        ("rows.json", '[{"a": 1},\n {"a":]', r"is not valid JSON: Expecting value \(line 2\)"),
        ("rows.json", '[{"a": 1},\n {"a": "x', r"is not valid JSON: Unterminated string starting at \(line 2\)"),
        ("rows.json", '[{"a": 1}', r"there should be ',' or '\]', not ''"),
        ("rows.json", '[{"a": 1}] x', "has more after its first value"),
        ("rows.json", "[" * 100_000, "nested too deeply"),
        ("rows.json", '{"lr": 0.1, "name": "x"}', "an object with the members lr, name"),
        ("rows.json", '{"a": [{"b": 1}],\n "c": [{"d": 1}]}', r"more than one list of objects \('a', 'c'\)"),
        ("rows.csv", "", "has no rows"),
        ("rows.csv", "q,a\n", "has no rows"),
        ("rows.csv", "q,q\n1,2\n", "two columns with the name 'q'"),
        ("rows.csv", 'q,a\n1,2\n3,"4\n5,6\n', "a quote that is opened in the row at line 3 is never closed"),
        ("rows.parquet", "PAR1 and more", "is damaged or cut off"),
        ("rows.arrow", "nothing of Arrow", "is damaged or cut off"),
        ("rows.feather", "FEA1 and more", "first version of Feather"),
        ("rows.txt", "a", r"is of no kind that holds rows; known are \.json, \.jsonl"),
    ],
)
def test_files_without_rows_are_named_with_the_reason(tmp_path, name, data, message):
    with pytest.raises(UserError, match=rf"{name}.*{message}"):
        values(tmp_path, name, data)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.arrow", "rows.zip"])
def test_a_file_that_has_changed_is_refused_at_the_latest_after_its_last_row(tmp_path, name):
    path = tmp_path / name
    table = pa.Table.from_pylist(ROWS)
    if name == "rows.parquet":
        pq.write_table(table, path)
    elif name == "rows.arrow":
        pa.feather.write_feather(table, path)
    elif name == "rows.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("rows.jsonl", LINES)
    else:
        path.write_text("q,a\n1,2\n" if name == "rows.csv" else json.dumps(ROWS))
    assert list(read_rows(path, name, [], file_sha256(path)))
    with pytest.raises(UserError, match="has changed since it was fetched"):
        list(read_rows(path, name, [], bytes_sha256(b"other")))
    path.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        list(read_rows(path, name, []))


def test_rows_are_given_while_the_file_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "_WINDOW", 64)
    for name, start, between in (("rows.json", '[{"a": 0}', ", "), ("rows.jsonl", '{"a": 0}', "\n")):
        (tmp_path / name).write_text(start + between + f'{{"a": 1}}{between}' * 300_000 + "{")
        rows = read_rows(tmp_path / name, name, [], "0" * 64)
        assert next(rows).value == {"a": 0}
        rows.close()


@pytest.mark.parametrize("window", [1, 2, 3, 5, 7, 64])
def test_the_size_of_the_window_changes_nothing(tmp_path, monkeypatch, window):
    monkeypatch.setattr(json_rows, "_WINDOW", window)
    rows = [*ROWS, {"x": [True, False, None, -1.5e-300, 10**30], "é": '\\"\U0001f600'}, 12345, "text", [], {}]
    assert values(tmp_path, "rows.json", json.dumps(rows, indent=1, ensure_ascii=False)) == rows
    assert values(tmp_path, "rows.json", json.dumps({"n": 123, "rows": rows})) == rows


def test_a_row_has_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_ROW", 100)
    monkeypatch.setattr(json_rows, "_WINDOW", 50)
    long, short = {"a": "x" * 200}, {"a": 1}
    lines = "\n".join(map(json.dumps, [short, long, short]))
    first, large, last = values(tmp_path, "rows.jsonl", lines)
    assert first == last == short and large.reason == "too_large"
    with pytest.raises(UserError, match="more than 100 characters"):
        values(tmp_path, "rows.json", json.dumps([short, long]))


@pytest.mark.parametrize("text", ["x" * 150, "q,a\n1," + "x" * 150], ids=["the first line", "a later line"])
def test_a_line_of_a_table_has_a_largest_size(tmp_path, monkeypatch, text):
    monkeypatch.setattr(table_rows, "MAX_ROW", 100)
    with pytest.raises(UserError, match="has a line of more than 0 MiB"):
        values(tmp_path, "rows.csv.gz", gzip.compress(text.encode()))


def test_text_tables(tmp_path):
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["", "question", "answer", "images", "messages"])
        writer.writerow([0, 'He said: "a, b"\nand went', "", '["a.jpg"]', [{"role": "user", "content": "x"}]])
        writer.writerow([1, "[1, 2]", "[not a list", "[not a list", "{"])
    assert values(tmp_path, "rows.csv", path.read_bytes()) == [
        {
            "question": 'He said: "a, b"\nand went',
            "answer": None,
            "images": ["a.jpg"],
            "messages": [{"role": "user", "content": "x"}],
        },
        {"question": "[1, 2]", "answer": "[not a list", "images": "[not a list", "messages": "{"},
    ]


@pytest.mark.parametrize(("name", "delimiter"), [("a.tsv", "\t"), *[("a.csv", each) for each in ",;\t|"]])
def test_the_delimiter_of_a_text_table(tmp_path, name, delimiter):
    data = f'q{delimiter}"a, b"\n1{delimiter}2\n'
    assert values(tmp_path, name, data) == [{"q": "1", "a, b": "2"}]


def test_a_row_of_a_text_table_with_other_cells_than_columns_is_lost(tmp_path):
    data = b'q,a\n1,2,3\n\n4\n"5"x,6\n\xff,8\n9,10'
    wide, narrow, quoted, invalid, last = values(tmp_path, "rows.csv", data)
    assert [row.reason for row in (wide, narrow, quoted)] == ["invalid_csv"] * 3
    assert wide.detail == "3 cells, where the first line names 2 columns"
    assert invalid == {"q": "\udcff", "a": "8"} and last == {"q": "9", "a": "10"}


@pytest.mark.parametrize("batch_bytes", [1, 8 << 20])
def test_tables_with_nested_columns_and_nulls(tmp_path, monkeypatch, batch_bytes):
    monkeypatch.setattr(table_rows, "_BATCH_BYTES", batch_bytes)
    rows = [
        {"messages": [{"role": "user", "content": "x"}], "images": [{"bytes": b"\x89", "path": None}], "none": None},
        {"messages": None, "images": [], "none": None},
        {"messages": [], "images": None, "none": None},
    ]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    with pa.ipc.new_file(tmp_path / "t.arrow", table.schema) as file:
        file.write_table(table)
    with pa.ipc.new_stream(tmp_path / "s.arrow", table.schema) as file:
        file.write_table(table, 2)
    pa.feather.write_feather(table, tmp_path / "t.feather")
    for name in ("t.parquet", "t.arrow", "s.arrow", "t.feather"):
        assert [(row.id, row.value) for row in read_rows(tmp_path / name, name, [])] == list(
            zip("012", rows, strict=True)
        )


def test_a_text_of_a_table_that_is_not_utf8_costs_its_row(tmp_path):
    texts = pa.array([b"good", b"\xff", b"fine"]).cast(pa.binary())
    column = pa.StringArray.from_buffers(3, texts.buffers()[1], texts.buffers()[2])
    pq.write_table(pa.table({"q": column}), tmp_path / "t.parquet")
    first, bad, last = (row.value for row in read_rows(tmp_path / "t.parquet", "t.parquet", []))
    assert first == {"q": "good"} and last == {"q": "fine"} and bad.reason == "invalid_utf8"


def test_two_columns_with_one_name_and_an_empty_table_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["q", "q"])
    pa.feather.write_feather(pa.table({"q": pa.array([], pa.string())}), tmp_path / "none.feather")
    with pa.ipc.new_file(tmp_path / "two.arrow", table.schema) as file:
        file.write_table(table)
    with pytest.raises(UserError, match=r"two\.arrow has two columns with the name 'q'"):
        list(read_rows(tmp_path / "two.arrow", "two.arrow", []))
    with pytest.raises(UserError, match=r"none\.feather has no rows: the table is empty"):
        list(read_rows(tmp_path / "none.feather", "none.feather", []))


def test_kinds_of_names():
    kinds = {"a.JSON": ".json", "a.jsonl.gz": ".jsonl", "a.tar.zst": ".tar", "a.tgz": ".tar", "b/a.csv.xz": ".csv"}
    assert {name: kind_of(name) for name in kinds} == kinds
    assert [kind_of(name) for name in ("a.parquet.gz", "a.txt", "json", "a.gz", "a.jpg")] == [""] * 5


_PEAK = """
import resource, sys
from pathlib import Path
from scripts.adapters.own.row_readers import read_rows
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
count = sum(1 for _ in read_rows(Path(sys.argv[1]), sys.argv[1], []))
print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.csv", "rows.parquet", "rows.arrow"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    text, count = "x" * 2000, 60_000
    path = tmp_path / name
    if name.endswith((".parquet", ".arrow")):
        table = pa.table({"q": [f"{number} {text}" for number in range(count)]})
        if name == "rows.parquet":
            pq.write_table(table, path, use_dictionary=False, compression="none")
        else:
            with pa.ipc.new_file(path, table.schema) as file:
                file.write_table(table, 1000)
    else:
        one = f'{{"q": "{text}"}}'
        frames = {"rows.json": ("[", ",", "]"), "rows.jsonl": ("", "\n", ""), "rows.csv": ("q\n", "\n", "")}
        start, between, end = frames[name]
        path.write_text(start + between.join([one if name != "rows.csv" else text] * count) + end)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _PEAK, str(path)]
    rows, grown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert int(rows) == count and path.stat().st_size > 110_000_000
    assert int(grown) < 60


@pytest.mark.parametrize("line", ["sep=;\n", "SEP=;\r\n", '"sep=;"\n', "\nsep=;\n"])
def test_the_line_with_which_excel_says_the_delimiter_is_no_row(tmp_path, line):
    text = f"{line}a,b;c\n1,5;2\n"
    assert values(tmp_path, "rows.csv", text) == [{"a,b": "1,5", "c": "2"}]


def test_a_column_that_is_called_sep_is_a_column(tmp_path):
    assert values(tmp_path, "rows.csv", "sep,a\n1,2\n") == [{"sep": "1", "a": "2"}]
