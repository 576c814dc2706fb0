"""The questions that held-out conversations ask, each with the true conversation before it.

Reads a held-out blend. Every round is a prompt of its own: the reference answers of the rounds before it, then its
question. So one wrong answer does not spoil the next question, and all questions can be answered in any order.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.evaluation.question_kinds import QuestionKind, classify
from scripts.inference.blend_reader import Sample


@dataclass(frozen=True)
class Question:
    """One round. `unit` is the conversation's place in the blend and `round` counts from 1.

    `images` holds the sha256 of every image in view, in the order of their numbers; the last `new_images` came with
    this round. `gallery` holds those of the whole conversation, which the image parts of `messages` index.
    """

    unit: int
    test: str
    round: int
    dataset: str
    question: str
    messages: list[dict[str, Any]]
    images: tuple[str, ...]
    new_images: int
    gallery: tuple[str, ...]
    reference: str
    kind: QuestionKind


def questions(unit: int, sample: Sample, kinds: Sequence[QuestionKind]) -> Iterator[Question]:
    """The rounds of one conversation, in order."""
    images: list[str] = []
    round = 0
    for place, message in enumerate(sample.messages):
        new = [sample.image_sha256[part["index"]] for part in _parts(message) if part["type"] == "image"]
        images += new
        if message["role"] != "user":
            continue
        round += 1
        question = _text(message)
        yield Question(
            unit=unit,
            test="+".join(sample.uids),
            round=round,
            dataset=sample.dataset,
            question=question,
            messages=sample.messages[: place + 1],
            images=tuple(images),
            new_images=len(new),
            gallery=tuple(sample.image_sha256),
            reference=_text(sample.messages[place + 1]),
            kind=classify(question, kinds, sample.dataset, len(images)),
        )


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _text(message: dict[str, Any]) -> str:
    return "\n".join(part["text"] for part in _parts(message) if part["type"] == "text")
