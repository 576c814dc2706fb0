r"""The prompt template: one conversation in, tokens, labels and image placeholders out.

Reads a conversation in the chat form of `transformers` (role, and parts `{"type": "image", "index": 0}` or
`{"type": "text", "text": ...}`) and lays it out as a list of *segments*. Every header, question and answer is a
separate segment and is tokenised separately, for two reasons: the label mask is exact, because no token can straddle
the boundary between a prompt and its answer; and token counts add up, so that a plan computes the length of any
conversation from a table of lengths of its parts (token_counter.py) without tokenising again.

With the default template a conversation about two images is written as follows, `|` marking the ends of segments:

    <s>|### Image 1:\n|<image>...<image>|\n\n|### Image 2:\n|<image>...<image>|\n\n|
    ### Question:\n|Which is red?|\n\n### Answer:\n|The first.|</s>

and a further round continues with `\n\n|### Question:\n|...`. Only `The first.` and `</s>` are supervised. With
`images: inline` the images stand where they were written, between the two headers of their question:

    <s>|### Question:\n|Is |### Image 1:\n|<image>...<image>|\n\n| or |### Image 2:\n| ...

A template may also be extracted from a chat-tuned decoder's chat template, see chat_template.py.

Pure Python: the data programs count tokens with it, and they never import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol

from .question_parts import join_texts, text_with_names

IMAGE_TOKEN = "<image>"  # noqa: S105 - not a password
IGNORE_INDEX = -100
TEXT, IMAGE = 1, 2  # values of `EncodedConversation.modality`; 0 is padding, which occurs only in batches
BEFORE, INLINE = "before", "inline"  # values of `Template.images`
# Fields that were added later, see `Template.to_dict`.
_LATER = ("system_header", "answer_end", "bos", "images", "special")


class Tokenizer(Protocol):
    """The part of a fast tokenizer of `transformers` that is used here."""

    bos_token_id: int | None
    eos_token_id: int | None

    def __call__(self, text: list[str], **options: Any) -> Any:
        """The token ids of texts, under `input_ids`."""

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """The id of a token."""


@dataclass(frozen=True)
class Template:
    """The fixed texts around questions, answers and images. `{number}` in `image_header` is an image's number from 1.

    `system` is inserted before the conversation, between `system_header` and `system_end`, unless the conversation has
    a system message. An answer is closed by `answer_end`; if that is empty, by the end-of-sequence token. With `bos`
    the tokenizer's begin-of-sequence token, if it has one, comes first. `images` is "before", where the images of a
    question are inserted before its header, or "inline", where they stay in their places in the question. With
    `special`, the fixed texts may contain special tokens of the tokenizer; the messages never do.

    Raises ValueError for another value of `images`.
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
    images: str = BEFORE
    special: bool = False

    def __post_init__(self) -> None:
        if self.images not in (BEFORE, INLINE):
            raise ValueError(f"template key 'images' must be {BEFORE!r} or {INLINE!r}, not {self.images!r}")

    def to_dict(self) -> dict[str, str | bool]:
        """Return the fields as a dictionary, ready for JSON, without later fields that have their default.

        So the hash of a template does not change when fields are added.
        """
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name not in _LATER or getattr(self, item.name) != item.default
        }

    @classmethod
    def from_dict(cls, texts: Mapping[str, Any]) -> Template:
        """Build a template from a dictionary; missing keys get their default.

        Raises ValueError for an unknown key or a value of the wrong kind.
        """
        if "images_inside" in texts:
            raise ValueError(
                "the template has the key 'images_inside' of an earlier version: in config.json and "
                'processor_config.json, write "images": "inline" for true, and remove the key for false'
            )
        types = {item.name: type(item.default) for item in fields(cls)}
        for key, value in texts.items():
            if key not in types:
                raise ValueError(f"unknown template key {key!r}; the keys are {', '.join(types)}")
            if not isinstance(value, types[key]):
                expected = "a text" if types[key] is str else "true or false"
                raise ValueError(f"template key {key!r} must be {expected}, not {type(value).__name__}")
        return cls(**texts)

    def image_header_for(self, number: int) -> str:
        """Return the header of the image with this number (from 1)."""
        return self.image_header.replace("{number}", str(number))

    def system_text(self, system: str | None = None) -> str:
        """Return the text before the conversation; `None` is the template's own, and an empty text gives nothing."""
        text = self.system if system is None else system
        return self.system_header + text + self.system_end if text else ""

    def system_segments(self, system: str | None = None) -> list[Segment]:
        """Return the text before the conversation as segments: three with `special`, one without."""
        text = self.system if system is None else system
        if not self.special or not text:
            return [Segment("text", self.system_text(system))]
        return [self.fixed(self.system_header), Segment("text", text), self.fixed(self.system_end)]

    def fixed(self, text: str) -> Segment:
        """Return a text of the template as a segment."""
        return Segment("fixed" if self.special else "text", text)


