"""Configurations of two names, whose encoder and decoder are folders without weights."""

import json
from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.config import settings
from tests.tiny_models import make_tokenizer

OWN = {"custom": {"pets": {"folder": "data/pets"}}}


def encoder(folder: Path, layers: int = 12, **fields) -> str:
    """The folder of an encoder without weights; by default of 85 million parameters."""
    folder.mkdir(parents=True)
    config = {"model_type": "clip_vision_model", "image_size": 64, "patch_size": 16, "hidden_size": 768, **fields}
    config["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def decoder(folder: Path, tokenizer: bool = True, rows: int | None = None, layers: int = 100, **fields) -> str:
    """The folder of a decoder without weights; by default of 13 million parameters, with a tokenizer that fits."""
    make_tokenizer(folder)
    size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    if not tokenizer:
        for file in folder.iterdir():
            file.unlink()
    config = {
        "model_type": "llama",
        "vocab_size": rows or size,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
        **fields,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def two_names(tmp_path: Path, **changes) -> dict:
    """A configuration of own data and the names of an encoder and a decoder."""
    model = {"vision": encoder(tmp_path / "vision"), "language": decoder(tmp_path / "language"), **changes}
    return {**OWN, "models": {"mine": model}}


def written(config: dict, **run) -> dict:
    """A configuration with one blend and one run, both written."""
    blends = {"all": {"datasets": {"pets": {}}}}
    return {"name": "x", **config, "blends": blends, "runs": {"only": {"model": "mine", "blend": "all", **run}}}


def refused(config: dict) -> str:
    with pytest.raises(UserError) as error:
        settings.load(config)
    return str(error.value)
