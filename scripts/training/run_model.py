"""The model of a run before its first step: that of `models`, changed by earlier stages, and quantised if asked."""

import argparse
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from scripts.common.errors import PermanentError
from scripts.config.run import RunConfig
from scripts.inference.model_assembly import load_model
from scripts.inference.quantization import quantize_decoder
from scripts.inference.stages import apply_stages, initial_values
from scripts.training.engine import compute_device
from scripts.training.precision import dtype_of
from scripts.training.start import read_stages, start_files


def load_run_model(
    args: argparse.Namespace, settings: RunConfig, check: bool, log: Callable[[str], None]
) -> tuple[VisualChatForConditionalGeneration, VisualChatProcessor]:
    """Load the model of a run in training mode, on the CPU, and its processor.

    Args:
        args: the command line of a rank, see `worker.parse`.
        settings: of the run.
        check: compare the hashes of the model and its bases; one rank may do it for all.
        log: prints a message for the user.

    Raises:
        UserError: the model or weights of a stage are missing or damaged, or image features are read that are those of
            another encoder.
    """
    dtype = dtype_of(settings.precision)
    keep = settings.zero == 3 or settings.quantize != "none"
    model, processor = load_model(
        args.model, args.root, settings.attention, dtype, check=check, keep_language_dtype=keep
    )
    _apply_stages(model.train(), args.state, settings, log)
    if settings.quantize != "none":
        quantize_decoder(model, compute_device(), dtype)
    return model, processor


def values_to_continue(model: nn.Module, state: Path) -> dict[str, Tensor]:
    """The fp32 values, by name, of trained weights that a stage before this run has trained."""
    values = initial_values(read_stages(state), [path for path, _ in start_files(state)])
    trained = {name for name, value in model.named_parameters() if value.requires_grad}
    return {name: value for name, value in values.items() if name in trained}


def _apply_stages(
    model: VisualChatForConditionalGeneration, state: Path, settings: RunConfig, log: Callable[[str], None]
) -> None:
    """Put what the stages before the run have trained into the model."""
    stages, files = read_stages(state), [path for path, _ in start_files(state)]
    changed = apply_stages(model, stages, files, dtype_of(settings.precision))
    if settings.features and any(name.startswith("vision_tower.") for name in changed):
        raise PermanentError(
            "`features: true` reads what the vision encoder of `models` makes of the images, but a stage before this "
            "run has trained the encoder; set `features: false` for this run"
        )
    if stages:
        log(f"starting from {' -> '.join(stage['run'] + ':' + stage['which'] for stage in stages)}")
