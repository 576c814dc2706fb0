"""Settings of `count_tokens`: what a conversation costs in tokens depends on these and on nothing else."""

from typing import Annotated

from pydantic import Field

from model.template import Template
from scripts.config.base import Section

_DEFAULT = Template()


class TemplateTexts(Section):
    """The fixed texts around questions, answers and images. A model is trained and used with one template."""

    system: str = _DEFAULT.system
    """Instruction said once at the start of every conversation. Empty says nothing; a long one costs tokens each
    time."""
    system_end: str = _DEFAULT.system_end
    """Text between the instruction and the first round."""
    image_header: str = _DEFAULT.image_header
    """Text before an image; `{number}` becomes its number in the conversation, from 1."""
    image_end: str = _DEFAULT.image_end
    """Text after an image."""
    question_header: str = _DEFAULT.question_header
    """Text before a question."""
    answer_header: str = _DEFAULT.answer_header
    """Text between a question and its answer."""
    round_end: str = _DEFAULT.round_end
    """Text between an answer and the next round."""

    def template(self) -> Template:
        """The template of the model with these texts."""
        return Template.from_dict(self.model_dump())


class TokensConfig(Section):
    """A way of counting. Blends and models name it, and a model whose processor counts differently is refused."""

    tokenizer: str
    """`miniature` (made by this workflow), or a folder or hub name of a `transformers` tokenizer: that of the language
    model."""
    image_tokens: Annotated[int, Field(ge=1)]
    """Places one image takes: what the vision encoder and projector of the model produce (CLIP ViT-L/14 at 224: 257;
    Qwen: 256)."""
    template: TemplateTexts = TemplateTexts()
    """Fixed texts of the prompt. Change them only before training: a model answers well only in the form it has
    seen."""
    max_images: Annotated[int, Field(ge=1, le=64)] = 8
    """Highest image number that is counted; at least the `max_images` of every blend that uses this table."""
