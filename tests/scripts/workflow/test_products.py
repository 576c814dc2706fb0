"""Records of finished jobs, and what is found by them before Snakemake plans."""

import os
import subprocess
import sys

import pytest

from scripts.common.files import owner_of_temporary, temporary_prefix
from scripts.workflow import preflight
from scripts.workflow.products import FILE, Products


@pytest.fixture
def root(tmp_path):
    """Two finished jobs: `a` makes a table of a source, `b` a page of the table."""
    for name, content in {"raw.txt": "1", "a/table": "22", "a/table.idx": "3", "b/page": "444"}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    products = Products(tmp_path)
    products.record("a", [tmp_path / "a/table", tmp_path / "a/table.idx"], [tmp_path / "raw.txt"])
    products.record("b", [tmp_path / "b/page"], [tmp_path / "a/table"])
    set_times(tmp_path, {"raw.txt": 1, "a/table": 2, "a/table.idx": 2, "b/page": 3})
    return tmp_path


def set_times(root, times):
    for name, seconds in times.items():
        os.utime(root / name, (seconds, seconds))


def damaged(root):
    return preflight.damaged_steps(Products(root))


def test_nothing_is_wrong_with_an_untouched_folder(root):
    assert damaged(root) == {} and preflight.describe({}) == ""
    assert preflight.set_times(Products(root)) == 0


def test_a_missing_and_a_shortened_file_name_their_step(root):
    (root / "a/table.idx").unlink()
    (root / "b/page").write_text("44")
    found = damaged(root)
    assert found == {
        f"{root}/a/table": f"{root}/a/table.idx is missing",
        f"{root}/b/page": f"{root}/b/page has 2 bytes instead of 3",
    }
    text = preflight.describe(found)
    assert text.startswith("Files of 2 finished steps are missing or damaged.") and "table.idx is missing" in text


def test_files_of_the_same_content_get_times_in_the_order_of_the_steps(root):
    (root / "time.tsv").write_text("1 s")
    products = Products(root)
    products.record("b", [root / "b/page"], [root / "a/table"], root / "time.tsv")
    set_times(root, {"raw.txt": 9, "a/table": 8, "a/table.idx": 7, "b/page": 10, "time.tsv": 6})
    assert preflight.set_times(Products(root)) == 2
    times = [(root / name).stat().st_mtime_ns for name in ("raw.txt", "a/table", "time.tsv")]
    assert times == sorted(times)
    assert preflight.set_times(Products(root)) == 0


def test_files_of_another_content_keep_their_times(root):
    (root / "raw.txt").write_text("9")
    assert preflight.set_times(Products(root)) == 0
    (root / "raw.txt").write_text("1")
    assert preflight.set_times(Products(root)) == 2, "and is again what it was"


def test_the_last_record_counts_and_damaged_lines_do_not(root):
    (root / "b/page").write_text("other")
    products = Products(root)
    products.record("b", [root / "b/page"], [root / "a/table"])
    with open(root / FILE, "a") as file:
        file.write('{"v":1,"step":"b"}\nnot JSON\n{"v":1,"step":"b","outputs":{"b/pa')
    products = Products(root)
    assert damaged(root) == {} and {product.step for product in products} == {"a", "b"}
    products.compact()
    assert len((root / FILE).read_text().splitlines()) == 2
    assert products.of([root / "b/page"]).outputs["b/page"][0] == 5
    assert products.of([root / "a/table"]) is None, "not all outputs of the job"


def test_inputs_are_compared_by_content(root):
    products = Products(root)
    product = products.of([root / "b/page"])
    assert products.has_same_inputs(product, [root / "a/table"])
    assert not products.has_same_inputs(product, [root / "a/table", root / "raw.txt"])
    (root / "a/table").write_text("23")
    assert not products.has_same_inputs(product, [root / "a/table"])
    assert products.has_same_inputs(product, [root / "a/table"], same={root / "a/table"})


def test_an_output_of_another_content_than_its_record_is_not_taken_for_it(root):
    """Such as that of a job that was killed before it was recorded, whose inputs are now what they were before."""
    (root / "b/page").write_text("555")
    set_times(root, {"raw.txt": 1, "a/table": 4, "a/table.idx": 4, "b/page": 3})
    products = Products(root)
    product = products.of([root / "b/page"])
    assert not products.fault(product) and not products.is_intact(product)
    assert preflight.set_times(products) == 0
    (root / "b/page").write_text("444")
    assert Products(root).is_intact(product)


def test_temporary_files_of_dead_programs_are_removed(tmp_path):
    program = "import os, sys; sys.path.insert(0, '.'); from pathlib import Path; from scripts.common.files import *; "
    program += "print(temporary_prefix(Path('x.tar')), end='')"
    prefix = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    dead, alive = tmp_path / f"inner/{prefix}abc.tmp", tmp_path / f"{temporary_prefix(tmp_path / 'x.tar')}abc.tmp"
    foreign, yours = tmp_path / ".x.7@another.abc.tmp", tmp_path / ".mine.tmp"
    dead.parent.mkdir()
    for path in (dead, alive, foreign, yours):
        path.write_bytes(b"")
    assert owner_of_temporary(alive.name)[0] == os.getpid()
    assert preflight.remove_leftovers(tmp_path) == [dead]
    set_times(tmp_path, {foreign.name: 1})
    assert preflight.remove_leftovers(tmp_path) == [foreign]
    assert alive.exists() and yours.exists()


def test_a_comparison_of_text_answers_is_no_file_of_the_evaluation_beside_it(tmp_path):
    folder = tmp_path / "evaluate/run"
    folder.mkdir(parents=True)
    for name in ("metrics.json", "forgetting.json", "other.json"):
        (folder / name).write_text("1")
    products = Products(tmp_path)
    products.record("evaluate", [folder / "metrics.json"], [])
    (folder / "forgetting.json").write_text("22")
    assert damaged(tmp_path) == {}
    (folder / "other.json").write_text("22")
    assert list(damaged(tmp_path)) == [f"{folder}/metrics.json"]