@dataclass(frozen=True)
class Segment:
    """A piece of a conversation that is tokenised separately.

    `kind` is 'text', 'fixed' (text that may hold special tokens), 'image' (`image_tokens` placeholders) or 'end' (the
    end of an answer). `image` is the "index" of the image part, and None for the other kinds. `from_message` is whether
    the text is one of the conversation, and not one of the template.
    """

    kind: str
    text: str = ""
    image: int | None = None
    supervised: bool = False
    from_message: bool = False


@dataclass
class EncodedConversation:
    """A conversation as tokens. The first three lists have one entry per token.

    `labels` equals `input_ids` where a token is supervised and -100 elsewhere; it is not shifted. `modality` is 1 for
    text and 2 for an image placeholder. `image_indices` holds the "index" of every image in reading order.
    """

    input_ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    modality: list[int] = field(default_factory=list)
    image_indices: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.input_ids)

    def extend(self, ids: list[int], modality: int, supervised: bool) -> None:
        """Append tokens of one modality."""
        self.input_ids += ids
        self.labels += ids if supervised else [IGNORE_INDEX] * len(ids)
        self.modality += [modality] * len(ids)

    def without_last(self, count: int) -> EncodedConversation:
        """A copy without the last `count` tokens, which are text."""
        end = len(self) - count
        return EncodedConversation(
            self.input_ids[:end], self.labels[:end], self.modality[:end], list(self.image_indices)
        )


def segments(messages: Sequence[dict[str, Any]], template: Template) -> list[Segment]:
    """Lay a conversation out as segments, numbering its images from 1 in reading order.

    Neighbouring text parts of a turn are joined by a newline. Between a text and an image nothing is inserted: with
    `images: inline` every piece of text is a segment of its own, and images stand between them; with `images: before`
    the images come before the question, whose text names those inside its sentences, see `text_with_names`. There an
    empty first text part marks the beginning of a question that begins with an image: the image may then be part of the
    first sentence, and blanks behind it are none of the text. The answer of a message with `"supervised": False` is not
    supervised. A last user turn without an answer ends with the answer header: a prompt for generation.

    Raises ValueError, naming the message, for a conversation that the template cannot express.
    """
    turns = [_parse_message(message, index) for index, message in enumerate(messages)]
    system = None
    if turns and turns[0].role == "system":
        first = turns.pop(0)
        system = first.text
        if first.images:
            raise ValueError("message 0: a system message cannot show images; show them in a user message")
    _check_order([turn.role for turn in turns], first=len(messages) - len(turns))

    result = template.system_segments(system)
    shown = 0
    for position, turn in enumerate(turns):
        if turn.role == "assistant":
            result += [_message_text(turn.text, turn.supervised), Segment("end", supervised=turn.supervised)]
            continue
        if position > 0:
            result.append(template.fixed(template.round_end))
        result += _question_segments(turn.parts, shown, template)
        shown += len(turn.images)
    return [segment for segment in result if segment.kind not in ("text", "fixed") or segment.text]


def _question_segments(parts: Sequence[str | int], shown: int, template: Template) -> list[Segment]:
    """A question from its first header to the answer header, after `shown` images; `parts` hold indices of images."""
    fixed = template.fixed
    images = {
        number: [
            fixed(template.image_header_for(number)),
            Segment("image", image=index),
            fixed(template.image_end),
        ]
        for number, index in enumerate((part for part in parts if isinstance(part, int)), start=shown + 1)
    }
    numbers = iter(images)
    numbered = [next(numbers) if isinstance(part, int) else part for part in parts]
    header, answer_header = fixed(template.question_header), fixed(template.answer_header)
    if template.images == BEFORE:
        before = [segment for image in images.values() for segment in image]
        return [*before, header, _message_text(text_with_names(numbered)), answer_header]
    content: list[Segment] = []
    for part in join_texts(numbered):
        content += images[part] if isinstance(part, int) else [_message_text(part)]
    return [header, *content, answer_header]


