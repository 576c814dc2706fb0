"""Statistics of the conversations of a dataset: numbers of rounds and images, lengths of texts."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from scripts.common.records import Record

_MEASURES = ("rounds", "images", "question_words", "answer_words", "wordings")


class Statistics:
    """Collects measures of the records that are iterated through `measure`."""

    def __init__(self) -> None:
        # How often each value occurs: there are few different ones, and millions of records.
        self._counts: dict[str, Counter[int]] = {name: Counter() for name in _MEASURES}

    def measure(self, records: Iterable[tuple[str, Record]]) -> Iterator[tuple[str, Record]]:
        """Yield `records`, pairs of uid and record, unchanged, and measure them."""
        rounds, images, question_words, answer_words, wordings = (self._counts[name] for name in _MEASURES)
        for uid, record in records:
            rounds[len(record.rounds)] += 1
            images[len(record.images)] += 1
            for round_ in record.rounds:
                question_words[len(round_.question[0].split())] += 1
                answer_words[len(round_.answer[0].split())] += 1
                wordings[max(len(round_.question), len(round_.answer))] += 1
            yield uid, record

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """{measure: {mean, median, max}}; words are counted in the first wording of each text."""
        return {name: _counted_summary(counts) for name, counts in self._counts.items() if counts}


def _counted_summary(counts: Counter[int]) -> dict[str, Any]:
    """The `summary` of the values that occur as often as `counts` says."""
    values = np.array(sorted(counts), np.int64)
    ends = np.cumsum([counts[value] for value in values.tolist()])
    total = int(ends[-1])
    # The value in the middle, or the two around it.
    middle = values[np.searchsorted(ends, [(total - 1) // 2, total // 2], side="right")]
    return {
        "mean": round(sum(value * count for value, count in counts.items()) / total, 2),
        "median": int(middle.mean()),
        "max": int(values[-1]),
    }


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean, median and maximum of integers (n,); 0 for none."""
    if not len(values):
        return {"mean": 0.0, "median": 0, "max": 0}
    return {
        "mean": round(float(values.mean()), 2),
        "median": int(np.median(values)),
        "max": int(values.max()),
    }
