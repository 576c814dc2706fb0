"""The questions of held-out conversations, each with the reference conversation before it.

Reads a held-out blend. Every round becomes a separate prompt: the earlier rounds with their reference answers, then its
question. A wrong answer therefore does not affect later questions, and questions can be answered in any order. A round
whose answer is not supervised is only shown: it is part of the history and no question.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from model.messages import message_text
from scripts.evaluation.question_kinds import QuestionKind, classify
from scripts.inference.blend_reader import Sample


@dataclass(frozen=True)
class Question:
    """One round of a held-out conversation.

    `unit` is the conversation's index in the blend, `test` the uids of its records, and `round` counts from 1, rounds
    that are not supervised among them. `images`
    holds the sha256 of every image shown so far, in the order of their numbers; the last `new_images` were shown with
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


def questions(
    unit: int, sample: Sample, kinds: Sequence[QuestionKind], without_kinds: Collection[str] = ()
) -> Iterator[Question]:
    """The supervised rounds of one conversation, in order; in datasets `without_kinds` the dataset is the kind."""
    kinds = () if sample.dataset in without_kinds else kinds
    images: list[str] = []
    number = 0
    for index, message in enumerate(sample.messages):
        if message["role"] != "user":
            continue
        number += 1
        question = message_text(message, len(images))
        new = [sample.image_sha256[part["index"]] for part in _parts(message) if part["type"] == "image"]
        images += new
        answer = sample.messages[index + 1]
        if not answer.get("supervised", True):
            continue
        yield Question(
            unit=unit,
            test="+".join(sample.uids),
            round=number,
            dataset=sample.dataset,
            question=question,
            messages=sample.messages[: index + 1],
            images=tuple(images),
            new_images=len(new),
            gallery=tuple(sample.image_sha256),
            reference=message_text(answer),
            kind=classify(question, kinds, sample.dataset, len(images)),
        )


def _parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content
