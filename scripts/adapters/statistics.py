"""Statistics of the conversations of a dataset: numbers of rounds and images, lengths of texts."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from scripts.common.records import Record

_MEASURES = ("rounds", "images", "question_words", "answer_words", "wordings")
_IS_SPACE = np.array([chr(code).isspace() for code in range(128)])
"""Whether an ASCII character separates words."""


class Statistics:
    """Collects measures of records."""

    def __init__(self) -> None:
        # How often each value occurs: there are few different ones, and millions of records.
        self._counts: dict[str, Counter[int]] = {name: Counter() for name in _MEASURES}

    def add(self, records: Sequence[Record]) -> None:
        """Measure records."""
        rounds = [round_ for record in records for round_ in record.rounds]
        values = {
            "rounds": [len(record.rounds) for record in records],
            "images": [len(record.images) for record in records],
            "question_words": _words([round_.question[0] for round_ in rounds]),
            "answer_words": _words([round_.answer[0] for round_ in rounds]),
            "wordings": [max(len(round_.question), len(round_.answer)) for round_ in rounds],
        }
        for name, counts in self._counts.items():
            counts.update(values[name])

    def as_dict(self) -> dict[str, dict[str, Any]]:
        """{measure: {mean, median, max}}; words are counted in the first wording of each text."""
        return {name: _counted_summary(counts) for name, counts in self._counts.items() if counts}


def _words(texts: list[str]) -> list[int]:
    """Numbers of words, which whitespace separates, in no certain order: those of ASCII texts are counted together."""
    plain = [text for text in texts if text.isascii()]
    others = [len(text.split()) for text in texts if not text.isascii()]
    if not plain:
        return others
    # A line break after each text separates it from the next one, and is counted as its own.
    is_space = _IS_SPACE[np.frombuffer("\n".join([*plain, ""]).encode("ascii"), np.uint8)]
    begins = ~is_space
    begins[1:] &= is_space[:-1]
    lengths = np.fromiter(map(len, plain), np.int64, len(plain)) + 1
    counts = np.add.reduceat(begins, np.cumsum(lengths) - lengths, dtype=np.int64)
    return [*counts.tolist(), *others]


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
