"""Learning rates: those that are used where a run names none, and the highest that a pretrained part survives.

A pretrained decoder that is trained at the rate of a new one produces nothing readable after a few steps, and the loss
on a small dataset still falls. So runs that would do this are refused before they start.

Pure functions of a run and of the size of its decoder, without torch: the configuration and the training both use them.
"""

from typing import NamedTuple

from scripts.config.base_facts import made_by_graph
from scripts.config.run import DEFAULT_RATE, RunConfig

PRETRAINED_PARAMETERS = 10_000_000
"""A decoder or encoder with fewer parameters is a toy for tests and demonstrations, which learns from any rate."""
_LARGE = 20_000_000_000
_SMALL = 1_000_000_000
_USUAL = 7_000_000_000

HIGHEST_FULL = 1e-4
"""Of a whole pretrained decoder or encoder. Published ones of 7B and more are tuned at 1e-5 to 2e-5 (LLaVA-1.5, arXiv
2310.03744), small ones at up to 1e-4."""
HIGHEST_EMBEDDINGS = 1e-3
"""Of pretrained token embeddings: the rate of DeepSpeed-VisualChat (arXiv 2309.14327)."""
HIGHEST_ADAPTERS = 5e-3
"""Of adapters beside pretrained layers: 25 times the usual rate."""


class Rate(NamedTuple):
    """A peak learning rate and the reason for it."""

    value: float
    reason: str


_LANGUAGE_RATES = {
    "lora": (
        Rate(1e-3, "adapters of a decoder below a billion parameters (measured: benchmarks/RESULTS.md)"),
        Rate(2e-4, "adapters (QLoRA, arXiv 2305.14314)"),
        Rate(1e-4, "adapters of a decoder above 20 billion parameters (QLoRA, arXiv 2305.14314)"),
    ),
    "full": (
        Rate(5e-5, "a whole decoder below a billion parameters"),
        Rate(2e-5, "a whole decoder (LLaVA-1.5, arXiv 2310.03744)"),
        Rate(1e-5, "a whole decoder above 20 billion parameters"),
    ),
}
"""By how the decoder is trained: below a billion parameters, up to 20 billion, above."""


def is_pretrained(name: str, parameters: int | None) -> bool:
    """Whether a base has something to lose: not made by the graph, and not tiny. An unknown size counts as large."""
    return not made_by_graph(name) and (parameters is None or parameters > PRETRAINED_PARAMETERS)


def safe_rates(run: RunConfig, parameters: int | None, pretrained_vision: bool = True) -> dict[str, Rate]:
    """The rates of the trained parts of a run on a pretrained decoder, by part (language, embeddings, ...).

    The part `language` is there even if the decoder is frozen, because `learning_rate` has to have some value.

    Args:
        run: the run; the rates that it names itself are not read.
        parameters: of the decoder; None if unknown.
        pretrained_vision: whether the encoder is pretrained too.
    """
    rates = {"language": _language_rate(run, parameters)}
    if run.train_embeddings:
        rates["embeddings"] = Rate(1e-4, "pretrained embeddings, a tenth of what DeepSpeed-VisualChat uses")
    if run.train_projector:
        small = parameters is not None and parameters < _SMALL
        if run.start is None or run.train_language == "frozen" or (run.train_language == "lora" and small):
            rates["projector"] = _projector_rate(small)
        else:
            rates["projector"] = Rate(rates["language"].value, "a projector that another run has trained")
    if run.train_vision != "frozen":
        rates["vision"] = _vision_rate(run, pretrained_vision)
    return rates


def _language_rate(run: RunConfig, parameters: int | None) -> Rate:
    if run.train_language == "frozen":
        return Rate(DEFAULT_RATE, "of no part: the decoder is frozen")
    size = _USUAL if parameters is None else parameters
    small, usual, large = _LANGUAGE_RATES[run.train_language]
    return large if size > _LARGE else small if size < _SMALL else usual


def _projector_rate(small: bool) -> Rate:
    if small:
        return Rate(4e-3, "a projector of a decoder below a billion parameters (measured: benchmarks/RESULTS.md)")
    return Rate(1e-3, "a projector beside a frozen or adapted decoder (LLaVA-1.5)")


def _vision_rate(run: RunConfig, pretrained: bool) -> Rate:
    if not pretrained:
        return Rate(DEFAULT_RATE, "the miniature's encoder")
    if run.train_vision == "lora":
        return Rate(1e-4, "adapters of an encoder")
    return Rate(2e-6, "a whole encoder (LLaVA-OneVision, arXiv 2408.03326)")
