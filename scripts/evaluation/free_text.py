"""Scores of held-out answers by dataset, for datasets whose questions have no kinds, such as your own.

Every answer is compared with its reference as free text: token F1, ROUGE-L, chrF. Where most references are short, as
in "red" or "two dogs", the questions are *closed*: exact match then comes first, and decides what is correct. Intervals
are bootstrapped over conversations.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from scripts.evaluation.resampling import bootstrap
from scripts.evaluation.results import TEXT_METRICS
from scripts.evaluation.scoring import metric_spec, score_turns
from scripts.evaluation.statistics import mean_loss
from scripts.evaluation.text_metrics import words
from scripts.evaluation.turns import Turn

SHORT = 4
"""Words of the longest reference that counts as short."""
_CLOSED_SHARE = 0.8


def is_closed(references: Sequence[str]) -> bool:
    """Whether at least 80 % of the references are short, so that an exact match can be expected."""
    short = sum(len(words(reference)) <= SHORT for reference in references)
    return bool(references) and short >= _CLOSED_SHARE * len(references)


def score_datasets(
    turns: Sequence[Turn], closed: dict[str, bool], confidence: float
) -> tuple[list[Turn], dict[str, Any]]:
    """Score the turns of the datasets that `closed` lists, each by itself.

    Returns:
        All turns in their order, those of these datasets with `scores` and `correct`; and by dataset {"closed", "n",
        "metrics": rows of `score_turns`, each with the value "blanked" where images were blanked}.
    """
    result, rows = list(turns), {}
    for dataset in sorted(closed):
        indices = [index for index, turn in enumerate(turns) if turn.dataset == dataset]
        names = TEXT_METRICS if closed[dataset] else [name for name in TEXT_METRICS if name != "exact_match"]
        specs = [metric_spec(name) for name in names]
        scored, metrics = score_turns([turns[index] for index in indices], specs, confidence)
        blanked = [replace(turn, output=turn.blanked["output"]) for turn in scored if turn.blanked is not None]
        if blanked and any(turn.images for turn in scored):
            for name, row in score_turns(blanked, specs, confidence)[1].items():
                metrics[name]["blanked"] = row["value"]
        for index, turn in zip(indices, scored, strict=True):
            result[index] = turn
        rows[dataset] = {"closed": closed[dataset], "n": len(scored), "metrics": metrics}
    return result, rows


def loss_row(losses: Sequence[tuple[float, int]], confidence: float) -> dict[str, Any] | None:
    """`statistics.mean_loss` of conversations with its bootstrap interval, None for fewer than two conversations."""
    row = mean_loss(losses)
    if row is None:
        return None
    interval = bootstrap(np.array(losses, dtype=float), _per_token, confidence) if len(losses) > 1 else None
    return row | {"interval": list(interval) if interval else None}


def _per_token(total: np.ndarray) -> float:
    return float(total[0] / total[1]) if total[1] else float("nan")
