"""The texts of held-out conversations without their images: on them the drift of a model's language is measured."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from model.joined_tokens import Piece, piece_offsets
from model.template import PROMPT, Template, begin_ids, encode, segments, tokenised
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
        questions = [index for index in question_positions(messages, tokenizer, template) if index > 0]
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


def question_positions(messages: Sequence[dict[str, Any]], tokenizer: Any, template: Template) -> list[int]:
    """The positions, among the tokens of a conversation, of those that hold a character of a question."""
    found: list[int] = []
    position = len(begin_ids(tokenizer, template))
    for piece, ids in tokenised(segments(messages, template), tokenizer, template):
        spans = _question_spans(piece)
        # Without `joined` a piece is a single segment.
        offsets = piece_offsets(piece, tokenizer) if spans and template.joined else [(0, len(piece.text))] * len(ids)
        for number, (first, last) in enumerate(offsets):
            if any(first < end and start < last for start, end in spans):
                found.append(position + number)
        position += len(ids)
    return found


def _question_spans(piece: Piece) -> list[tuple[int, int]]:
    """The first and last character (exclusive) of every text of a question in a piece."""
    spans, start = [], 0
    for segment, text in piece.parts:
        if segment.from_message and segment.part == PROMPT:
            spans.append((start, start + len(text)))
        start += len(text)
    return spans
