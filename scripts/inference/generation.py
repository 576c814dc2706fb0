"""Decoding options that a suite may set.

A module of its own: `answering` depends on it and on nothing of `scripts.evaluation`, so cached answers stay valid when
only the scoring changes (answer_cache.py).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationOptions:
    """Decoding options with the names of `transformers`; `None` leaves an option to the evaluation's settings.

    An answer ends before the first of the stop sequences in `until`. Sampling uses the evaluation's seed.
    """

    max_new_tokens: int | None = None
    until: tuple[str, ...] = ()
    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    num_beams: int = 1
