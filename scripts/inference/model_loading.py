"""Loads an exported model for generation: full or delta, on one device or spread over several, quantised or not."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from scripts.common.errors import UserError
from scripts.common.verified_folder import check_folder
from scripts.inference.model_assembly import DELTA, load_delta
from scripts.inference.quantization import check_bitsandbytes, exported_config


def load_model(
    folder: Path, device: str = "auto", bits: int | None = None
) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
    """Load an exported model and its processor, ready to generate.

    Args:
        folder: what `export` wrote, in full or as a delta.
        device: 'auto' for the first GPU if there is one, 'cpu', 'cuda', or 'spread' over all GPUs and, if their memory
            is too small, the CPU.
        bits: 8 or 4 to load the decoder's linear layers in that many bits (bitsandbytes); `None` for all bits. On GPUs
            a `full` model is then spread over as many as it needs. A `delta` in 4 bits is the model of a run with
            `quantize: nf4` as it was trained.

    Raises:
        UserError: the folder holds no exported model or a damaged one, the device or bitsandbytes is not available, or
            a delta is to be spread or loaded in 8 bits.
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
        check_bitsandbytes(f"a model in {bits} bits", "load it in all its bits")
    try:
        if (folder / DELTA).is_file():
            if device == "spread" or bits == 8:
                raise UserError(
                    f"{folder} holds a delta; export the run with --form full to spread it or to load it in 8 bits"
                )
            model, processor = load_delta(folder, None if bits is None else torch.device(device))
        else:
            if bits is not None:
                options["device_map"] = {"": "cpu"} if device == "cpu" else "auto"
                options["quantization_config"] = exported_config(folder, bits)
            processor = VisualChatProcessor.from_pretrained(folder)
            model = VisualChatForConditionalGeneration.from_pretrained(folder, dtype="auto", **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UserError(f"the model in {folder} cannot be loaded: {error}") from None
    return (model if options else model.to(device)).eval(), processor