def _message_text(text: str, supervised: bool = False) -> Segment:
    return Segment("text", text, supervised=supervised, from_message=True)


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
    encoded.extend(begin_ids(tokenizer, template), TEXT, False)
    for segment in layout:
        if segment.kind in texts:
            encoded.extend(next(texts[segment.kind]), TEXT, segment.supervised)
        elif segment.image is not None:
            encoded.extend([image_token_id(tokenizer)] * image_tokens, IMAGE, False)
            encoded.image_indices.append(segment.image)
        else:
            encoded.extend(end_ids(tokenizer, template), TEXT, segment.supervised)
    return encoded


def render(messages: Sequence[dict[str, Any]], template: Template, end: str = "</s>") -> list[tuple[str, bool]]:
    """Return a conversation as readable text: (text, supervised) pairs, with "<image>" for an image.

    `end` is the text of the end-of-sequence token, for templates without a text of their own that closes an answer.
    """
    shown = {"image": IMAGE_TOKEN, "end": template.answer_end or end}
    return [(shown.get(segment.kind, segment.text), segment.supervised) for segment in segments(messages, template)]


def message_text(message: Mapping[str, Any], shown: int = 0) -> str:
    """Return the text of a message for a reader, after `shown` images: a question as with `images: before`.

    Raises ValueError for a message that the template cannot express.
    """
    turn = _parse_message(dict(message), 0)
    numbers = iter(range(shown + 1, shown + 1 + len(turn.images)))
    return text_with_names([next(numbers) if isinstance(part, int) else part for part in turn.parts])


def tokenise(tokenizer: Tokenizer, texts: list[str], special: bool = False) -> list[list[int]]:
    """Encode each text separately, as plain text; with `special`, special tokens that it names are encoded as such.

    Raises ValueError if the tokenizer turns a plain text into the end-of-sequence token or the image placeholder.
    """
    if not texts:
        return []
    # Without `split_special_tokens` a user who types "<image>" would produce a placeholder without an image.
    ids = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=not special, return_attention_mask=False, verbose=False
    )["input_ids"]
    reserved = {None if special else tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)} - {None}
    for text, row in zip(texts, ids, strict=True):
        if not reserved.isdisjoint(row):
            raise ValueError(
                f"the tokenizer encodes the plain text {text[:60]!r} with the image placeholder or the end-of-sequence "
                "token; these must be marked special in tokenizer.json, so that text cannot produce them"
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


def begin_ids(tokenizer: Tokenizer, template: Template) -> list[int]:
    """Return the begin-of-sequence token, or nothing."""
    return [tokenizer.bos_token_id] if template.bos and tokenizer.bos_token_id is not None else []


class _Turn(NamedTuple):
    """A message: its role, its texts and the indices of its images in their order, and whether it is trained on."""

    role: str
    parts: list[str | int]
    supervised: bool

    @property
    def text(self) -> str:
        return "\n".join(part for part in self.parts if isinstance(part, str) and part)

    @property
    def images(self) -> list[int]:
        return [part for part in self.parts if isinstance(part, int)]


def _parse_message(message: dict[str, Any], number: int) -> _Turn:
    """Validate a message and take it apart. Raises ValueError, naming the message by its `number`."""
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"message {number}: role {role!r} is not system, user or assistant")
    parts: Any = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, Sequence):
        raise ValueError(f"message {number}: content must be a text or a list of parts, not {type(content).__name__}")
    found: list[str | int] = []
    for part in parts:
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            found.append(part["text"])
        elif part.get("type") == "image" and isinstance(part.get("index"), int):
            found.append(part["index"])
        else:
            raise ValueError(
                f"message {number}: a part must be {{'type': 'text', 'text': ...}} or "
                f"{{'type': 'image', 'index': number}}, not {part!r}"
            )
    turn = _Turn(role, found, message.get("supervised", True))
    if not isinstance(turn.supervised, bool):
        raise ValueError(f"message {number}: 'supervised' must be true or false, not {turn.supervised!r}")
    if role == "assistant" and turn.images:
        raise ValueError(f"message {number}: an assistant message cannot show images")
    if role == "assistant" and not turn.text:
        raise ValueError(f"message {number}: the answer is empty, so there is nothing to learn from it")
    if role == "user" and not turn.text and not turn.images:
        raise ValueError(f"message {number}: the user message is empty")
    return turn


def _check_order(roles: list[str], first: int) -> None:
    """Raise ValueError unless user and assistant messages alternate, beginning with the user."""
    if not roles:
        raise ValueError("the conversation has no user message")
    for index, role in enumerate(roles):
        expected = ("user", "assistant")[index % 2]
        if role != expected:
            before = f"after a {roles[index - 1]} message" if index else "at the start"
            raise ValueError(f"message {first + index}: a {role} message {before}; expected a {expected} message")
