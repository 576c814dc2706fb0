"""The configuration of a base model, for estimates without the weights.

A folder, or for other names a model in the local cache of the hub, is used where there is one, else the built-in table
of `scripts/config/architectures.py`; nothing is ever downloaded.
"""

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from model.configuration import QwenVisionConfig
from scripts.common.errors import UserError
from scripts.config.architectures import QWEN_ENCODER, TABLE


def config_of(name: str, root: Path, kind: str) -> PreTrainedConfig:
    """The configuration of the base `name` (a folder, a hub name, or `miniature`); `kind` is vision or language.

    Raises:
        UserError: it is neither on this machine nor in the table.
    """
    folders = [root / "bases/miniature" / kind] if name == "miniature" else [Path(name), root / name]
    for folder in folders:
        if (folder / "config.json").is_file():
            return _part(AutoConfig.from_pretrained(folder), kind)
    if name == "miniature":
        raise UserError(
            f"the {kind} model of the miniature is made by the workflow, and is not below {root} yet: run snakemake "
            f"--cores all {root}/bases/miniature/{kind}/manifest.json with the same configuration first"
        )
    if name in TABLE:
        fields = dict(TABLE[name])
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    if Path(name).name == QWEN_ENCODER:
        return QwenVisionConfig()
    try:
        return _part(AutoConfig.from_pretrained(name, local_files_only=True), kind)
    except (OSError, ValueError):
        raise UserError(
            f"{name!r} is unknown: neither a folder with a config.json (also not below {root}), nor in the cache of "
            f"the hub, nor among the built-in architectures ({', '.join(TABLE)}). Put its config.json into a "
            "folder and name that"
        ) from None


def _part(config: PreTrainedConfig, kind: str) -> PreTrainedConfig:
    """The encoder's part of a configuration with two towers; else the configuration itself."""
    return getattr(config, "vision_config", config) if kind == "vision" else config
