"""The report's section on text without images: what the decoder of a run says before and after training.

Reads every `evaluate/<run>/forgetting.json`. Runs of one model share its answers before training, so they are shown in
one table, and a prompt shows an answer that several of them give once.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.common.files import read_json
from scripts.evaluation.forgetting_summary import SENTENCES


def text_answers(paths: Iterable[Path], colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """One entry for each model before training: its runs with their figures, and the prompts with all answers."""
    models: dict[str, list[dict[str, Any]]] = {}
    for result in map(read_json, paths):
        # In another number format a model may give other answers before training, too.
        models.setdefault(f"{result['before']} {result['settings']['dtype']}", []).append(result)
    return [_model(results, colours) for results in models.values()]


def _model(results: list[dict[str, Any]], colours: Mapping[str, int]) -> dict[str, Any]:
    return {
        "runs": [_run(result, colours[result["run"]]) for result in results],
        "prompts": [_prompt(number, results, colours) for number in range(len(results[0]["prompts"]))],
    }


def _run(result: Mapping[str, Any], colour: int) -> dict[str, Any]:
    rows, answers, own = result["prompts"], result["answers"], result["own"]
    return {
        "name": result["run"],
        "colour": colour,
        "verdict": result["verdict"],
        "sentence": SENTENCES[result["verdict"]],
        "same": f"{result['same']} of {len(rows)}",
        "kl": answers["before"]["kl"],
        "own": {name: row["kl"] for name, row in own.items()} if own else {},
        "earlier": [answers["before"][side]["value"] for side in ("before", "after")],
        "later": [answers["after"][side]["value"] for side in ("before", "after")],
        "tokens": [sum(row[side]["tokens"] for row in rows) / len(rows) for side in ("before", "after")],
    }


def _prompt(number: int, results: list[dict[str, Any]], colours: Mapping[str, int]) -> dict[str, Any]:
    """A prompt; `others` are the answers after training that differ, each with the runs that give it."""
    row = results[0]["prompts"][number]
    others: dict[str, dict[str, Any]] = {}
    same = []
    for result in results:
        run = {"name": result["run"], "colour": colours[result["run"]]}
        entry = result["prompts"][number]
        if entry["same"]:
            same.append(run)
        else:
            others.setdefault(entry["after"]["text"], {"runs": [], **_answer(entry["after"])})["runs"].append(run)
    return {"text": row["prompt"], "before": _answer(row["before"]), "same": same, "others": list(others.values())}


def _answer(side: Mapping[str, Any]) -> dict[str, Any]:
    return {"text": side["text"], "cut_off": not side["finished"]}
