"""Checks of runs and those that they start from: of names, circles, models, and what a stage has changed or not."""

from collections.abc import Callable, Mapping

from scripts.config.run import RunConfig
from scripts.config.safety import untrained_projector


def stage_problems(
    runs: Mapping[str, RunConfig], suggestion: Callable[[str, Mapping[str, RunConfig]], str]
) -> list[str]:
    """Problems of `runs.<run>.start`, and projectors that no stage trains, with their keys.

    `suggestion(word, known)` is a clause with the name of `known` that is most similar to `word`.
    """
    problems = []
    for name, run in runs.items():
        trained_before = any(runs[each].train_projector for each in earlier_runs(runs, name))
        if problem := untrained_projector(run, trained_before):
            problems.append(f"runs.{name}.train_projector: {problem}")
        start = run.started_from
        if start is None:
            continue
        path = f"runs.{name}.start"
        if start.run not in runs:
            problems.append(f"{path}: there is no run {start.run!r}{suggestion(start.run, runs)}")
        elif name in (chain := earlier_runs(runs, name)):
            circle = " -> ".join([name, *chain[: chain.index(name) + 1]])
            problems.append(f"{path}: the runs start from each other in a circle ({circle})")
        elif runs[start.run].model != run.model:
            problems.append(
                f"{path}: {start.run!r} trains the model {runs[start.run].model!r} and this run {run.model!r}; weights "
                "fit only the model that they were trained in, so both must name the same entry of `models`"
            )
        elif run.features and (trained := [each for each in chain if runs[each].train_vision != "frozen"]):
            problems.append(
                f"runs.{name}.features: the features are those of the encoder of `models`, but {trained[0]!r}, which "
                "this run starts from, trains the encoder (train_vision); set features to false"
            )
    return problems


def earlier_runs(runs: Mapping[str, RunConfig], name: str) -> list[str]:
    """The runs that a run starts from, the one before it first; a circle is cut where it closes."""
    found: list[str] = []
    start = runs[name].started_from
    while start is not None and start.run in runs and start.run not in found:
        found.append(start.run)
        start = runs[start.run].started_from
    return found
