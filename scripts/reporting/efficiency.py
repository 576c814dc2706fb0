"""The report's section on data efficiency: held-out accuracy against conversations seen, for each attention.

Runs that differ only in their attention, their number of epochs, and a number at the end of the names of model, blend
and the run that they start from (tiny-1, tiny-2: the same except for the seed) form a *study*; runs that differ only in
that number are repetitions. An accuracy is the mean over repetitions with the interval of Student's t; differences
between two attentions are computed for each seed before they are averaged.
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
from scripts.reporting.charts import AccuracyCurve, accuracy_chart
from scripts.reporting.means import mean_of
from scripts.reporting.scores import GROUP_LABELS, RUN_COLOURS, Column

_VARIED = {"attention", "epochs", "seed"}
_ORDER = ("mmca", "causal", "dattn")


@dataclass(frozen=True)
class Trial:
    """One run: attention, epochs, conversations seen, seeds (as a key), and accuracy per group of questions."""

    attention: str
    epochs: int
    conversations: int
    seeds: str
    accuracies: Mapping[str, float]


@dataclass
class GroupResult:
    """The results of a study for one group of questions: a chart, and a row of means per number of conversations."""

    label: str
    chart: Markup
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Study:
    """A study as the page shows it."""

    attentions: list[dict[str, Any]]
    others: list[str]
    groups: list[GroupResult]


def studies(
    columns: Sequence[Column], finished: Iterable[Path], plans: Iterable[Path], confidence: float
) -> list[Study]:
    """The studies among the evaluated runs: at least two attentions or two lengths of training.

    One run per attention is not a study; the comparison of runs shows those.
    """
    lengths = {plan["sha256"]: plan["conversations"] for plan in map(read_json, plans)}
    last = {column.run: column for column in columns if column.checkpoint == "final"}
    by_settings: dict[str, list[Trial]] = {}
    for path in map(Path, finished):
        run = read_json(path)
        column, settings = last.get(run["run"]), read_json(path.parent / run["state"] / "settings.json")
        if column is None or not run.get("plans") or not lengths.keys() >= set(run["plans"]):
            continue
        groups = column.metrics["heldout"]["groups"]
        accuracies = {group: groups[group]["accuracy"] for group in GROUPS if groups[group]["n"]}
        common = {name: value for name, value in settings.items() if name not in _VARIED | RunConfig.RESULT_NEUTRAL}
        common |= {name: _without_number(settings.get(name)) for name in ("model", "blend", "start")}
        seeds = canonical_json([settings["model"], settings["blend"], settings["seed"]])
        seen = sum(lengths[plan] for plan in run["plans"])
        trial = Trial(settings["attention"], settings["epochs"], seen, seeds, accuracies)
        by_settings.setdefault(canonical_json(common), []).append(trial)
    return [
        _study(trials, confidence)
        for trials in by_settings.values()
        if len({(trial.attention, trial.epochs) for trial in trials}) > 1
        and len(trials) > len({trial.attention for trial in trials})
    ]


def _without_number(name: str | None) -> str | None:
    """The name of an entry, or `run:best`, without a number at the end of the entry's name."""
    return None if name is None else re.sub(r"-\d+(?=$|:)", "", name)


def _study(trials: Sequence[Trial], confidence: float) -> Study:
    names = sorted({trial.attention for trial in trials}, key=lambda name: (*_ORDER, name).index(name))
    colours = {name: index % RUN_COLOURS for index, name in enumerate(names)}
    groups = []
    for group in GROUPS:
        rows = _rows([trial for trial in trials if group in trial.accuracies], group, names, confidence)
        if rows:
            curves = []
            for name, colour in colours.items():
                points = [(row["seen"], row["means"][name]) for row in rows if row["means"][name]]
                curves.append(AccuracyCurve(name, colour, points))
            chart = accuracy_chart(f"Accuracy, {GROUP_LABELS[group].lower()}", "conversations seen", curves)
            groups.append(GroupResult(GROUP_LABELS[group], chart, rows))
    attentions = [{"name": name, "colour": colour} for name, colour in colours.items()]
    return Study(attentions, names[1:], groups)


def _rows(trials: Sequence[Trial], group: str, names: Sequence[str], confidence: float) -> list[dict[str, Any]]:
    """One row per number of epochs: the mean of every attention, and the mean of its differences to the first.

    Blends with other seeds differ a little in length; "seen" is their mean. A mean without values is `None`.
    """
    rows = []
    for epochs in sorted({trial.epochs for trial in trials}):
        repetitions = [trial for trial in trials if trial.epochs == epochs]
        values = {
            name: {trial.seeds: trial.accuracies[group] for trial in repetitions if trial.attention == name}
            for name in names
        }
        first = values[names[0]]
        differences = {
            name: [first[seeds] - value for seeds, value in values[name].items() if seeds in first]
            for name in names[1:]
        }
        rows.append(
            {
                "seen": round(fmean(trial.conversations for trial in repetitions)),
                "means": {
                    name: mean_of(list(by_seed.values()), confidence) if by_seed else None
                    for name, by_seed in values.items()
                },
                "differences": {
                    name: mean_of(by_seed, confidence) if by_seed else None for name, by_seed in differences.items()
                },
            }
        )
    return rows
