r"""Tokens of texts that stand beside each other, as a tokenizer splits them when it reads them as one text.

A chat-tuned decoder was tuned on conversations that were tokenised as a whole, so that a token may hold the end of a
header and the beginning of a question: the blank of "USER: " and the word behind it. A template with `joined` gives
those tokens. The segments of a conversation become *pieces*: a piece is a special token, an image, or all text up to
the next of these. Only the beginning of an answer is always a border, because it is one when a model generates. So
labels stay exact, and what a piece holds decides its tokens, so that counts add up. Images at the beginning of a
question change no token of its text: they stand between the tokens of the header and those of the question.

Some tokenizers put a blank before a text. Whether one does so depends on the place of the piece: at the start of the
conversation, behind a special token, or inside a text (behind the beginning of an answer).

Pure Python, like template.py, whose segments it reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from .template import Segment, Template

START, BEHIND_TOKEN, INSIDE = "start", "behind a token", "inside"  # places of a piece of text


@dataclass(frozen=True)
class Piece:
    """Segments that are tokenised together, or one special token, or one image.

    `parts` are the segments with their share of `text`. `place` is where a piece of text begins; `token` is the id of a
    special token, and `image` the index of an image, else None. `leading` are images, and the texts around them, that
    stand within the piece, behind `before_images` characters.
    """

    parts: tuple[tuple[Segment, str], ...]
    place: str = START
    token: int | None = None
    image: int | None = None
    leading: tuple[Piece, ...] = ()
    before_images: int = 0

    @property
    def text(self) -> str:
        """The text that is tokenised."""
        return "".join(text for _, text in self.parts)

    @property
    def is_text(self) -> bool:
        """Whether it is a text, and neither a special token nor an image."""
        return self.token is None and self.image is None

    @property
    def supervised(self) -> bool:
        """Whether its tokens are supervised; those of a piece all are or none is."""
        return self.parts[0][0].supervised


def tokenised_pieces(layout: Sequence[Segment], tokenizer: Any, template: Template) -> list[tuple[Piece, list[int]]]:
    """Divide the segments of a conversation into pieces; return each with its tokens, of which an image has none.

    Raises ValueError if a plain text becomes a special token, or if an answer is closed by the end-of-sequence token
    and the tokenizer has none.
    """
    found = pieces(layout, tokenizer, template)
    encodings: dict[int, Any] = {}
    splitter = _splitter(tokenizer)
    for place in (START, BEHIND_TOKEN, INSIDE):
        numbers = [n for n, piece in enumerate(found) if piece.is_text and piece.place == place]
        encodings |= zip(numbers, splitter.encoded([found[n].text for n in numbers], place), strict=True)
    result: list[tuple[Piece, list[int]]] = []
    for number, piece in enumerate(found):
        if not piece.is_text:
            result.append((piece, [] if piece.token is None else [piece.token]))
        elif not piece.leading:
            result.append((piece, encodings[number].ids))
        else:
            result += _around_images(piece, encodings[number], splitter)
    return result


def _around_images(piece: Piece, encoding: Any, splitter: _Splitter) -> Iterator[tuple[Piece, list[int]]]:
    """A piece with images within it as what comes before them, the images, and what comes behind them."""
    ends = [end for _, end in encoding.offsets]
    # A token with characters from both sides comes behind the images.
    count = next((n for n, end in enumerate(ends) if end > piece.before_images), len(ends))
    border = encoding.offsets[count][0] if count < len(ends) else len(piece.text)
    yield from _share(piece, 0, border, encoding.ids[:count])
    for around in piece.leading:
        plain = [around.text] if around.is_text else []
        ids = [around.token] if around.token is not None else []
        yield around, [*ids, *(token for found in splitter.encoded(plain, BEHIND_TOKEN) for token in found.ids)]
    yield from _share(piece, border, len(piece.text), encoding.ids[count:])


def _share(piece: Piece, start: int, end: int, ids: list[int]) -> Iterator[tuple[Piece, list[int]]]:
    """The part of a piece from one character to another (exclusive), which has the given tokens, if there are any."""
    if ids:
        yield Piece(tuple(_cut(piece.parts, start, end)) or piece.parts[-1:], piece.place), ids


def pieces(layout: Sequence[Segment], tokenizer: Any, template: Template) -> list[Piece]:
    """Divide the segments of a conversation into pieces; an empty piece is left out."""
    special = _special_tokens(tokenizer) if template.special else {}
    builder = _Builder(special, template.bos and tokenizer.bos_token_id is not None)
    for segment in layout:
        if segment.image is not None:
            fragments: list[tuple[str, int | None]] = [("", None)]
        else:
            fragments = list(_fragments(segment, tokenizer, template, special))
        for text, token in fragments:
            piece = Piece(((segment, text),), BEHIND_TOKEN, token, segment.image)
            if segment.part == "leading image":
                builder.add_leading(piece)
            elif piece.is_text:
                builder.add_text(segment, text)
            else:
                builder.add(piece, special.get(text))
    builder.close()
    return builder.found


class _Builder:
    """Joins texts to pieces."""

    def __init__(self, special: dict[str, _SpecialToken], after_bos: bool) -> None:
        self.found: list[Piece] = []
        self._special = special
        self._after_bos = after_bos
        self._texts: list[tuple[Segment, str]] = []
        self._leading: list[Piece] = []
        self._before_images = 0

    def add(self, piece: Piece, token: _SpecialToken | None = None) -> None:
        """Add an image or a special token."""
        self.close(token)
        self.found.append(piece)

    def add_text(self, segment: Segment, text: str) -> None:
        """Add a text to the piece before it, unless that belongs to another part."""
        if self._texts:
            before = self._texts[-1][0]
            # Blanks at the beginning of a question would be one token with the end of the header.
            blank = segment.from_message and not before.from_message and text[:1].isspace()
            alone = segment.part == "image" and segment is not before
            if before.part != segment.part or alone or blank:
                self.close()
        self._texts.append((segment, text))

    def add_leading(self, piece: Piece) -> None:
        """Add an image, or a text around one, at the beginning of a question."""
        if not self._leading:
            self._before_images = sum(len(text) for _, text in self._texts)
        self._leading.append(piece)

    def close(self, behind: _SpecialToken | None = None) -> None:
        """End the piece; `behind` is the special token that comes next."""
        last = self.found[-1] if self.found else None
        before = self._special.get(last.text) if last is not None and last.token is not None else None
        text = "".join(text for _, text in self._texts)
        start = len(text) - len(text.lstrip()) if before is not None and before.strips_right else 0
        end = len(text.rstrip()) if behind is not None and behind.strips_left else len(text)
        parts, leading = tuple(_cut(self._texts, start, end)), tuple(self._leading)
        position = max(0, self._before_images - start)
        self._texts, self._leading = [], []
        if last is None:
            place = BEHIND_TOKEN if self._after_bos else START
        else:
            place = INSIDE if last.is_text else BEHIND_TOKEN
        if parts:
            self.found.append(Piece(parts, place, leading=leading, before_images=position))
        else:
            self.found += leading


def piece_offsets(piece: Piece, tokenizer: Any) -> list[tuple[int, int]]:
    """The first and last character (exclusive) of every token of a piece of text."""
    return _splitter(tokenizer).encoded([piece.text], piece.place)[0].offsets


def holds_special(text: str, tokenizer: Any) -> bool:
    """Whether a fixed text of a template holds a special token."""
    return any(token in text for token in _special_tokens(tokenizer))


@dataclass(frozen=True)
class _SpecialToken:
    """A special token: its id, and whether blanks before or behind it are part of it."""

    id: int
    strips_left: bool
    strips_right: bool


def _special_tokens(tokenizer: Any) -> dict[str, _SpecialToken]:
    return {
        token.content: _SpecialToken(id_, token.lstrip, token.rstrip)
        for id_, token in tokenizer.added_tokens_decoder.items()
        if token.special and token.content
    }


def _fragments(
    segment: Segment, tokenizer: Any, template: Template, special: dict[str, _SpecialToken]
) -> Iterator[tuple[str, int | None]]:
    """A segment as plain texts and special tokens: (text, id of the token)."""
    if segment.kind == "end" and not template.answer_end:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token, so a model could not learn to stop")
        yield tokenizer.eos_token, tokenizer.eos_token_id
        return
    text = template.answer_end if segment.kind == "end" else segment.text
    if segment.kind == "text" or not special:
        yield text, None
        return
    # The longest of several tokens that begin at one place is the one that a tokenizer reads.
    names = "|".join(re.escape(name) for name in sorted(special, key=len, reverse=True))
    for number, fragment in enumerate(re.split(f"({names})", text)):
        if fragment:
            yield fragment, special[fragment].id if number % 2 else None


def _cut(parts: Sequence[tuple[Segment, str]], start: int, end: int) -> Iterator[tuple[Segment, str]]:
    """The parts of the characters from `start` to `end` (exclusive) of their joined text."""
    position = 0
    for segment, text in parts:
        shown = text[max(0, start - position) : max(0, end - position)]
        if shown:
            yield segment, shown
        position += len(text)


class _Splitter:
    """Splits plain texts as a tokenizer does, at each of the three places."""

    def __init__(self, tokenizer: Any) -> None:
        backend = tokenizer.backend_tokenizer
        state = json.loads(backend.to_str())
        self._by_place = {START: _backend(backend, state, {})}
        for place in (BEHIND_TOKEN, INSIDE):
            changed = {
                name: _without_blank(state[name], inside=place == INSIDE) for name in ("normalizer", "pre_tokenizer")
            }
            unchanged = all(state[name] == value for name, value in changed.items())
            self._by_place[place] = self._by_place[START] if unchanged else _backend(backend, state, changed)
        # A text that the tokenizer does not know becomes the unknown token, which is special as well.
        self._reserved = {token.id for token in _special_tokens(tokenizer).values()} - {tokenizer.unk_token_id}

    def encoded(self, texts: list[str], place: str) -> list[Any]:
        """The encodings of texts, each of which begins at a place.

        Raises ValueError if there is a special token among their tokens.
        """
        if not texts:
            return []
        found = self._by_place[place].encode_batch(texts, add_special_tokens=False)
        for text, encoding in zip(texts, found, strict=True):
            if not self._reserved.isdisjoint(encoding.ids):
                raise ValueError(
                    f"the tokenizer encodes the plain text {text[:60]!r} with a special token; a text must not be able "
                    "to produce one, so this tokenizer cannot be used"
                )
        return found


_SPLITTERS: WeakKeyDictionary[Any, tuple[int, _Splitter]] = WeakKeyDictionary()


def _splitter(tokenizer: Any) -> _Splitter:
    """The splitter of a tokenizer, which is made again when the tokenizer got more tokens."""
    size, splitter = _SPLITTERS.get(tokenizer, (-1, None))
    if splitter is None or size != len(tokenizer):
        splitter = _Splitter(tokenizer)
        _SPLITTERS[tokenizer] = (len(tokenizer), splitter)
    return splitter


def _backend(backend: Any, state: dict[str, Any], changes: dict[str, Any]) -> Any:
    """A copy of a tokenizer's backend that reads special tokens as plain text, with some of its steps changed."""
    copy = type(backend).from_str(json.dumps(state | changes | {"truncation": None, "padding": None}))
    copy.encode_special_tokens = True
    return copy


def _without_blank(step: dict[str, Any] | None, inside: bool) -> dict[str, Any] | None:
    """A normaliser or pre-tokeniser that puts no blank before a text: `inside`, none at all, else not the first."""
    if step is None:
        return None
    for steps in ("normalizers", "pretokenizers"):
        if steps in step:
            kept = [changed for one in step[steps] if (changed := _without_blank(one, inside)) is not None]
            return step | {steps: kept}
    if step["type"] == "Prepend" and inside:
        return None
    if step["type"] == "Metaspace" and (inside or step.get("prepend_scheme") == "first"):
        return step | {"prepend_scheme": "never"}
    if step["type"] == "ByteLevel" and inside:
        return step | {"add_prefix_space": False}
    return step
