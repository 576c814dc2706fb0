"""Lengths of the parts of a conversation, in tokens, from which the length of any conversation adds up.

Pure Python, like template.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from .template import Segment, Template, Tokenizer, begin_ids, end_ids, tokenise


def count_segments(tokenizer: Tokenizer, parts: Sequence[Segment]) -> int:
    """Return the number of tokens of segments of text."""
    return sum(len(tokenise(tokenizer, [part.text], part.kind == "fixed")[0]) for part in parts if part.text)


def count_text(tokenizer: Tokenizer, text: str) -> int:
    """Return the number of tokens of a question, an answer or a header."""
    return len(tokenise(tokenizer, [text])[0])


def count_prefix(tokenizer: Tokenizer, template: Template, system: str | None = None) -> int:
    """Return the number of tokens before the first round: begin-of-sequence and system text."""
    return len(begin_ids(tokenizer, template)) + count_segments(tokenizer, template.system_segments(system))


def count_image(number: int, tokenizer: Tokenizer, template: Template, image_tokens: int) -> int:
    """Return the number of tokens of the image with this number (from 1): header, placeholders and end."""
    around = [template.fixed(template.image_header_for(number)), template.fixed(template.image_end)]
    return image_tokens + count_segments(tokenizer, around)


class TokenCounter:
    """Lengths of the parts of a conversation. They add up exactly to the length of `encode(...)`.

        prefix() + sum(image(k) for k in 1..images)
                 + sum(round_overhead() + texts([question])[0] + texts([answer])[0] + end() for every round)
                 + between_rounds() * (rounds - 1)

    With `images: inline` a question counts as the sum of the texts between its images. A prompt (last question without
    an answer) lacks the last answer and its `end()`; a conversation with its own system message has `prefix(system)` in
    place of `prefix()`.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template, image_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.image_tokens = image_tokens
        self._images: dict[int, int] = {}
        headers = [template.fixed(template.question_header), template.fixed(template.answer_header)]
        self._prefix = count_prefix(tokenizer, template)
        self._round_overhead = count_segments(tokenizer, headers)
        self._between_rounds = count_segments(tokenizer, [template.fixed(template.round_end)])
        self._end = len(end_ids(tokenizer, template)) if template.answer_end else 1

    def prefix(self, system: str | None = None) -> int:
        """Return the number of tokens before the first round; `system` replaces the template's own text."""
        return self._prefix if system is None else count_prefix(self.tokenizer, self.template, system)

    def image(self, number: int) -> int:
        """Return the number of tokens of the image with this number (from 1)."""
        if number not in self._images:
            self._images[number] = count_image(number, self.tokenizer, self.template, self.image_tokens)
        return self._images[number]

    def texts(self, texts: list[str]) -> list[int]:
        """Return the number of tokens of each text, as a question or as an answer."""
        return [len(row) for row in tokenise(self.tokenizer, list(texts))]

    def round_overhead(self) -> int:
        """Return the number of tokens of the two headers of a round."""
        return self._round_overhead

    def between_rounds(self) -> int:
        """Return the number of tokens between an answer and the next round."""
        return self._between_rounds

    def end(self) -> int:
        """Return the number of tokens that close an answer."""
        return self._end
