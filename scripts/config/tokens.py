"""Settings that determine the number of tokens of a conversation (read by `count_tokens`)."""

from typing import Annotated, Final, Literal

from pydantic import Discriminator, Field, Tag

from model.template import Template
from scripts.config.base import Section
from scripts.config.paths import FolderOrName

_DEFAULT = Template()
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
    image_header: str = _DEFAULT.image_header
    """Text before an image; `{number}` is replaced by its number in the conversation, from 1."""
    image_end: str = _DEFAULT.image_end
    """Text after an image."""
    question_header: str = _DEFAULT.question_header
    """Text before a question."""
    answer_header: str = _DEFAULT.answer_header
    """Text between a question and its answer."""
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

    def template(self) -> Template:
        """The template with these texts."""
        return Template.from_dict(self.model_dump())


class TokensConfig(Section):
    """How conversations become tokens. Blends and models name it; a model whose processor differs is refused."""

    tokenizer: FolderOrName
    """`miniature` (made by the workflow), or the folder or hub name of the language model's tokenizer."""
    image_tokens: Annotated[int, Field(ge=1)]
    """Tokens per image: as many as the vision encoder and projector of the model produce (CLIP ViT-L/14 at 224 pixels:
    257; Qwen: 256)."""
    template: Annotated[
        Annotated[Literal["paper", "chat"], Tag("<name>")] | Annotated[TemplateTexts, Tag("<texts>")],
        # Otherwise an error in a text is reported for both forms.
        Discriminator(lambda value: "<name>" if isinstance(value, str) else "<texts>"),
    ] = PAPER
    """`paper`: the texts of DeepSpeed-VisualChat, with the images before the questions; `chat`: the chat template of
    the tokenizer, with the images inline; or the texts themselves. Change it only before training: a model answers well
    only with the template of its training."""
    max_images: Annotated[int, Field(ge=1, le=64)] = 8
    """Largest image number that is counted; at least the `max_images` of every blend that uses this entry."""
