"""How answers are written: what a suite may say about it.

A module of its own, so that what was answered counts as answered when only the judging changes (journal.py).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationOptions:
    """How answers are written; empty fields are left to the evaluation's own settings.

    An answer ends before the first text of `until`. Sampling is drawn from the evaluation's seed.
    """

    max_new_tokens: int | None = None
    until: tuple[str, ...] = ()
    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int = 1
