"""The report's part about data efficiency: held-out accuracy against conversations seen, for each attention.

Runs that differ in nothing but their attention, the passes over their data, and a number at the end of the names of
model and blend (tiny-1, tiny-2: the same but for the seed) form a *study*; those that differ in the number alone are
repetitions. An accuracy is their mean, with the interval of Student's t over them; a difference between two attentions
is taken seed by seed first.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from scripts.common.files import canonical_json, read_json
from scripts.config.run import RunConfig
from scripts.evaluation.question_kinds import GROUPS
from scripts.reporting.charts import Line, accuracy_chart
from scripts.reporting.means import mean
from scripts.reporting.scores import GROUP_LABELS, RUN_COLOURS, Column

_VARIED = {"attention", "epochs", "seed"}
_ORDER = ("mmca", "causal", "dattn")


@dataclass(frozen=True)
class Trial:
    """One run: its attention, its passes over the data, the conversations it saw, its seeds, its accuracy per group."""

    attention: str
    epochs: int
    conversations: int
    seeds: str
    accuracies: Mapping[str, float]


@dataclass
class Group:
    """What a study found about questions of one group: a chart, and a row of means per number of conversations."""

    label: str
    chart: Markup
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Study:
    """A study as the page shows it."""

    attentions: list[dict[str, Any]]
    others: list[str]
    groups: list[Group]


def studies(
    columns: Sequence[Column], finished: Iterable[Path], plans: Iterable[Path], confidence: float
) -> list[Study]:
    """The studies among the evaluated runs: those with two attentions or two lengths of training at least.

    One run of each attention is no study: the comparison sets them side by side, question by question.
    """
    lengths = {plan["sha256"]: plan["conversations"] for plan in map(read_json, plans)}
    last = {column.run: column for column in columns if column.checkpoint == "final"}
    found: dict[str, list[Trial]] = {}
    for path in map(Path, finished):
        run = read_json(path)
        column, settings = last.get(run["run"]), read_json(path.parent / run["state"] / "settings.json")
        if column is None or not run.get("plans") or not lengths.keys() >= set(run["plans"]):
            continue
        groups = column.metrics["heldout"]["groups"]
        accuracies = {group: groups[group]["accuracy"] for group in GROUPS if groups[group]["n"]}
        same = {name: value for name, value in settings.items() if name not in _VARIED | RunConfig.RESULT_NEUTRAL}
        same |= {name: re.sub(r"-\d+$", "", settings[name]) for name in ("model", "blend")}
        seeds = canonical_json([settings["model"], settings["blend"], settings["seed"]])
        seen = sum(lengths[plan] for plan in run["plans"])
        trial = Trial(settings["attention"], settings["epochs"], seen, seeds, accuracies)
        found.setdefault(canonical_json(same), []).append(trial)
    return [
        _study(trials, confidence)
        for trials in found.values()
        if len({(trial.attention, trial.epochs) for trial in trials}) > 1
        and len(trials) > len({trial.attention for trial in trials})
    ]


def _study(trials: Sequence[Trial], confidence: float) -> Study:
    names = sorted({trial.attention for trial in trials}, key=lambda name: (*_ORDER, name).index(name))
    attentions = [{"name": name, "colour": place % RUN_COLOURS} for place, name in enumerate(names)]
    groups = []
    for group in GROUPS:
        rows = _rows([trial for trial in trials if group in trial.accuracies], group, names, confidence)
        if rows:
            lines = [
                Line(
                    attention["name"],
                    attention["colour"],
                    [(row["seen"], mean) for row in rows if (mean := row["means"][attention["name"]])],
                )
                for attention in attentions
            ]
            chart = accuracy_chart(f"Accuracy, {GROUP_LABELS[group].lower()}", "conversations seen", lines)
            groups.append(Group(GROUP_LABELS[group], chart, rows))
    return Study(attentions, names[1:], groups)


def _rows(trials: Sequence[Trial], group: str, names: Sequence[str], confidence: float) -> list[dict[str, Any]]:
    """One row per number of passes: means of every attention, and differences to the first, seed by seed.

    Blends drawn with other seeds differ a little in length; a row tells their mean.
    """
    rows = []
    for epochs in sorted({trial.epochs for trial in trials}):
        those = [trial for trial in trials if trial.epochs == epochs]
        values = {
            name: {trial.seeds: trial.accuracies[group] for trial in those if trial.attention == name} for name in names
        }
        first = values[names[0]]
        differences = {
            name: [first[seeds] - value for seeds, value in values[name].items() if seeds in first]
            for name in names[1:]
        }
        rows.append(
            {
                "seen": round(fmean(trial.conversations for trial in those)),
                "means": {name: mean(list(found.values()), confidence) for name, found in values.items()},
                "differences": {name: mean(found, confidence) for name, found in differences.items()},
            }
        )
    return rows
