"""The summary of a workflow."""

import json
import shlex
import sys

import pytest

from scripts import summary
from scripts.common.errors import UserError
from scripts.evaluation.statistics import summarise


def write_results(root, n: int = 4) -> None:
    row = summarise([True] * (n - 1) + [False], 0.5, [True] + [False] * (n - 1))
    empty = summarise([], None, None)
    loss = {"overall": {"loss": 0.25}, "datasets": {}}
    heldout = {"loss": loss, "groups": {"one": row, "several": empty}, "kinds": []}
    suites = {"talk": summarise([True, False], None, None), "unjudged": empty}
    checkpoints = {"final": {"heldout": heldout, "suites": suites}}
    metrics = {"run": "mmca", "settings": {"confidence": 0.95}, "checkpoints": checkpoints}
    (root / "evaluate/mmca").mkdir(parents=True)
    (root / "evaluate/mmca/metrics.json").write_text(json.dumps(metrics))


def test_scores_report_and_the_command_to_chat(tmp_path, monkeypatch, capsys):
    root = tmp_path / "my results"
    write_results(root)
    (root / "exported/mmca/final").mkdir(parents=True)
    (root / "exported/mmca/final/config.json").touch()
    (root / "raw/miniature/dialogues/images").mkdir(parents=True)
    (root / "raw/miniature/dialogues/images/a.png").touch()
    (root / "report.html").touch()
    monkeypatch.setattr(sys, "argv", ["summary", "--root", str(root)])
    summary.main()
    text = capsys.readouterr().out
    assert "mmca, final checkpoint: held-out loss 0.2500 per token" in text
    assert (
        "one image       75.0% correct (95% interval 30.1 to 95.4, n = 4); chance 50.0%; images blanked 25.0%" in text
    )
    assert "several images" not in text and "unjudged" not in text
    assert "suite talk: 1 of 2 answers correct" in text
    assert str(root / "report.html") in text
    (command,) = [line for line in text.splitlines() if "scripts.chat" in line]
    assert text.splitlines()[-1].strip() == "make chat", "the recommended next step comes last"
    assert summary.summary_lines(root, "recipes/subset.yaml")[-1].strip() == "make chat CONFIG=recipes/subset.yaml"
    assert shlex.split(command)[3:] == [
        "--model", str(root / "exported/mmca/final"), "--image", str(root / "raw/miniature/dialogues/images/a.png"),
    ]  # fmt: skip


def test_nothing_evaluated_yet(tmp_path):
    with pytest.raises(UserError, match="nothing has been evaluated"):
        summary.summary_lines(tmp_path)
