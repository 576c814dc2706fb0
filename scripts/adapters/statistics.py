"""Statistics of the conversations of a dataset: numbers of rounds and images, lengths of texts."""

from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from scripts.common.records import Record

_MEASURES = ("rounds", "images", "question_words", "answer_words", "wordings")


class Statistics:
    """Collects measures of the records that are iterated through `measure`."""

    def __init__(self) -> None:
        self._values = {name: array("q") for name in _MEASURES}

    def measure(self, records: Iterable[tuple[str, Record]]) -> Iterator[tuple[str, Record]]:
        """Yield `records`, pairs of uid and record, unchanged, and measure them."""
        for uid, record in records:
            self._values["rounds"].append(len(record.rounds))
            self._values["images"].append(len(record.images))
            for round_ in record.rounds:
                self._values["question_words"].append(len(round_.question[0].split()))
                self._values["answer_words"].append(len(round_.answer[0].split()))
                self._values["wordings"].append(max(len(round_.question), len(round_.answer)))
            yield uid, record

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """{measure: {mean, median, max}}; words are counted in the first wording of each text."""
        return {name: summary(np.frombuffer(values, np.int64)) for name, values in self._values.items() if values}


def summary(values: np.ndarray) -> dict[str, Any]:
    """Mean, median and maximum of integers (n,)."""
    return {
        "mean": round(float(values.mean()), 2),
        "median": int(np.median(values)),
        "max": int(values.max()),
    }
