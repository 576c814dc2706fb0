"""The base models that a model is joined from: the folders of an encoder and of a decoder, loaded strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from .configuration import VisualChatConfig
from .decoders import check_decoder_supported
from .encoder_loading import encoder_config, load_strictly, vision_options
from .processing import add_image_token, load_image_processor
from .template import Template, end_ids, image_token_id
from .vision import VisionTower


def load_base_models(
    vision_folder: Path,
    language_folder: Path,
    tokenizer: Any,
    dtype: torch.dtype | None,
    keep_language_dtype: bool = False,
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Load encoder and decoder; add the image placeholder to `tokenizer`, and a row for it to the decoder's embedding.

    `dtype` None is the decoder's own. With `keep_language_dtype` the decoder keeps its own whatever `dtype` is.

    Raises ValueError for a folder that lacks weights, or a decoder whose attention is not supported.
    """
    vision_config = encoder_config(vision_folder)
    check_decoder_supported(AutoConfig.from_pretrained(language_folder))
    language = load_strictly(
        AutoModelForCausalLM, language_folder, dtype="auto" if keep_language_dtype else dtype or "auto"
    )
    encoder = load_strictly(AutoModel, vision_folder, config=vision_config, dtype=dtype or language.dtype)
    add_image_token(tokenizer)
    if len(tokenizer) > language.get_input_embeddings().num_embeddings:
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for table in (language.get_input_embeddings(), language.get_output_embeddings()):
            # They differ from the stored tables now, and their new rows must not be rounded to the stored dtype.
            table.to(dtype or language.dtype)
    language.config.name_or_path = encoder.config.name_or_path = ""  # a folder must not depend on where its bases were
    return encoder, language


def joined_config(
    vision_folder: Path,
    encoder: PreTrainedModel,
    language: PreTrainedModel,
    tokenizer: Any,
    template: Template | dict[str, str | bool] | None,
    options: dict[str, Any],
) -> VisualChatConfig:
    """The configuration of a model joined from two parts; `options` are fields of `VisualChatConfig`.

    Raises ValueError if the image processor of `vision_folder` does not make squares, or for an invalid option.
    """
    vision = vision_options(encoder, load_image_processor(vision_folder))
    config = VisualChatConfig(
        text_config=language.config,
        image_token_id=image_token_id(tokenizer),
        template=template.to_dict() if isinstance(template, Template) else template,
        tie_word_embeddings=language.config.tie_word_embeddings,
        **vision,
        **options,
    )
    side = vision["image_size"]
    with torch.no_grad():
        config.vision_tokens = VisionTower(config, encoder)(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape[1]
    return config


def generation_defaults(
    tokenizer: Any, config: VisualChatConfig, language: GenerationConfig | None = None
) -> GenerationConfig:
    """The default options of generation: stop where an answer is closed, and never generate an image placeholder.

    `language` are the options of the decoder, which may know more tokens that close an answer.
    """
    theirs = language.eos_token_id if language is not None else None
    ends = {tokenizer.eos_token_id, end_ids(tokenizer, Template.from_dict(config.template or {}))[-1]} - {None}
    ends |= set(theirs if isinstance(theirs, list) else []) | ({theirs} if isinstance(theirs, int) else set())
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(ends) if len(ends) > 1 else tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        suppress_tokens=[config.image_token_id],
    )
