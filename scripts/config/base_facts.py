"""What is known of a base model before anything is loaded: its `config.json` and the files beside it.

Looked for in this order: the settings of the miniature, a folder (as given, or below the results root), the local cache
of the hub, the built-in table of published architectures and, where a value must be known, the hub itself (a few
kilobytes, not with VISUALCHAT_OFFLINE=1 or HF_HUB_OFFLINE=1).

The files are read as JSON, because importing `transformers` takes seconds and every job loads the configuration. It is
imported only for a file that leaves fields to the defaults of its class.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.config.architectures import QWEN_ENCODER, QWEN_ENCODER_FIELDS, TABLE
from scripts.config.context import context_length
from scripts.config.pretrain import PretrainConfig

MINIATURE = "miniature"
_CONFIG, _PREPROCESSOR, _PROCESSOR = "config.json", "preprocessor_config.json", "processor_config.json"
_PARTS = {"vision": "vision_config", "language": "text_config"}
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_SIZES = {
    "vision": (("patch_size",),),
    "language": (("vocab_size",), ("max_position_embeddings", "n_positions", "n_ctx"), ("hidden_size", "n_embd")),
}
"""Fields of which a file has to contain one each to be read without the defaults of its class."""


def made_by_graph(name: str) -> bool:
    """Whether a base is one that the graph makes for the miniature, by its name or by its path below the root."""
    return name == MINIATURE or Path(name).parts[:2] == ("bases", MINIATURE)


@dataclass(frozen=True)
class BaseFacts:
    """The fields of an encoder's or a decoder's `config.json`, and where they come from.

    `preprocessor` are those of the image processor, if there is one. `folder` holds the files; None if they are not on
    this machine.
    """

    fields: Mapping[str, Any]
    source: str
    preprocessor: Mapping[str, Any] | None = None
    folder: Path | None = None

    @property
    def rows(self) -> int | None:
        """The rows of the decoder's embedding table."""
        return self.fields.get("vocab_size")

    @property
    def positions(self) -> int | None:
        """The longest sequence that the decoder reads, in tokens; None if it has no limit."""
        return context_length(self.fields)

    @property
    def layers(self) -> int | None:
        """The number of layers; None if the files do not say it."""
        return self._number("num_hidden_layers", "n_layer", "num_layers", "depth")

    @property
    def parameters(self) -> int | None:
        """About how many parameters the base has: embeddings, attention and MLP without norms and biases."""
        width = self._number("hidden_size", "n_embd", "d_model", "embed_dim")
        layers = self.layers
        # An encoder has patches, and no table of tokens.
        patches = "patch_size" in self.fields
        if not (width and layers and (self.rows or patches)):
            return None
        heads = self._number("num_attention_heads", "n_head", "num_heads") or 1
        head = self.fields.get("head_dim") or width // heads
        attention = 2 * width * head * (heads + (self.fields.get("num_key_value_heads") or heads))
        inner = self._number("intermediate_size", "n_inner", "ffn_dim") or 4 * width
        # Decoders with a gated MLP have a third matrix; encoders, GPT-2 and its kind, whose width is n_embd, have two.
        mlp = (2 if patches or "n_embd" in self.fields else 3) * width * inner
        experts = self._number("num_local_experts", "num_experts") or 1
        tables = 1 if self.fields.get("tie_word_embeddings", True) else 2
        return tables * (self.rows or 0) * width + layers * (attention + experts * mlp)

    def _number(self, *names: str) -> int | None:
        return next((self.fields[name] for name in names if isinstance(self.fields.get(name), int)), None)


