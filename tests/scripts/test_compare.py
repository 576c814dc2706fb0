"""The comparison of two evaluations from their result files."""

import json
import sys
from pathlib import Path

import pytest

from scripts import compare
from scripts.common.errors import UserError
from scripts.evaluation.results import write_turns
from scripts.evaluation.scoring import metric_spec, score_turns
from tests.scripts.evaluation.turn_factory import turn


def evaluation(folder: Path, correct: int, checkpoint: str = "final") -> Path:
    """An evaluation of 20 questions, the first `correct` of which were answered correctly."""
    raw = [turn("red" if number < correct else "blue", "red", test=f"{number:02d}") for number in range(20)]
    turns, rows = score_turns(raw, [metric_spec("exact_match"), metric_spec("rouge_l")], 0.95)
    for suite in ("talk", "heldout"):
        write_turns(folder / suite, checkpoint, turns, {"suite": suite})
        (folder / suite / f"{checkpoint}.json").write_text(json.dumps({"metrics": rows}))
    (folder / "metrics.json").write_text(json.dumps({"checkpoints": {checkpoint: {"suites": {"talk": {}}}}}))
    return folder


def run(monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, words)])
    compare.main()


def test_two_runs(tmp_path, monkeypatch, capsys):
    first, second = evaluation(tmp_path / "a", 18), evaluation(tmp_path / "b", 8, "best")
    run(monkeypatch, first, f"{second}:best", "--out", tmp_path / "out.json")
    result = json.loads((tmp_path / "out.json").read_text())["suites"]
    assert set(result) == {"heldout", "talk"} and set(result["talk"]) == {"exact_match", "rouge_l"}
    row = result["talk"]["exact_match"]
    # Ten questions that only the first answered correctly: p is 2 / 2^10.
    assert (row["difference"], row["n"]) == (0.5, 20) and row["p"] == pytest.approx(2 / 1024, abs=0.002)
    assert 0.25 < row["interval"][0] < 0.5 < row["interval"][1] < 0.75
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["suite", "metric", "difference"]
    assert any(line.split()[:3] == ["talk", "exact_match", "+0.500"] for line in lines)
    run(monkeypatch, first, f"{second}:best", "--suite", "talk", "--metric", "chrf")
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["metric", "chrf"]


def test_missing_results_are_errors(tmp_path, monkeypatch):
    first, second = evaluation(tmp_path / "a", 18), evaluation(tmp_path / "b", 8)
    with pytest.raises(UserError, match="no evaluation of checkpoint 'best'; it has final"):
        run(monkeypatch, first, f"{second}:best")
    with pytest.raises(UserError, match=r"metrics\.json does not exist"):
        run(monkeypatch, first, tmp_path)
    with pytest.raises(UserError, match="no suite in common"):
        run(monkeypatch, first, second, "--suite", "other")
    (second / "talk/final.jsonl").unlink()
    with pytest.raises(UserError, match=r"talk/final\.jsonl does not exist"):
        run(monkeypatch, first, second)
