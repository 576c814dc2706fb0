"""Lengths of the parts of a conversation, in tokens, from which the length of any conversation adds up.

Pure Python, like template.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from .joined_tokens import holds_special, pieces
from .template import (
    ANSWER,
    LEADING_IMAGE,
    Segment,
    Template,
    Tokenizer,
    answer_segments,
    begin_ids,
    question_segments,
    tokenise,
    tokenised,
)

Parts = Sequence[str | int]
"""A question: its texts, and the numbers of the images that it shows."""
_MARK = "\ue000"  # a character of no script


def count_segments(tokenizer: Tokenizer, template: Template, parts: Sequence[Segment]) -> int:
    """Return the number of tokens of segments, without the placeholders of images."""
    return sum(len(ids) for _, ids in tokenised([part for part in parts if _written(part)], tokenizer, template))


def count_prefix(tokenizer: Tokenizer, template: Template, system: str | None = None) -> int:
    """Return the number of tokens before the first round: begin-of-sequence and system text."""
    return len(begin_ids(tokenizer, template)) + count_segments(tokenizer, template, template.system_segments(system))


class TokenCounter:
    """Lengths of the parts of a conversation. They add up exactly to the length of `encode(...)`.

        prefix() + sum(image(k) for k in 1..images)
                 + sum(round_overhead() + questions([question])[0] + answers([answer])[0] + end() for every round)
                 + between_rounds() * (rounds - 1) + last_round()

    A prompt (last question without an answer) lacks the last answer and its `end()`; a conversation with its own system
    message has `prefix(system)` in place of `prefix()`. Where `first_differs(system)`, the first question counts
    `first_questions([question], system)[0]`: it is tokenised together with the system text before it, and then these
    numbers are shares of a sum, of which some may be negative.

    Raises ValueError for a `joined` template whose two answer headers differ before their first special token.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template, image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.image_tokens = image_tokens
        self._images: dict[int, int] = {}
        self._prefixes: dict[str | None, int] = {}
        self._differs: dict[str | None, bool] = {}
        self._closing = Segment("end", part=ANSWER)
        self._between_rounds = self._count([self._closing, template.fixed(template.round_end)]) - self._count(
            [self._closing]
        )
        self._round_overhead = self._later([]) - self._between_rounds
        self._last_round = self._later([_MARK], last=True) - self._later([_MARK])
        self._end = self._answer("")
        # The header of a question that holds a special token separates the question from all that comes before.
        self._separate = not template.joined or (
            template.special and not template.system_inside and holds_special(template.question_header, tokenizer)
        )
        self._check_last_header()

    def prefix(self, system: str | None = None) -> int:
        """Return the number of tokens before the first round; `system` replaces the template's own text."""
        if system not in self._prefixes:
            counted = count_prefix(self.tokenizer, self.template, system)
            if self.template.joined and not self.first_differs(system):
                counted = self._first([_MARK], system) - self._round_overhead - self._question([_MARK])
            self._prefixes[system] = counted
        return self._prefixes[system]

    def image(self, number: int) -> int:
        """Return the number of tokens of the image with this number (from 1)."""
        if number not in self._images:
            around = [self.template.image_header_for(number), self.template.image_end]
            texts = [self.template.fixed(text, LEADING_IMAGE) for text in around]
            self._images[number] = self.image_tokens + self._count(texts)
        return self._images[number]

    def questions(self, questions: Sequence[Parts]) -> list[int]:
        """Return the number of tokens of the texts of each question."""
        if self.template.joined:
            return [self._question(parts) for parts in questions]
        texts = [part for parts in questions for part in parts if isinstance(part, str)]
        counts = iter(tokenise(self.tokenizer, [self.template.message(text) for text in texts]))
        return [sum(len(next(counts)) for part in parts if isinstance(part, str)) for parts in questions]

    def answers(self, answers: Sequence[str]) -> list[int]:
        """Return the number of tokens of each answer, without what closes it."""
        if self.template.joined:
            return [self._answer(text) - self._end for text in answers]
        return [len(row) for row in tokenise(self.tokenizer, [self.template.message(text) for text in answers])]

    @property
    def first_may_differ(self) -> bool:
        """Whether `first_differs` may be true for some system text."""
        return not self._separate

    def first_differs(self, system: str | None = None) -> bool:
        """Whether the tokens of a first question depend on the system text before it; `None` is the template's own."""
        if self._separate:
            return False
        if system not in self._differs:
            self._differs[system] = self._piece(self._before_first([_MARK], system)) != self._piece(
                self._before_later([_MARK])
            )
        return self._differs[system]

    def first_questions(self, questions: Sequence[Parts], system: str | None = None) -> list[int]:
        """Return the number of tokens of the texts of each question, at the beginning of a conversation."""
        fixed = self.prefix(system) + self._round_overhead
        return [self._first(parts, system) - fixed - self._image_texts(parts) for parts in questions]

    def round_overhead(self) -> int:
        """Return the number of tokens of the two headers of a round."""
        return self._round_overhead

    def between_rounds(self) -> int:
        """Return the number of tokens between an answer and the next round."""
        return self._between_rounds

    def last_round(self) -> int:
        """Return how many tokens the last round has more than others, because its answer has another header."""
        return self._last_round

    def end(self) -> int:
        """Return the number of tokens that open and close an answer."""
        return self._end

    def _count(self, layout: Sequence[Segment]) -> int:
        return count_segments(self.tokenizer, self.template, layout)

    def _question(self, parts: Parts) -> int:
        return self._later(parts) - self._between_rounds - self._round_overhead - self._image_texts(parts)

    def _image_texts(self, parts: Parts) -> int:
        return sum(self.image(part) - self.image_tokens for part in parts if isinstance(part, int))

    def _answer(self, text: str) -> int:
        before = self._before_later([_MARK])
        return self._count([*before, *answer_segments(text, self.template)]) - self._count(before)

    def _later(self, parts: Parts, last: bool = False) -> int:
        """Tokens between an answer and the next one."""
        return self._count(self._before_later(parts, last)) - self._count([self._closing])

    def _first(self, parts: Parts, system: str | None) -> int:
        """Tokens from the beginning of a conversation to the first answer."""
        return len(begin_ids(self.tokenizer, self.template)) + self._count(self._before_first(parts, system))

    def _before_later(self, parts: Parts, last: bool = False) -> list[Segment]:
        question = question_segments(parts, self.template, _shown_before(parts), last=last)
        return [self._closing, self.template.fixed(self.template.round_end), *question]

    def _before_first(self, parts: Parts, system: str | None) -> list[Segment]:
        header = not (self.template.system_inside and self.template.has_system(system))
        question = question_segments(parts, self.template, _shown_before(parts), header=header)
        return [*self.template.system_segments(system), *question]

    def _piece(self, layout: Sequence[Segment]) -> tuple[str, str]:
        """The piece that holds the question, as its text and its place."""
        found = pieces([part for part in layout if _written(part)], self.tokenizer, self.template)
        (piece,) = (piece for piece in found if _MARK in piece.text)
        return piece.text, piece.place

    def _check_last_header(self) -> None:
        template = self.template
        if not template.joined or not template.last_answer_header:
            return
        if self._piece(self._before_later([_MARK], last=True)) != self._piece(self._before_later([_MARK])):
            raise ValueError(
                "the template keys 'answer_header' and 'last_answer_header' must be the same up to the end of their "
                "first special token, because otherwise the tokens of a question depend on whether it is the last"
            )


def _written(segment: Segment) -> bool:
    return bool(segment.text) or segment.kind in ("image", "end")


def _shown_before(parts: Parts) -> int:
    """How many images come before the first one of a question."""
    return min((part for part in parts if isinstance(part, int)), default=1) - 1
