r"""The prompt template: one conversation in, tokens, labels and image places out.

Reads a conversation in the chat form of `transformers` (role, and parts `{"type": "image", "index": 0}` or
`{"type": "text", "text": ...}`) and lays it out as a list of *segments*. Every header, question and answer is a
segment of its own and is tokenised by itself, for two reasons: the label mask is exact, because no token can straddle
the border between a prompt and its answer; and token counts add up, so that a plan computes the length of any
conversation from a table of lengths of its parts (`TokenCounter`) without tokenising again.

With the default template a conversation about two images reads, `|` marking the borders of segments:

    <s>|### Image 1:\n|<image>...<image>|\n\n|### Image 2:\n|<image>...<image>|\n\n|
    ### Question:\n|Which is red?|\n\n### Answer:\n|The first.|</s>

and a further round continues with `\n\n|### Question:\n|...`. Only `The first.` and `</s>` are supervised. A template
may also be taken from a chat-tuned decoder's own, see chat_template.py.

Pure Python: the data programs count tokens with it, and they never import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol

IMAGE_TOKEN = "<image>"
IGNORE_INDEX = -100
TEXT, IMAGE = 1, 2  # values of `EncodedConversation.modality`; 0 is padding, which only a batch has
_END_PREVIEW = "</s>"
_LATER = ("system_header", "answer_end", "bos", "images_inside", "special")


class Tokenizer(Protocol):
    """What is used of a fast tokenizer of `transformers`."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: list[str], **options: Any) -> Any: ...

    def convert_tokens_to_ids(self, tokens: str) -> int | None: ...


@dataclass(frozen=True)
class Template:
    """The fixed texts around questions, answers and images. `{number}` in `image_header` is an image's number from 1.

    `system` is said once at the start, between `system_header` and `system_end`, unless the conversation brings its own
    system message. An answer closes with `answer_end`; if that is empty, with the end-of-sequence token. With `bos` the
    tokenizer's begin-of-sequence token, if it has one, comes first. Images are shown before the question's header, or
    behind it if `images_inside`. With `special`, the fixed texts may hold special tokens of the tokenizer; what people
    say never does.
    """

    system: str = ""
    system_end: str = "\n\n"
    image_header: str = "### Image {number}:\n"
    image_end: str = "\n\n"
    question_header: str = "### Question:\n"
    answer_header: str = "\n\n### Answer:\n"
    round_end: str = "\n\n"
    system_header: str = ""
    answer_end: str = ""
    bos: bool = True
    images_inside: bool = False
    special: bool = False

    def to_dict(self) -> dict[str, str | bool]:
        """Return the texts as a plain dictionary, ready for JSON; without later fields that keep their default.

        So the hash of a template stays what it was before there were these fields.
        """
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name not in _LATER or getattr(self, item.name) != item.default
        }

    @classmethod
    def from_dict(cls, texts: dict[str, str | bool]) -> Template:
        """Build a template from a dictionary; missing keys keep their default.

        Raises ValueError for an unknown key or a value of the wrong kind.
        """
        known = {item.name: type(item.default) for item in fields(cls)}
        for key, value in texts.items():
            if key not in known:
                raise ValueError(f"unknown template key {key!r}; the keys are {', '.join(known)}")
            if not isinstance(value, known[key]):
                wanted = "a text" if known[key] is str else "true or false"
                raise ValueError(f"template key {key!r} must be {wanted}, not {type(value).__name__}")
        return cls(**texts)

    def image_header_for(self, number: int) -> str:
        """Return the header of the image with this number (from 1)."""
        return self.image_header.replace("{number}", str(number))

    def system_text(self, system: str | None = None) -> str:
        """Return what is said at the start; `None` takes the template's own, and an empty text gives nothing."""
        text = self.system if system is None else system
        return self.system_header + text + self.system_end if text else ""

    def system_segments(self, system: str | None = None) -> list[Segment]:
        """Return what is said at the start as segments: one, or three where the fixed texts hold special tokens."""
        text = self.system if system is None else system
        if not self.special or not text:
            return [Segment("text", self.system_text(system))]
        return [self.fixed(self.system_header), Segment("text", text), self.fixed(self.system_end)]

    def fixed(self, text: str) -> Segment:
        """Return a text of the template as a segment."""
        return Segment("fixed" if self.special else "text", text)


@dataclass(frozen=True)
class Segment:
    """A piece of a conversation that is tokenised by itself.

    `kind` is 'text', 'fixed' (text that may hold special tokens), 'image' (`image_tokens` placeholders) or 'end' (what
    closes an answer); `image` is the "index" of an image part.
    """

    kind: str
    text: str = ""
    image: int | None = None
    supervised: bool = False


