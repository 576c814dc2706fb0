"""Published architectures, for estimates without the weights: the values of their `config.json` on the hub.

Each entry holds the fields that decide sizes, under the name that recipes use, with its source. A folder, or for other
names a model in the local cache of the hub, is used where there is one; nothing is ever downloaded.
"""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from model.configuration import QwenVisionConfig
from scripts.common.errors import UserError


def _llama(width: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }


def _qwen3(width: int, inner: int, layers: int, heads: int, tied: bool) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": tied,
    }


def _vision(kind: str, width: int, inner: int, layers: int, heads: int, side: int, patch: int) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": patch,
    }


# Llama 2: arXiv 2307.09288, table 1, and the models' config.json. Qwen 3: arXiv 2505.09388, table 1, likewise. CLIP:
# arXiv 2103.00020, table 20, likewise. SigLIP 2: arXiv 2502.14786, section 2, likewise.
TABLE: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": _llama(4096, 11008, 32, 32, 32),
    "meta-llama/Llama-2-13b-hf": _llama(5120, 13824, 40, 40, 40),
    "meta-llama/Llama-2-70b-hf": _llama(8192, 28672, 80, 64, 8),
    "Qwen/Qwen3-0.6B": _qwen3(1024, 3072, 28, 16, True),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 6144, 28, 16, True),
    "Qwen/Qwen3-4B": _qwen3(2560, 9728, 36, 32, True),
    "Qwen/Qwen3-8B": _qwen3(4096, 12288, 36, 32, False),
    "Qwen/Qwen3-14B": _qwen3(5120, 17408, 40, 40, False),
    "Qwen/Qwen3-32B": _qwen3(5120, 25600, 64, 64, False),
    "openai/clip-vit-large-patch14": _vision("clip_vision_model", 1024, 4096, 24, 16, 224, 14),
    "openai/clip-vit-large-patch14-336": _vision("clip_vision_model", 1024, 4096, 24, 16, 336, 14),
    "google/siglip2-base-patch16-224": _vision("siglip_vision_model", 768, 3072, 12, 12, 224, 16),
    "google/siglip2-so400m-patch14-384": _vision("siglip_vision_model", 1152, 4304, 27, 16, 384, 14),
    "google/siglip2-so400m-patch16-384": _vision("siglip_vision_model", 1152, 4304, 27, 16, 384, 16),
}

# arXiv 2308.12966, section 2.1, and the config.json of Qwen/Qwen-VL-Chat: what `extract_qwen_encoder` writes into any
# folder; so this stands for every folder of this name that does not exist yet.
QWEN_ENCODER = "qwen-vision"


def config_of(name: str, root: Path, kind: str) -> PreTrainedConfig:
    """The configuration of the base `name` (a folder, a hub name, or `miniature`); `kind` is vision or language.

    Raises:
        UserError: it is neither on this machine nor in the table.
    """
    folders = [root / "bases/miniature" / kind] if name == "miniature" else [Path(name), root / name]
    for folder in folders:
        if (folder / "config.json").is_file():
            return _part(AutoConfig.from_pretrained(folder), kind)
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