def facts_of(
    name: str, kind: str, root: Path, pretrain: PretrainConfig | None = None, network: bool = False
) -> BaseFacts | None:
    """What is known of the base `name`; None if it is nowhere.

    Args:
        name: folder, hub name, or `miniature`.
        kind: vision or language.
        root: results root, which the name may be relative to.
        pretrain: settings of the miniature's bases; needed for these alone.
        network: whether the hub may be asked.

    Raises:
        ValueError: a file of the base is no JSON object.
    """
    if name == MINIATURE:
        return _miniature(kind, pretrain or PretrainConfig())
    for folder in (Path(name), root / name):
        if (folder / _CONFIG).is_file():
            return _read(folder, kind)
    if (cached := cached_folder(name, _CONFIG)) is not None:
        return _read(cached, kind, f"the hub's cache, {_CONFIG} of {name}")
    if name in TABLE:
        return BaseFacts(TABLE[name], "scripts/config/architectures.py")
    if Path(name).name == QWEN_ENCODER:
        return BaseFacts(QWEN_ENCODER_FIELDS, "scripts/config/architectures.py")
    if network and is_hub_name(name) and not offline():
        return _downloaded(name, kind)
    return None


def is_hub_name(name: str) -> bool:
    """Whether a name has the form of the hub's, `owner/name` or `name`."""
    return bool(name) and name.count("/") <= 1 and not name.startswith((".", "/")) and not Path(name).is_dir()


def missing_folder(name: str, root: Path) -> str:
    """What is wrong with the name of a base of which nothing is known; empty if it may be one of the hub.

    Args:
        name: folder or hub name.
        root: results root, which the name may be relative to.
    """
    if found := next((folder for folder in (Path(name), root / name) if folder.is_dir()), None):
        return f"the folder {found} holds no {_CONFIG}; name the folder of a model as `transformers` saves it"
    if _HUB_NAME.fullmatch(name):
        return ""
    return (
        f"there is no folder {name}, and no model of the hub can have this name; relative folders are looked for in "
        f"{Path.cwd()} and {root}"
    )


def offline() -> bool:
    """Whether the hub must not be asked."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ("VISUALCHAT_OFFLINE", "HF_HUB_OFFLINE"))


def cached_folder(name: str, file: str) -> Path | None:
    """The folder of a hub model in the local cache, if `file` is there."""
    if not is_hub_name(name) or not _cache().is_dir():
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _cache() -> Path:
    """The folder of the hub's cache, found without importing its library."""
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _miniature(kind: str, pretrain: PretrainConfig) -> BaseFacts:
    if kind == "vision":
        vision = pretrain.vision
        fields: dict[str, Any] = {
            "model_type": "clip_vision_model",
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
        }
        return BaseFacts(fields, "pretrain.vision")
    language = pretrain.language
    return BaseFacts({"model_type": "llama", "max_position_embeddings": language.positions}, "pretrain.language")


def _read(folder: Path, kind: str, source: str | None = None) -> BaseFacts:
    """The facts of a folder with a config.json."""
    fields = _part(_json(folder / _CONFIG), kind)
    if not all(any(name in fields for name in names) for names in _SIZES[kind]):
        fields = _with_class_defaults(folder, kind, fields)
    preprocessor = None
    if kind == "vision":
        if (folder / _PREPROCESSOR).is_file():
            preprocessor = _json(folder / _PREPROCESSOR)
        elif (folder / _PROCESSOR).is_file():
            preprocessor = _json(folder / _PROCESSOR).get("image_processor")
    return BaseFacts(fields, source or str(folder / _CONFIG), preprocessor, folder)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def _part(fields: dict[str, Any], kind: str) -> dict[str, Any]:
    """The part of a configuration of images and text that `kind` means; else all of it."""
    part = fields.get(_PARTS[kind])
    return part if isinstance(part, dict) else fields


def _with_class_defaults(folder: Path, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` completed by the defaults of their class in `transformers`; as they are without one."""
    from transformers import AutoConfig

    # Registers the encoder of Qwen-VL.
    import model.configuration  # noqa: F401

    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return fields
    return getattr(config, _PARTS[kind], config).to_dict()


def _downloaded(name: str, kind: str) -> BaseFacts | None:
    """The facts of a model of the hub, whose small files are fetched; None if it cannot be reached or has none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    failures = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError)
    try:
        folder = Path(hf_hub_download(name, _CONFIG)).parent
    except failures:
        return None
    if kind == "vision":
        with contextlib.suppress(*failures):
            hf_hub_download(name, _PREPROCESSOR)
    return _read(folder, kind, f"the hub, {_CONFIG} of {name}")