@dataclass
class EncodedConversation:
    """A conversation as tokens. The first three lists have one entry per token.

    `labels` equals `input_ids` where a token is supervised and -100 elsewhere; it is not shifted. `modality` is 1 for
    text and 2 for an image placeholder. `image_indices` holds the "index" of every image in the order of their places.
    """

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    modality: list[int] = field(default_factory=list)
    image_indices: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)

    def extend(self, ids: list[int], modality: int, supervised: bool) -> None:
        """Append tokens of one kind."""
        self.input_ids += ids
        self.labels += ids if supervised else [IGNORE_INDEX] * len(ids)
        self.modality += [modality] * len(ids)

    def without_last(self, count: int) -> EncodedConversation:
        """The same without its last `count` tokens, which are text."""
        end = len(self) - count
        return EncodedConversation(
            self.input_ids[:end], self.labels[:end], self.modality[:end], list(self.image_indices)
        )


def segments(messages: Sequence[dict[str, Any]], template: Template) -> list[Segment]:
    """Lay a conversation out as segments, numbering its images from 1 in the order in which they appear.

    The images of a user turn are shown together, in their order; several text parts of a turn are joined by a newline.
    A last user turn without an answer ends with the answer header: a prompt for generation.

    Raises ValueError, naming the message, for a conversation that the template cannot express.
    """
    turns = [(message.get("role"), *_parts(message, place)) for place, message in enumerate(messages)]
    system = None
    if turns and turns[0][0] == "system":
        _, system, images = turns.pop(0)
        if images:
            raise ValueError("message 0: a system message cannot show images; show them in a user message")
    _check_order([role for role, _, _ in turns], first=len(messages) - len(turns))

    result, fixed = template.system_segments(system), template.fixed
    number = 0
    for place, (role, text, images) in enumerate(turns):
        if role == "assistant":
            result += [Segment("text", text, supervised=True), Segment("end", supervised=True)]
            continue
        if place > 0:
            result.append(fixed(template.round_end))
        shown = []
        for index in images:
            number += 1
            shown += [
                fixed(template.image_header_for(number)),
                Segment("image", image=index),
                fixed(template.image_end),
            ]
        header = fixed(template.question_header)
        result += [header, *shown] if template.images_inside else [*shown, header]
        result += [Segment("text", text), fixed(template.answer_header)]
    return [segment for segment in result if segment.kind not in ("text", "fixed") or segment.text]


def encode(
    messages: Sequence[dict[str, Any]], tokenizer: Tokenizer, template: Template, image_tokens: int
) -> EncodedConversation:
    """Turn a conversation into tokens, labels, modality and the order of its images.

    `image_tokens` is the number of placeholders per image. Text is always encoded as plain text: a question that
    contains "<image>" or "</s>" never produces the special token.

    Raises ValueError for a conversation that the template cannot express or a tokenizer that lacks a needed token.
    """
    layout = segments(messages, template)
    texts = {
        kind: iter(tokenise(tokenizer, [part.text for part in layout if part.kind == kind], special=kind == "fixed"))
        for kind in ("text", "fixed")
    }
    encoded = EncodedConversation()
    encoded.extend(_begin(tokenizer, template), TEXT, False)
    for segment in layout:
        if segment.kind in texts:
            encoded.extend(next(texts[segment.kind]), TEXT, segment.supervised)
        elif segment.kind == "image":
            encoded.extend([image_token_id(tokenizer)] * image_tokens, IMAGE, False)
            encoded.image_indices.append(segment.image)
        else:
            encoded.extend(end_ids(tokenizer, template), TEXT, segment.supervised)
    return encoded


def render(messages: Sequence[dict[str, Any]], template: Template) -> list[tuple[str, bool]]:
    """Return a conversation as a person reads it: (text, supervised) pairs, with "<image>" for an image."""
    shown = {"image": IMAGE_TOKEN, "end": template.answer_end or _END_PREVIEW}
    return [(shown.get(segment.kind, segment.text), segment.supervised) for segment in segments(messages, template)]


def tokenise(tokenizer: Tokenizer, texts: list[str], special: bool = False) -> list[list[int]]:
    """Encode each text by itself as plain text, without any special token; with `special`, those that it names count.

    Raises ValueError if the tokenizer turns a plain text into a token that means the end or an image.
    """
    if not texts:
        return []
    # Without `split_special_tokens` a user who types "<image>" would write a placeholder no image belongs to.
    ids = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=not special, return_attention_mask=False, verbose=False
    )["input_ids"]
    reserved = {None if special else tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)} - {None}
    for text, row in zip(texts, ids, strict=True):
        if not reserved.isdisjoint(row):
            raise ValueError(
                f"the tokenizer encodes the plain text {text[:60]!r} with the token of an image or of the end of a "
                "sequence; these tokens must be marked special in tokenizer.json, so that text cannot produce them"
            )
    return ids


def image_token_id(tokenizer: Tokenizer) -> int:
    """Return the id of the image placeholder. Raises ValueError if the tokenizer has none."""
    token = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if token is None or token == getattr(tokenizer, "unk_token_id", None):
        raise ValueError(f"the tokenizer has no token {IMAGE_TOKEN!r}; use the tokenizer of a VisualChat folder")
    return token


