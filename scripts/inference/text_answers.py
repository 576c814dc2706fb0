"""Answers of a model to prompts without images: for replay, and for what a training has changed (forgetting).

The model may be the plain decoder of `transformers` or a VisualChat model: both read tokens and an attention mask.
Prompts of similar length are answered together, and every finished batch is in an answer cache, so that a program that
was killed goes on where it stopped. The same model, prompts and options give the same answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig, PreTrainedModel

from model.template import Template, end_ids
from scripts.common.progress import Progress
from scripts.inference.answer_cache import AnswerCache


@dataclass(frozen=True)
class AnswerOptions:
    """How answers are generated.

    Attributes:
        max_new_tokens: tokens of an answer at most, the end token included.
        batch_size: prompts that are answered together.
        temperature: 0 for the most likely answer; above that answers are drawn.
        seed: of answers that are drawn.
    """

    max_new_tokens: int
    batch_size: int
    temperature: float = 0.0
    seed: int = 0


class TextAnswer(NamedTuple):
    """The generated tokens, the end token included; not `finished` if they were cut off by `max_new_tokens`."""

    ids: list[int]
    finished: bool


def answer_ends(tokenizer: Any, template: Template, decoder: GenerationConfig | None = None) -> list[int]:
    """The tokens at which an answer ends: those of the template and of the tokenizer, and the decoder's own."""
    ends = {tokenizer.eos_token_id, end_ids(tokenizer, template)[-1]}
    own = decoder.eos_token_id if decoder is not None else None
    ends.update(own if isinstance(own, list) else [own])
    return sorted(ends - {None})


def generation_defaults(language: Path) -> GenerationConfig | None:
    """What the folder of a decoder says of generation, if it says anything."""
    try:
        return GenerationConfig.from_pretrained(language)
    except OSError:
        return None


def answer_texts(
    prompts: Sequence[list[int]],
    ends: Sequence[int],
    options: AnswerOptions,
    load: Callable[[], PreTrainedModel],
    cache: AnswerCache,
    label: str,
) -> list[TextAnswer]:
    """Answer prompts.

    Args:
        prompts: the tokens of each, which end where its answer begins.
        ends: tokens at which an answer ends.
        options: how answers are generated.
        load: returns the model; called only if the cache lacks an answer.
        cache: the answers of an earlier attempt, or of another run with the same model.
        label: title of the progress line.

    Returns:
        The answers, in the order of `prompts`.
    """
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), prompts[index]))
    answers: list[TextAnswer] = [TextAnswer([], False)] * len(prompts)
    progress = Progress(label, len(prompts))
    for start in range(0, len(order), options.batch_size):
        indices = order[start : start + options.batch_size]
        batch = [prompts[index] for index in indices]
        request = {"what": "text answers", "options": asdict(options), "ends": list(ends), "batch": batch}

        def compute(key: str, batch: list[list[int]] = batch) -> list:
            torch.manual_seed(int(key[:15], 16))
            return [[answer.ids, answer.finished] for answer in _generate(load(), batch, ends, options)]

        for index, (ids, finished) in zip(indices, cache.get_or_compute(request, compute), strict=True):
            answers[index] = TextAnswer(ids, finished)
        progress.advance(len(indices))
    progress.close()
    return answers


@torch.inference_mode()
def _generate(
    model: PreTrainedModel, batch: Sequence[list[int]], ends: Sequence[int], options: AnswerOptions
) -> list[TextAnswer]:
    length = max(map(len, batch))
    # Padding is masked, so that any token serves.
    ids = torch.tensor([[ends[0]] * (length - len(row)) + row for row in batch], device=model.device)
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in batch], device=model.device)
    sampling: dict[str, Any] = {"do_sample": False}
    if options.temperature:
        sampling = {"do_sample": True, "temperature": options.temperature, "top_k": 0, "top_p": 1.0}
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens, eos_token_id=list(ends), pad_token_id=ends[0], **sampling
    )
    # What the folder of a decoder recommends, such as sampling, would fill what is not set here.
    model.generation_config = GenerationConfig()
    generated = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return [_until_end(row, ends) for row in generated[:, length:].tolist()]


def _until_end(row: list[int], ends: Sequence[int]) -> TextAnswer:
    """An answer without the padding behind its end."""
    for position, token in enumerate(row):
        if token in ends:
            return TextAnswer(row[: position + 1], True)
    return TextAnswer(row, False)
