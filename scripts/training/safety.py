"""What would spoil a run and is known before its first step: refused, or a warning, each with the line to write.

A refusal is for what cannot end well whatever the data; a warning for what loses something that a pretrained decoder
can do. Decoders that the graph makes have nothing to lose. What needs a forward pass is in `first_loss.py`; what the
configuration alone shows is checked when it is loaded as well.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from scripts.common.errors import PermanentError
from scripts.config.context import context_length
from scripts.config.rates import is_pretrained
from scripts.config.run import RunConfig
from scripts.config.safety import rate_problems, untrained_projector
from scripts.training.schedules import rate_factor

_LEAST_KEPT = 0.9
_SHOWN = 5


def check_length(longest: int, fields: Mapping[str, Any], blend: object) -> None:
    """Check that the decoder reads conversations of `longest` tokens; those of a pack each begin at position 0.

    `fields` are those of the decoder's configuration, `blend` is the folder of the conversations.

    Raises:
        PermanentError: it does not.
    """
    positions = context_length(fields)
    if positions is not None and longest > positions:
        raise PermanentError(
            f"{blend} holds a conversation of {longest} tokens, but the decoder reads {positions}: what lies behind "
            f"has positions that it never saw. Set `sequence: {positions}` or less in the blend, or name a decoder "
            "with a longer context"
        )


def check_rates(settings: RunConfig, language: str, vision: str, parameters: tuple[int, int]) -> None:
    """Check that a pretrained decoder and encoder, by their paths and their `parameters`, survive the rates of a run.

    Raises:
        PermanentError: they do not.
    """
    of_language, of_vision = parameters
    decoder = language if is_pretrained(language, of_language) else None
    encoder = vision if is_pretrained(vision, of_vision) else None
    if problems := rate_problems(settings, decoder, encoder, of_language):
        raise PermanentError("; ".join(problems))


def check_projector(settings: RunConfig, from_start: Collection[str] | None) -> None:
    """Check that the projector is trained, or was: `from_start` are the names of weights that were trained before.

    None: a run that this one starts from has not been trained yet, so it is not known.

    Raises:
        PermanentError: neither is so.
    """
    trained_before = from_start is None or any(name.startswith("projector.") for name in from_start)
    if problem := untrained_projector(settings, trained_before):
        raise PermanentError(problem)


def untrained_rows(
    settings: RunConfig,
    new_tokens: Mapping[int, str],
    template_ids: Collection[int],
    from_start: Collection[str] | None,
) -> str | None:
    """A warning if the template uses tokens that the decoder never had and whose embeddings are not trained.

    `new_tokens`: the tokens without a row in the decoder's own table, but for the placeholder of images, by id.
    """
    used = [repr(text) for number, text in sorted(new_tokens.items()) if number in template_ids]
    trained = settings.train_embeddings or settings.train_language == "full"
    trained_before = from_start is None or any(name.endswith("embed_tokens.weight") for name in from_start)
    if not used or trained or trained_before:
        return None
    shown = ", ".join(used[:_SHOWN]) + (f" and {len(used) - _SHOWN} more" if len(used) > _SHOWN else "")
    return (
        f"the template uses tokens that the decoder never had ({shown}), and their embeddings are not trained: they "
        "stay noise. Write `train_embeddings: true`, or use the decoder's own tokenizer and template"
    )


def decayed_embeddings(settings: RunConfig, peak: float, steps: int) -> str | None:
    """A warning if weight decay shrinks the embeddings of tokens that the data do not contain.

    AdamW multiplies every row by 1 - rate * decay in each of the `steps`, also those without a gradient (arXiv
    1711.05101, section 2). `peak`: the peak rate of the embeddings.
    """
    if not settings.weight_decay or not (settings.train_embeddings or settings.train_language == "full"):
        return None
    rates = (peak * rate_factor(settings, step, steps) for step in range(steps))
    kept = math.exp(sum(math.log1p(-min(rate * settings.weight_decay, 0.99)) for rate in rates))
    if kept > _LEAST_KEPT:
        return None
    return (
        f"weight decay shrinks the embeddings of all tokens that the data do not contain to {kept:.0%} of what they "
        "were, so the decoder loses words. Write `weight_decay: 0`, or `train_embeddings: false`"
    )


def lines(warnings: Sequence[str | None]) -> list[str]:
    """The warnings that there are."""
    return [warning for warning in warnings if warning]
