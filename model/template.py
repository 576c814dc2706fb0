r"""The prompt template: one conversation in, tokens, labels and image placeholders out.

Lays a conversation in the chat form of `transformers` (messages.py) out as a list of *segments*. Every header, question
and answer is tokenised separately, for two reasons: the label mask is exact, because no token can straddle the boundary
between a prompt and its answer; and token counts add up, so that a plan computes the length of any conversation from a
table of lengths of its parts (token_counter.py) without tokenising again.

With the default template a conversation about two images is written as follows, `|` marking the ends of segments:

    <s>|### Image 1:\n|<image>...<image>|\n\n|### Image 2:\n|<image>...<image>|\n\n|
    ### Question:\n|Which is red?|\n\n### Answer:\n|The first.|</s>

and a further round continues with `\n\n|### Question:\n|...`. Only `The first.` and `</s>` are supervised. With
`images: inline` the images stand where they were written, between the two headers of their question:

    <s>|### Question:\n|Is |### Image 1:\n|<image>...<image>|\n\n| or |### Image 2:\n| ...

A template may also be extracted from a chat-tuned decoder's chat template, see chat_template.py. It is `joined`: there
the texts are tokenised together up to the next special token, as the decoder was tuned, see joined_tokens.py.

Pure Python: the data programs count tokens with it, and they never import torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from .joined_tokens import Piece, tokenised_pieces
from .messages import check_order, parse_message
from .question_parts import join_texts, text_with_names

IMAGE_TOKEN = "<image>"  # noqa: S105 - not a password
IGNORE_INDEX = -100
TEXT, IMAGE = 1, 2  # values of `EncodedConversation.modality`; 0 is padding, which occurs only in batches
BEFORE, INLINE = "before", "inline"  # values of `Template.images`
# The first fields; for the others see `Template.to_dict`.
_FIRST = ("system", "system_end", "image_header", "image_end", "question_header", "answer_header", "round_end")
PROMPT, ANSWER, IMAGE_PART, LEADING_IMAGE = "prompt", "answer", "image", "leading image"  # of `Segment.part`


class Tokenizer(Protocol):
    """The part of a fast tokenizer of `transformers` that is used here."""

    bos_token_id: int | None
    eos_token_id: int | None
    eos_token: str | None

    def __call__(self, text: list[str], **options: Any) -> Any:
        """The token ids of texts, under `input_ids`."""

    def convert_tokens_to_ids(self, tokens: str) -> int | None:
        """The id of a token."""


@dataclass(frozen=True)
class Template:
    """The fixed texts around questions, answers and images. `{number}` in `image_header` is an image's number from 1.

    `system` is inserted before the conversation, between `system_header` and `system_end`, unless the conversation has
    a system message; `without_system` comes first where there is neither. With `system_inside` the system text is part
    of the first question, so that `system_header` holds the header of that question. An answer is closed by
    `answer_end`; if that is empty, by the end-of-sequence token. `answer_start` comes before an answer and is
    supervised with it: the blank that a model generates. `last_answer_header`, if not empty, takes the place of
    `answer_header` before the last answer, and in a prompt. With `bos` the tokenizer's begin-of-sequence token, if it
    has one, comes first. `images` is "before", where the images of a question are inserted before its header, or
    "inline", where they stay in their places in the question. With `special`, the fixed texts may contain special
    tokens of the tokenizer; the messages never do. With `strip`, messages lose blanks and newlines at their edges. With
    `joined`, texts that stand beside each other are tokenised together; else every text by itself.

    Raises ValueError for another value of `images`, or `joined` with images before the questions.
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
    without_system: str = ""
    system_inside: bool = False
    last_answer_header: str = ""
    answer_start: str = ""
    strip: bool = False
    joined: bool = False

    def __post_init__(self) -> None:
        if self.images not in (BEFORE, INLINE):
            raise ValueError(f"template key 'images' must be {BEFORE!r} or {INLINE!r}, not {self.images!r}")
        if self.joined and self.images != INLINE:
            raise ValueError(f"template key 'joined' needs 'images': {INLINE!r}")

    def to_dict(self) -> dict[str, str | bool]:
        """Return the fields as a dictionary, ready for JSON, without later fields that have their default.

        So the hash of a template does not change when fields are added.
        """
        return {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name in _FIRST or getattr(self, item.name) != item.default
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
        """Return the text before the conversation; `None` is the template's own, an empty text means none."""
        text = self._system(system)
        return self.system_header + text + self.system_end if text else self.without_system

    def system_segments(self, system: str | None = None) -> list[Segment]:
        """Return the text before the conversation as segments: three with `special`, one without."""
        text = self._system(system)
        if not text:
            return [self.fixed(self.without_system)]
        if not self.special:
            return [Segment("text", self.system_text(system))]
        return [self.fixed(self.system_header), Segment("text", text), self.fixed(self.system_end)]

    def has_system(self, system: str | None = None) -> bool:
        """Whether a system text is written; `None` is the template's own."""
        return bool(self._system(system))

    def header_before_answer(self, last: bool) -> str:
        """Return the text between a question and its answer; `last` is whether no other answer comes later."""
        return self.last_answer_header if last and self.last_answer_header else self.answer_header

    def fixed(self, text: str, part: str = PROMPT, supervised: bool = False) -> Segment:
        """Return a text of the template as a segment."""
        return Segment("fixed" if self.special else "text", text, supervised=supervised, part=part)

    def message(self, text: str) -> str:
        """Return the text of a message as it is written."""
        return text.strip() if self.strip else text

    def _system(self, system: str | None) -> str:
        return self.message(self.system if system is None else system)


@dataclass(frozen=True)
class Segment:
    """A piece of a conversation that is tokenised separately.

    `kind` is 'text', 'fixed' (text that may hold special tokens), 'image' (`image_tokens` placeholders) or 'end' (the
    end of an answer). `image` is the "index" of the image part, and None for the other kinds. `from_message` is whether
    the text is one of the conversation, and not one of the template. `part` is what a segment belongs to: 'prompt',
    'answer', or an image: 'leading image' at the beginning of a question, else 'image'.
    """

    kind: str
    text: str = ""
    image: int | None = None
    supervised: bool = False
    from_message: bool = False
    part: str = PROMPT


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
    turns = [parse_message(message, index) for index, message in enumerate(messages)]
    system = None
    if turns and turns[0].role == "system":
        first = turns.pop(0)
        system = first.text
        if first.images:
            raise ValueError("message 0: a system message cannot show images; show them in a user message")
    check_order([turn.role for turn in turns], first=len(messages) - len(turns))

    result = template.system_segments(system)
    shown = 0
    for position, turn in enumerate(turns):
        if turn.role == "assistant":
            result += answer_segments(turn.text, template, turn.supervised)
            continue
        if position > 0:
            result.append(template.fixed(template.round_end))
        inside = position == 0 and template.system_inside and template.has_system(system)
        result += question_segments(turn.parts, template, shown, header=not inside, last=position + 2 >= len(turns))
        shown += len(turn.images)
    return [segment for segment in result if segment.kind not in ("text", "fixed") or segment.text]


def question_segments(
    parts: Sequence[str | int], template: Template, shown: int = 0, header: bool = True, last: bool = False
) -> list[Segment]:
    """A question from its first header to the answer header, after `shown` images; `parts` hold indices of images.

    `header` is whether it has its first header, `last` whether its answer is the last of the conversation.
    """
    fixed = template.fixed
    first_text = next((place for place, part in enumerate(parts) if isinstance(part, str) and part), len(parts))
    images = {}
    for number, place in enumerate((n for n, part in enumerate(parts) if isinstance(part, int)), start=shown + 1):
        kind = LEADING_IMAGE if place < first_text else IMAGE_PART
        images[number] = [
            fixed(template.image_header_for(number), kind),
            Segment("image", image=int(parts[place]), part=kind),
            fixed(template.image_end, kind),
        ]
    numbers = iter(images)
    numbered = [next(numbers) if isinstance(part, int) else part for part in parts]
    begin = [fixed(template.question_header)] if header else []
    end = fixed(template.header_before_answer(last))
    if template.images == BEFORE:
        before = [segment for image in images.values() for segment in image]
        return [*before, *begin, _message_text(template.message(text_with_names(numbered))), end]
    joined = join_texts(numbered)
    if template.strip:
        joined[:1] = [part.lstrip() if isinstance(part, str) else part for part in joined[:1]]
        joined[-1:] = [part.rstrip() if isinstance(part, str) else part for part in joined[-1:]]
    content: list[Segment] = []
    for part in joined:
        content += images[part] if isinstance(part, int) else [_message_text(part)]
    return [*begin, *content, end]


def answer_segments(text: str, template: Template, supervised: bool = True) -> list[Segment]:
    """An answer and what closes it."""
    return [
        template.fixed(template.answer_start, ANSWER, supervised),
        Segment("text", template.message(text), supervised=supervised, from_message=True, part=ANSWER),
        Segment("end", supervised=supervised, part=ANSWER),
    ]


def _message_text(text: str) -> Segment:
    return Segment("text", text, from_message=True)


def encode(
    messages: Sequence[dict[str, Any]], tokenizer: Tokenizer, template: Template, image_tokens: int
) -> EncodedConversation:
    """Turn a conversation into tokens, labels, modality and the order of its images.

    `image_tokens` is the number of placeholders per image. Text is always encoded as plain text: a question that
    contains "<image>" or "</s>" never produces the special token.

    Raises ValueError for a conversation that the template cannot express or a tokenizer that lacks a needed token.
    """
    return encode_segments(segments(messages, template), tokenizer, template, image_tokens)


def encode_segments(
    layout: Sequence[Segment], tokenizer: Tokenizer, template: Template, image_tokens: int
) -> EncodedConversation:
    """Turn the segments of a conversation into tokens, see `encode`."""
    encoded = EncodedConversation()
    encoded.extend(begin_ids(tokenizer, template), TEXT, False)
    for piece, ids in tokenised(layout, tokenizer, template):
        if piece.image is not None:
            encoded.extend([image_token_id(tokenizer)] * image_tokens, IMAGE, False)
            encoded.image_indices.append(piece.image)
        else:
            encoded.extend(ids, TEXT, piece.supervised)
    return encoded


def tokenised(layout: Sequence[Segment], tokenizer: Tokenizer, template: Template) -> list[tuple[Piece, list[int]]]:
    """What is tokenised together, in order, and its tokens; an image has none here.

    Raises ValueError for a tokenizer that lacks a needed token.
    """
    if template.joined:
        return tokenised_pieces(layout, tokenizer, template)
    texts = {
        kind: iter(tokenise(tokenizer, [part.text for part in layout if part.kind == kind], special=kind == "fixed"))
        for kind in ("text", "fixed")
    }
    result = []
    for segment in layout:
        text, ids = segment.text, []
        if segment.kind in texts:
            ids = next(texts[segment.kind])
        elif segment.kind == "end":
            ids = end_ids(tokenizer, template)
            text = template.answer_end or tokenizer.eos_token or ""
        result.append((Piece(((segment, text),), image=segment.image), ids))
    return result


def render(messages: Sequence[dict[str, Any]], template: Template, end: str = "</s>") -> list[tuple[str, bool]]:
    """Return a conversation as readable text: (text, supervised) pairs, with "<image>" for an image.

    `end` is the text of the end-of-sequence token, for templates without a text of their own that closes an answer.
    """
    return render_segments(segments(messages, template), template, end)


def render_segments(layout: Sequence[Segment], template: Template, end: str = "</s>") -> list[tuple[str, bool]]:
    """Return the segments of a conversation as readable text, see `render`."""
    shown = {"image": IMAGE_TOKEN, "end": template.answer_end or end}
    return [(shown.get(segment.kind, segment.text), segment.supervised) for segment in layout]


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


def end_ids(tokenizer: Tokenizer, template: Template) -> list[int]:
    """Return the tokens that close an answer. Raises ValueError if there are none."""
    if not template.answer_end:
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end-of-sequence token, so a model could not learn to stop")
        return [tokenizer.eos_token_id]
    return tokenise(tokenizer, [template.answer_end], template.special)[0]


def begin_ids(tokenizer: Tokenizer, template: Template) -> list[int]:
    """Return the begin-of-sequence token, or nothing."""
    return [tokenizer.bos_token_id] if template.bos and tokenizer.bos_token_id is not None else []
