"""What a run reads: settings, the parts of its blend, and the result of the run that it starts from, all checked."""

import argparse
import os
from pathlib import Path

from scripts.common.cli import load_settings
from scripts.common.errors import UserError
from scripts.common.files import read_json
from scripts.common.gpus import automatic_precision
from scripts.config.run import RunConfig
from scripts.inference.blend_reader import BlendReader
from scripts.training.fingerprint import manifest_sha256
from scripts.training.start import Start, find_start


def run_settings(*texts: str) -> RunConfig:
    """The settings of a run, see `load_settings`, with the number format that `precision: auto` means here.

    Raises:
        UserError: see `load_settings`.
    """
    settings = load_settings(RunConfig, *texts)
    if settings.precision == "auto":
        return settings.model_copy(update={"precision": automatic_precision(os.environ)})
    return settings


def open_blend(args: argparse.Namespace, settings: RunConfig) -> tuple[list[Path], list[BlendReader]]:
    """The folder of the blend for each epoch, and readers of all parts, the held-out one last.

    Raises:
        UserError: they are missing or damaged, or do not belong to the model or to the settings.
    """
    if args.features and not settings.features:
        raise UserError(
            "--features needs `features: true` in the settings of the run: it changes the last digits of losses"
        )
    blend = args.blend * settings.epochs if len(args.blend) == 1 else args.blend
    if len(blend) != settings.epochs:
        raise UserError(f"{settings.epochs} epochs need as many --blend folders, or one that repeats, not {len(blend)}")
    parts = [BlendReader(folder, args.root) for folder in dict.fromkeys([*blend, args.heldout])]
    _check_identity(args.model, parts)
    return blend, parts


def start_of(args: argparse.Namespace, settings: RunConfig) -> Start | None:
    """The weights of other runs that this one begins with, if it does not begin with those of `models`.

    Raises:
        UserError: the other run is not named or not finished, or was trained from another model.
    """
    if (args.start is None) != (settings.start is None):
        raise UserError(
            "--start and `start` in the settings of the run belong together: the first is the folder of a run, the "
            "second its name and which of its weights are meant, such as align:best"
        )
    return None if args.start is None else find_start(args.start, settings, manifest_sha256(args.model))


def _check_identity(model: Path, parts: list[BlendReader]) -> None:
    """Raise UserError unless the model and all parts of the blend count tokens alike."""
    expected = read_json(model / "manifest.json")["tokens_identity"]
    for part in parts:
        if part.manifest["tokens_identity"] != expected:
            raise UserError(
                f"{part.folder} was planned with another tokenizer, prompt template or number of tokens per image than "
                f"{model} has; let both name the same entry of `tokens`, and rebuild what depends on it"
            )
