"""The parts that a model is joined from: an encoder's and a decoder's folders, loaded strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from .configuration import VisualChatConfig
from .decoders import check_decoder_supported
from .processing import add_image_token, image_side, load_image_processor
from .template import Template, end_ids, image_token_id
from .vision import VisionTower


def load_base_models(
    vision_folder: Path,
    language_folder: Path,
    tokenizer: Any,
    dtype: torch.dtype | None,
    keep_language_dtype: bool = False,
) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Load encoder and decoder; `tokenizer` gets the image placeholder, and the decoder's embedding a row for it.

    `keep_language_dtype`: the decoder keeps the dtype that its folder names, which `dtype` may not be.

    Raises ValueError for a folder that lacks weights, or a decoder that cannot be used.
    """
    vision_config = AutoConfig.from_pretrained(vision_folder)
    vision_config = getattr(vision_config, "vision_config", vision_config)
    check_decoder_supported(AutoConfig.from_pretrained(language_folder))
    language = _load_strictly(
        AutoModelForCausalLM, language_folder, dtype="auto" if keep_language_dtype else dtype or "auto"
    )
    encoder = _load_strictly(AutoModel, vision_folder, config=vision_config, dtype=dtype or language.dtype)
    add_image_token(tokenizer)
    if len(tokenizer) > language.get_input_embeddings().num_embeddings:
        language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for table in (language.get_input_embeddings(), language.get_output_embeddings()):
            # These are no longer what is stored, and their new rows must not be rounded to it.
            table.to(dtype or language.dtype)
    language.config.name_or_path = encoder.config.name_or_path = ""  # a folder must not depend on where it was made
    return encoder, language


def joined_config(
    vision_folder: Path,
    encoder: PreTrainedModel,
    language: PreTrainedModel,
    tokenizer: Any,
    template: Template | dict[str, str] | None,
    options: dict[str, Any],
) -> VisualChatConfig:
    """The configuration of a model joined from two parts; `options` are fields of `VisualChatConfig`."""
    images = load_image_processor(vision_folder)
    config = VisualChatConfig(
        vision_config=encoder.config,
        text_config=language.config,
        image_size=image_side(images),
        image_token_id=image_token_id(tokenizer),
        image_mean=images.image_mean if images.do_normalize else [0.0] * 3,
        image_std=images.image_std if images.do_normalize else [1.0] * 3,
        template=template.to_dict() if isinstance(template, Template) else template,
        tie_word_embeddings=language.config.tie_word_embeddings,
        # Without it the library would set the attention of both parts to nothing.
        attn_implementation={"vision_config": encoder.config._attn_implementation},
        **options,
    )
    side = config.image_size
    with torch.no_grad():
        config.vision_tokens = VisionTower(config, encoder)(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape[1]
    return config


def generation_defaults(tokenizer: Any, config: VisualChatConfig) -> GenerationConfig:
    """How a model generates unless told otherwise: until an answer is closed, and never an image placeholder."""
    ends = {tokenizer.eos_token_id, end_ids(tokenizer, Template.from_dict(config.template))[-1]} - {None}
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted(ends) if len(ends) > 1 else tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        suppress_tokens=[config.image_token_id],
    )


def check_loading_info(folder: str | Path, info: dict[str, Any], kinds: tuple[str, ...]) -> None:
    """Raise ValueError if loading `folder` left weights over or without a value."""
    for kind in kinds:
        if info[kind]:
            names = ", ".join(sorted(map(str, info[kind]))[:5])
            raise ValueError(f"{folder}: the weights do not fit the configuration, {kind.replace('_', ' ')}: {names}")


def _load_strictly(auto_class: Any, folder: Path, **options: Any) -> PreTrainedModel:
    """Load an ordinary folder; ValueError if it lacks a weight, which the library would fill with random numbers."""
    model, info = auto_class.from_pretrained(folder, output_loading_info=True, **options)
    check_loading_info(folder, info, ("missing_keys", "mismatched_keys"))
    return model
