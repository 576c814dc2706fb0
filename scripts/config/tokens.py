"""Settings that determine the number of tokens of a conversation (read by `count_tokens`)."""

from typing import Annotated, Final, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from model.template import Template
from scripts.config.base import Section
from scripts.config.paths import FolderOrName

_DEFAULT = Template()
AUTO: Final = "auto"
PAPER: Final = "paper"
CHAT: Final = "chat"


class TemplateTexts(Section):
    """The fixed texts around questions, answers and images. A model is trained and used with one template."""

    system: str = _DEFAULT.system
    """Instruction at the start of every conversation. Empty: none; a long one adds its tokens to every conversation."""
    system_header: str = _DEFAULT.system_header
    """Text before the instruction."""
    system_end: str = _DEFAULT.system_end
    """Text between the instruction and the first round."""
    system_inside: bool = _DEFAULT.system_inside
    """Whether the instruction is part of the first question, whose header is then at the end of `system_header`."""
    without_system: str = _DEFAULT.without_system
    """Text at the start of a conversation without an instruction."""
    image_header: str = _DEFAULT.image_header
    """Text before an image; `{number}` is replaced by its number in the conversation, from 1."""
    image_end: str = _DEFAULT.image_end
    """Text after an image."""
    question_header: str = _DEFAULT.question_header
    """Text before a question."""
    answer_header: str = _DEFAULT.answer_header
    """Text between a question and its answer."""
    last_answer_header: str = _DEFAULT.last_answer_header
    """The same before the last answer of a conversation, and at the end of a prompt. Empty: as before other answers."""
    answer_start: str = _DEFAULT.answer_start
    """Text before an answer that is trained on as part of it: the blank that a model generates."""
    answer_end: str = _DEFAULT.answer_end
    """Text that closes an answer. Empty: the end-of-sequence token."""
    round_end: str = _DEFAULT.round_end
    """Text between an answer and the next round."""
    bos: bool = _DEFAULT.bos
    """Whether the tokenizer's begin-of-sequence token, if it has one, comes first."""
    images: Literal["before", "inline"] = "before"
    """`before`: the images of a question come before its header, and its text names those inside its sentences;
    `inline`: they stay in their places in the question."""
    special: bool = _DEFAULT.special
    """Whether these texts may contain special tokens of the tokenizer; the texts of conversations never do."""
    strip: bool = _DEFAULT.strip
    """Whether texts of conversations lose blanks and newlines at their edges."""
    joined: bool = _DEFAULT.joined
    """Whether texts that stand beside each other are tokenised together, as chat-tuned models read them; else each by
    itself. Needs `images: inline`."""

    @model_validator(mode="after")
    def _check_texts(self) -> Self:
        self.template()
        return self

    def template(self) -> Template:
        """The template with these texts.

        Raises:
            ValueError: some of them do not go together.
        """
        return Template.from_dict(self.model_dump())


class TokensConfig(Section):
    """How conversations become tokens. Blends and models name it; a model whose processor differs is refused."""

    tokenizer: FolderOrName = AUTO
    """`auto`: that of the decoder of the models that name this entry; or `miniature` (made by the workflow), or the
    folder or hub name of the decoder's tokenizer."""
    image_tokens: Annotated[int, Field(ge=0)] = 0
    """Tokens per image: as many as the vision encoder and projector of the model produce (CLIP ViT-L/14 at 224 pixels:
    256, 257 with its class token). 0: derived from the models that name this entry."""
    template: Annotated[
        Annotated[Literal["auto", "paper", "chat"], Tag("<name>")] | Annotated[TemplateTexts, Tag("<texts>")],
        # Otherwise an error in a text is reported for both forms.
        Discriminator(lambda value: "<name>" if isinstance(value, str) else "<texts>"),
    ] = AUTO
    """`chat`: the chat template of the tokenizer, with the images inline; `paper`: the texts of DeepSpeed-VisualChat,
    with the images before the questions; or the texts themselves; `auto`: `chat` if the tokenizer has a chat template,
    else `paper`. Change it only before training: a model answers well only with the template of its training."""
    max_images: Annotated[int, Field(ge=1, le=64)] = 8
    """Largest image number that is counted; at least the `max_images` of every blend that uses this entry."""


class CompleteTokensConfig(TokensConfig):
    """`TokensConfig` as programs read it: nothing is left to be derived."""

    tokenizer: FolderOrName
    image_tokens: Annotated[int, Field(ge=1)]
