"""Differences between runs: paired by question, and only for equal questions."""

import json
from pathlib import Path

import pytest

from scripts.evaluation.statistics import paired_difference
from scripts.reporting.run_comparison import differences
from scripts.reporting.scores import Column


def turn(number: int, correct: bool | None, question: str = "What?", kind: str = "what") -> dict:
    image = [{"sha256": str(number)}]
    line = {"test": f"llava:{number}", "round": 1, "kind": kind, "dataset": "llava", "references": ["a"]}
    return line | {"question": question, "images": image, "new_images": 1, "output": "", "correct": correct}


def column(root: Path, run: str, turns: list[dict]) -> Column:
    folder = root / run
    (folder / "heldout").mkdir(parents=True)
    (folder / "heldout/final.jsonl").write_text("".join(json.dumps(line) + "\n" for line in turns))
    kinds = [{"name": "what", "images": "one"}, {"name": "free", "images": None}]
    return Column(run, "final", 0, folder, {"heldout": {"kinds": kinds}})


def test_differences_are_paired_by_question(tmp_path):
    first = column(tmp_path, "first", [turn(n, n % 2 == 0) for n in range(40)])
    better = column(tmp_path, "better", [turn(n, n % 2 == 0 or n < 10) for n in range(40)])
    group, kind = differences([first, better], 0.95)
    (cell,) = kind["cells"]
    assert group["is_group"] and group["cells"][0]["value"] == cell["value"] == pytest.approx(5 / 40)
    assert (cell["n"], cell["only"], cell["only_first"], cell["significant"]) == (40, 5, 0, True)
    pairs = [(n % 2 == 0 or n < 10, n % 2 == 0) for n in range(40)]
    assert (cell["low"], cell["high"]) == paired_difference(pairs, 0.95)[1]


def test_only_the_same_question_about_the_same_images_is_paired(tmp_path):
    first = column(tmp_path, "first", [turn(n, True) for n in range(6)])
    changed = [turn(0, True, "Where?"), turn(1, None), turn(2, True) | {"images": [{"sha256": "x"}]}, turn(9, True)]
    other = column(tmp_path, "other", [*changed, turn(3, False), turn(4, True)])
    assert differences([first, other], 0.95)[0]["cells"][0]["n"] == 2


def test_one_run_or_nothing_shared_is_no_table(tmp_path):
    first = column(tmp_path, "first", [turn(1, True)])
    assert differences([first], 0.95) == []
    assert differences([first, column(tmp_path, "other", [turn(2, True)])], 0.95) == []