def end_token_id(tokenizer: Tokenizer) -> int:
    """Return the id of the end-of-sequence token. Raises ValueError if the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token, so a model could not learn to stop")
    return tokenizer.eos_token_id


def end_ids(tokenizer: Tokenizer, template: Template) -> list[int]:
    """Return the tokens that close an answer. Raises ValueError if there are none."""
    if not template.answer_end:
        return [end_token_id(tokenizer)]
    return tokenise(tokenizer, [template.answer_end], template.special)[0]


def _begin(tokenizer: Tokenizer, template: Template) -> list[int]:
    return [tokenizer.bos_token_id] if template.bos and tokenizer.bos_token_id is not None else []


def count_segments(tokenizer: Tokenizer, parts: Sequence[Segment]) -> int:
    """Return the number of tokens of segments of text."""
    return sum(len(tokenise(tokenizer, [part.text], part.kind == "fixed")[0]) for part in parts if part.text)


def count_text(tokenizer: Tokenizer, text: str) -> int:
    """Return the number of tokens of a question, an answer or a header."""
    return len(tokenise(tokenizer, [text])[0])


def count_prefix(tokenizer: Tokenizer, template: Template, system: str | None = None) -> int:
    """Return the number of tokens before the first round: begin-of-sequence and system text."""
    return len(_begin(tokenizer, template)) + count_segments(tokenizer, template.system_segments(system))


def count_image(number: int, tokenizer: Tokenizer, template: Template, image_tokens: int) -> int:
    """Return the number of tokens of the image with this number (from 1): header, placeholders and end."""
    around = [template.fixed(template.image_header_for(number)), template.fixed(template.image_end)]
    return image_tokens + count_segments(tokenizer, around)


class TokenCounter:
    """Lengths of the parts of a conversation, which add up exactly to the length of `encode(...)`::

        prefix() + sum(image(k) for k in 1..images)
                 + sum(round_overhead() + texts([question])[0] + texts([answer])[0] + end() for every round)
                 + between_rounds() * (rounds - 1)

    A prompt (last question without an answer) lacks the last answer and its `end()`; a conversation with its own system
    message has `prefix(system)` in place of `prefix()`.
    """

    def __init__(self, tokenizer: Tokenizer, template: Template, image_tokens: int):
        self.tokenizer = tokenizer
        self.template = template
        self.image_tokens = image_tokens
        self._images: dict[int, int] = {}

    def prefix(self, system: str | None = None) -> int:
        """Return the tokens before the first round; `system` takes the place of the template's own."""
        return self._prefix if system is None else count_prefix(self.tokenizer, self.template, system)

    def image(self, number: int) -> int:
        """Return the tokens of the image with this number (from 1)."""
        if number not in self._images:
            self._images[number] = count_image(number, self.tokenizer, self.template, self.image_tokens)
        return self._images[number]

    def texts(self, texts: list[str]) -> list[int]:
        """Return the tokens of each text, as a question or as an answer."""
        return [len(row) for row in tokenise(self.tokenizer, list(texts))]

    def round_overhead(self) -> int:
        """Return the tokens of the two headers of a round."""
        return self._round_overhead

    def between_rounds(self) -> int:
        """Return the tokens between an answer and the next round."""
        return self._between_rounds

    def end(self) -> int:
        """Return the tokens that close an answer."""
        return self._end

    @cached_property
    def _prefix(self) -> int:
        return count_prefix(self.tokenizer, self.template)

    @cached_property
    def _round_overhead(self) -> int:
        headers = (self.template.question_header, self.template.answer_header)
        return count_segments(self.tokenizer, [self.template.fixed(text) for text in headers])

    @cached_property
    def _between_rounds(self) -> int:
        return count_segments(self.tokenizer, [self.template.fixed(self.template.round_end)])

    @cached_property
    def _end(self) -> int:
        return len(end_ids(self.tokenizer, self.template)) if self.template.answer_end else 1


def _parts(message: dict[str, Any], place: int) -> tuple[str, list[int]]:
    """Split a message into its text and the indices of its images."""
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"message {place}: role {role!r} is not system, user or assistant")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        raise ValueError(f"message {place}: content must be a text or a list of parts, not {type(content).__name__}")
    texts, images = [], []
    for part in parts:
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") == "image" and isinstance(part.get("index"), int):
            images.append(part["index"])
        else:
            raise ValueError(
                f"message {place}: a part must be {{'type': 'text', 'text': ...}} or "
                f"{{'type': 'image', 'index': number}}, not {part!r}"
            )
    text = "\n".join(text for text in texts if text)
    if role == "assistant" and images:
        raise ValueError(f"message {place}: an assistant message cannot show images")
    if role == "assistant" and not text:
        raise ValueError(f"message {place}: the answer is empty, so there is nothing to learn from it")
    if role == "user" and not text and not images:
        raise ValueError(f"message {place}: the user message is empty")
    return text, images


def _check_order(roles: list[str], first: int) -> None:
    """Raise ValueError unless user and assistant messages alternate, beginning with the user."""
    if not roles:
        raise ValueError("the conversation has no user message")
    for place, role in enumerate(roles):
        expected = ("user", "assistant")[place % 2]
        if role != expected:
            before = f"after a {roles[place - 1]} message" if place else "at the start"
            raise ValueError(f"message {first + place}: a {role} message {before}, where a {expected} message belongs")
