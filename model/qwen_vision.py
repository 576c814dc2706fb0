"""The vision encoder of Qwen-VL (arXiv 2308.12966): a ViT-bigG at 448 x 448 pixels, a resampler to 256 tokens, a norm.

A separate implementation with the original's names of parameters, so that `scripts/extract_qwen_encoder.py` can
extract them from `Qwen/Qwen-VL-Chat` one by one. The square matrix `proj` that follows the norm there is left out: the
projector replaces it.

    pixels (N, 3, 448, 448) -> patches (N, 1024, 1664) -> 48 blocks -> resampler (N, 256, 4096) -> norm
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from .configuration import QwenVisionConfig
from .resampler import Resampler, interpolate_positions


class _Attention(nn.Module):
    """Self-attention with one input projection, in which query, key and value of each head are adjacent."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each image: (N, tokens, width) -> (N, tokens, width)."""
        mixed = self.in_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(*mixed.chunk(3, -1))
        return self.out_proj(out.transpose(1, 2).flatten(2))


class QwenVisionBlock(GradientCheckpointingLayer):
    """A pre-norm transformer block."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        width, eps = config.vit_width, config.layer_norm_eps
        self.ln_1, self.ln_2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn = _Attention(width, config.num_attention_heads)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(width, config.intermediate_size),
                "c_proj": nn.Linear(config.intermediate_size, width),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention and MLP: (N, tokens, width) -> (N, tokens, width)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class _Blocks(nn.Module):
    """The blocks, under the original's name `transformer.resblocks`."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(QwenVisionBlock(config) for _ in range(config.num_hidden_layers))


class QwenVisionModel(PreTrainedModel):
    """See the module's docstring. Hidden states are those before, between and behind the blocks."""

    config_class = QwenVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ("QwenVisionBlock",)
    _supports_sdpa = True

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__(config)
        width, eps = config.vit_width, config.layer_norm_eps
        self.conv1 = nn.Conv2d(config.num_channels, width, config.patch_size, stride=config.patch_size, bias=False)
        self.positional_embedding = nn.Parameter(self.conv1.weight.new_zeros(config.positions, width))
        self.ln_pre = nn.LayerNorm(width, eps=eps)
        self.transformer = _Blocks(config)
        self.attn_pool = Resampler(
            config.resampler_queries, config.hidden_size, config.resampler_heads, config.vit_width, eps
        )
        self.ln_post = nn.LayerNorm(config.hidden_size, eps=eps)
        self.gradient_checkpointing = False
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Resampler):
            module.init_weights()
        elif module is self:
            init.normal_(self.positional_embedding, std=self.config.initializer_range)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | list[int] | None = None, **kwargs: object
    ) -> BaseModelOutputWithPooling:
        """Encode normalised pixels (N, 3, height, width) of square images.

        Returns features (N, resampler_queries, hidden_size) and, if requested, hidden states (N, patches, vit_width).
        """
        patches = self.conv1(pixel_values).flatten(2).transpose(1, 2)
        x = self.ln_pre(patches + interpolate_positions(self.positional_embedding, patches.shape[1]))
        requested = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        states = []
        for block in self.transformer.resblocks:
            if requested:
                states.append(x)
            x = block(x)
        out = self.ln_post(self.attn_pool(x))
        return BaseModelOutputWithPooling(last_hidden_state=out, hidden_states=(*states, x) if requested else None)
