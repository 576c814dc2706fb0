"""The result files of an evaluation, per suite and checkpoint.

`<suite>/<checkpoint>.jsonl` has one line with all data of every turn, `.csv` the columns of the original (`test_name,
image_path, question, answer`), `.json` the numbers. `metrics.json`, which holds all numbers of a run, is written last.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.common.files import atomic, write_json
from scripts.evaluation.heldout_questions import Question
from scripts.evaluation.question_kinds import GROUPS, QuestionKind
from scripts.evaluation.statistics import majority_accuracy, summarise
from scripts.evaluation.turns import Turn

HELDOUT = "heldout"
METRICS_FILE = "metrics.json"
TEXT_METRICS = ("exact_match", "token_f1", "rouge_l", "chrf")
"""Metrics of held-out answers that are compared as free text, the most telling one first; in JSON they are sorted by
name."""
COLUMNS = ("test_name", "image_path", "question", "answer")


def write_turns(folder: Path, checkpoint: str, turns: Sequence[Turn], common: Mapping[str, Any]) -> None:
    """Write `<checkpoint>.jsonl` and `.csv`; `common` (model hash, settings, versions) is added to every JSON line."""
    with atomic(folder / f"{checkpoint}.jsonl", "w") as file:
        for turn in turns:
            file.write(json.dumps(turn.fields() | dict(common), sort_keys=True, ensure_ascii=False) + "\n")
    with atomic(folder / f"{checkpoint}.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for turn in turns:
            new = turn.images[len(turn.images) - turn.new_images :]
            writer.writerow([turn.test, " ".join(map(_image_name, new)), turn.question, turn.output])


def summarise_heldout(
    answered: Sequence[tuple[Question, Turn]], kinds: Sequence[QuestionKind], confidence: float
) -> dict[str, Any]:
    """Accuracy of every kind, in the order of `kinds` and then by name, and of the groups of one and several images."""
    by_kind: dict[QuestionKind, list[tuple[Question, Turn]]] = {kind: [] for kind in kinds if kind.scored}
    for question, turn in sorted(answered, key=lambda pair: pair[0].kind.name):
        by_kind.setdefault(question.kind, []).append((question, turn))
    chances = {kind: majority_accuracy([q.reference for q, _ in pairs]) for kind, pairs in by_kind.items() if pairs}

    groups = {}
    for group in GROUPS:
        members = [kind for kind in chances if kind.images == group]
        pairs = [pair for kind in members for pair in by_kind[kind]]
        weighted = sum(chances[kind] * len(by_kind[kind]) for kind in members)
        groups[group] = _row([turn for _, turn in pairs], weighted / len(pairs) if pairs else None, confidence)
    return {
        "groups": groups,
        "kinds": [
            {"name": kind.name, "images": kind.images} | _row([t for _, t in pairs], chances.get(kind), confidence)
            for kind, pairs in by_kind.items()
        ],
    }


def summarise_suite(turns: Iterable[Turn], confidence: float) -> dict[str, Any]:
    """Rounds and correct answers of every test, in the order of the suite, and the accuracy over all scored rounds."""
    tests: dict[str, dict[str, int]] = {}
    correct = []
    for turn in turns:
        test = tests.setdefault(turn.test, {"rounds": 0, "judged": 0, "correct": 0})
        test["rounds"] += 1
        if turn.correct is not None:
            correct.append(turn.correct)
            test["judged"] += 1
            test["correct"] += turn.correct
    overall = summarise(correct, None, None, confidence)
    return {"tests": [{"name": name} | counts for name, counts in tests.items()]} | overall


def write_summary(folder: Path, checkpoint: str, summary: Mapping[str, Any]) -> None:
    """Write `<checkpoint>.json`."""
    write_json(folder / f"{checkpoint}.json", {"v": 1} | dict(summary))


def _row(turns: Sequence[Turn], chance: float | None, confidence: float) -> dict[str, Any]:
    correct = [bool(turn.correct) for turn in turns]
    blanked = [turn.blanked["correct"] for turn in turns if turn.blanked is not None]
    return summarise(correct, chance, blanked or None, confidence)


def _image_name(image: Mapping[str, str]) -> str:
    name = image.get("path", image["sha256"])
    return f'"{name}"' if " " in name else name
