"""Loads an exported model for generation: full or delta, on one device or spread over several, quantised or not."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import BitsAndBytesConfig
from transformers.utils import logging

from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from scripts.common.errors import UserError
from scripts.common.verified_folder import check_folder
from scripts.inference.model_assembly import DELTA, load_delta


def load_model(
    folder: Path, device: str = "auto", bits: int | None = None
) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
    """Load an exported model and its processor, ready to generate.

    Args:
        folder: what `export` wrote, in full or as a delta.
        device: 'auto' for the first GPU if there is one, 'cpu', 'cuda', or 'spread' over all GPUs and, if their memory
            is too small, the CPU.
        bits: 8 or 4 to load the language model's linear layers in that many bits (bitsandbytes); `None` for all bits.

    Raises:
        UserError: the folder holds no exported model or a damaged one, the device is not available, or a delta is to be
            spread or quantised.
    """
    check_folder(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"there is no model in {folder}: name a folder that `export` wrote, such as exported/RUN/final")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but PyTorch sees no GPU here; use cpu or auto")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    options: dict[str, Any] = {"device_map": "auto"} if device == "spread" else {}
    if bits is not None:
        options |= {"device_map": "auto", "quantization_config": _quantised(bits)}
    try:
        if (folder / DELTA).is_file():
            if options:
                raise UserError(f"{folder} holds a delta; export the run with --form full to spread or quantise it")
            model, processor = load_delta(folder)
        else:
            processor = VisualChatProcessor.from_pretrained(folder)
            model = VisualChatForConditionalGeneration.from_pretrained(folder, dtype="auto", **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"the model in {folder} cannot be loaded: {error}") from None
    return (model if options else model.to(device)).eval(), processor


def _quantised(bits: int) -> BitsAndBytesConfig:
    """The language model's linear layers in 8 or 4 bits; encoder, projector, embeddings and head are unchanged."""
    kept = ["vision_tower", "projector", "lm_head"]
    if bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=kept,
    )
