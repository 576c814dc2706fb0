"""Settings that determine the number of tokens of a conversation (read by `count_tokens`)."""

from typing import Annotated

from pydantic import Field

from model.template import Template
from scripts.config.base import Section
from scripts.config.paths import FolderOrName

_DEFAULT = Template()


class TemplateTexts(Section):
    """The fixed texts around questions, answers and images. A model is trained and used with one template."""

    system: str = _DEFAULT.system
    """Instruction at the start of every conversation. Empty: none; a long one adds its tokens to every conversation."""
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
    round_end: str = _DEFAULT.round_end
    """Text between an answer and the next round."""

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
    template: TemplateTexts = TemplateTexts()
    """Fixed texts of the prompt. Change them only before training: a model answers well only with the template of its
    training."""
    max_images: Annotated[int, Field(ge=1, le=64)] = 8
    """Largest image number that is counted; at least the `max_images` of every blend that uses this entry."""
