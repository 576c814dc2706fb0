"""Published architectures, for what must be known without the weights: the values of their `config.json` on the hub.

Each entry holds the fields that decide sizes, under the name that recipes use, with its source. A folder, or a model in
the local cache of the hub, is used where there is one.
"""

from typing import Any


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


def _smollm2(width: int, inner: int, layers: int, heads: int, kv_heads: int) -> dict[str, Any]:
    fields = _llama(width, inner, layers, heads, kv_heads)
    return fields | {"vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True}


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
# arXiv 2103.00020, table 20, likewise. SigLIP 2: arXiv 2502.14786, section 2, likewise. SmolLM2: arXiv 2502.02737,
# likewise.
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
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2(576, 1536, 30, 9, 3),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _smollm2(960, 2560, 32, 15, 5),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _smollm2(2048, 8192, 24, 32, 32),
    "google/siglip2-base-patch16-224": _vision("siglip_vision_model", 768, 3072, 12, 12, 224, 16),
    "google/siglip2-so400m-patch14-384": _vision("siglip_vision_model", 1152, 4304, 27, 16, 384, 14),
    "google/siglip2-so400m-patch16-384": _vision("siglip_vision_model", 1152, 4304, 27, 16, 384, 16),
}

# arXiv 2308.12966, section 2.1, and the config.json of Qwen/Qwen-VL-Chat: what `extract_qwen_encoder` writes into any
# folder; so this stands for every folder of this name that does not exist yet.
QWEN_ENCODER = "qwen-vision"
QWEN_ENCODER_FIELDS: dict[str, Any] = {
    "model_type": "visualchat_qwen_vision",
    "image_size": 448,
    "patch_size": 14,
    "resampler_queries": 256,
}
