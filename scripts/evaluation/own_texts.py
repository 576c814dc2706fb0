"""The texts of held-out conversations without their images: on them the drift of a model's language is measured."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from model.template import Template, encode, segments, tokenise
from scripts.evaluation.drift import ScoredText
from scripts.inference.blend_reader import BlendReader


class OwnTexts(NamedTuple):
    """The same conversations twice: with the tokens of their questions measured, and with those of their answers."""

    questions: list[ScoredText]
    answers: list[ScoredText]


def own_texts(
    blend: BlendReader, tokenizer: Any, template: Template, limit: int, longest: int, without: Collection[str]
) -> OwnTexts:
    """The first conversations of a held-out part that say something without their images.

    Args:
        blend: the held-out part.
        tokenizer: of the model.
        template: of the model.
        limit: most tokens of all conversations together.
        longest: most tokens of one conversation; longer ones are left out.
        without: datasets that are left out.
    """
    texts = OwnTexts([], [])
    left = limit
    for position in range(len(blend)):
        sample = blend.read(position, images=False)
        messages = _without_images(sample.messages)
        if sample.dataset in without or messages is None:
            continue
        try:
            encoded = encode(messages, tokenizer, template, 0)
        except ValueError:
            continue
        if len(encoded) > longest:
            continue
        if len(encoded) > left:
            break
        left -= len(encoded)
        questions = _question_positions(messages, tokenizer, template, len(encoded))
        answers = [index for index, label in enumerate(encoded.labels) if label >= 0 and index > 0]
        if questions and answers:
            texts.questions.append(ScoredText(encoded.input_ids, questions))
            texts.answers.append(ScoredText(encoded.input_ids, answers))
    return texts


def _without_images(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """A conversation without its images, None if a question has no text of its own."""
    result = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "\n".join(text for part in content if (text := part.get("text", "").strip()))
        if not content.strip():
            return None
        result.append(message | {"content": content})
    return result


def _question_positions(messages: list[dict[str, Any]], tokenizer: Any, template: Template, length: int) -> list[int]:
    """The positions of the tokens of questions: the texts of messages that are neither answers nor system texts.

    They are counted from the end: a begin-of-sequence token before the first segment then needs no care.
    """
    found: list[int] = []
    position = length
    end = len(tokenise(tokenizer, [template.answer_end], template.special)[0]) if template.answer_end else 1
    answer = False
    for segment in reversed(segments(messages, template)):
        if segment.kind == "end":
            count, answer = end, True
        else:
            count = len(tokenise(tokenizer, [segment.text], segment.kind == "fixed")[0])
            if segment.from_message and not answer:
                found += range(position - count, position)
            answer = answer and not segment.from_message
        position -= count
    return sorted(index for index in found if index > 0)
