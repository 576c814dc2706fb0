"""The memory of activations: what a forward pass of a micro-batch keeps for its backward pass, in bytes.

For each token of a Llama-like decoder layer of width W with MLP width I, queries of width Q in H heads, keys and values
of width K, and b bytes per number (a test compares this with the tensors that autograd really keeps):

    norms           2 (4 W + 4)          computed in fp32; fused: 2 (b W + 4)
    norms of q, k   4 (Q + K)            where the decoder has them; fused: b (Q + K)
    MLP             3 b I                gate, silu(gate), up; fused: 2 b I
    attention       b (2 Q + 2 K) + 4 H  query, key, value, output, log-sum-exps
                    b Q + 4 H            mmca: the output of the text branch and its log-sum-exps as well
    full training   b (4 W + I)          inputs of the norms' weights and of the linear layers, and of q and k's norms
    adapters        b (2 W + I + 7 r)    inputs of the linear layers and of the second halves of adapters of rank r

So a frozen decoder keeps no input of its linear layers. The attention is that of the fused kernel, which every token of
a row is counted for as text; the back-end for other devices keeps more. A layer that is checkpointed keeps its input,
b W, and is whole while it is computed again. The head computes its loss in chunks of logits and keeps one of them.

Not counted are gradients on their way through a layer, dropout, and what torch.compile saves.
"""

from dataclasses import dataclass
from typing import Literal

from model.label_loss import CHUNK_LOGITS
from model.modeling import VisualChatForConditionalGeneration
from scripts.config.blend import BlendConfig
from scripts.config.run import RunConfig

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class LayerSizes:
    """What decides the memory of a forward pass: the decoder's and the encoder's layers, and a rank's micro-batch.

    `tower_gates`: tensors of the encoder's MLP width that its activation function keeps. `tower_states`: whether the
    states behind all of the encoder's layers are made, because its features are not those of the last one. `every`: the
    distance between checkpointed layers, 0 if there are none. `trained`: how the decoder is.
    """

    width: int
    inner: int
    query_width: int
    kv_width: int
    heads: int
    query_norms: bool
    layers: int
    vocabulary: int
    tower_width: int
    tower_inner: int
    tower_gates: int
    tower_states: bool
    tower_layers: int
    tower_tokens: int
    padded_tokens: int
    images: int
    every: int
    fused: bool
    two_branches: bool
    trained: Literal["frozen", "lora", "full"]
    rank: int
    trains_tower: bool

    @classmethod
    def of(cls, model: VisualChatForConditionalGeneration, run: RunConfig, blend: BlendConfig) -> "LayerSizes":
        """The sizes of a run: of the model, and of rows as long and as full of images as the blend allows."""
        text, vision = model.config.text_config, model.config.vision_config
        tower_width = getattr(vision, "vit_width", None) or vision.hidden_size
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            width=text.hidden_size,
            inner=text.intermediate_size,
            query_width=head * text.num_attention_heads,
            kv_width=head * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
            heads=text.num_attention_heads,
            query_norms=any(name.endswith("q_norm.weight") for name, _ in model.get_decoder().named_parameters()),
            layers=text.num_hidden_layers,
            vocabulary=text.vocab_size,
            tower_width=tower_width,
            tower_inner=getattr(vision, "intermediate_size", 4 * tower_width),
            tower_gates=2 if getattr(vision, "hidden_act", "gelu") == "quick_gelu" else 1,
            tower_states=model.config.vision_feature_layer != -1,
            tower_layers=vision.num_hidden_layers,
            tower_tokens=(model.config.image_size // vision.patch_size) ** 2,
            padded_tokens=run.micro_batch * blend.sequence,
            images=0 if run.features else run.micro_batch * _most_images(blend),
            every=int(run.gradient_checkpointing),
            fused=run.fused_layers != "none",
            two_branches=run.attention == "mmca",
            trained=run.train_language,
            rank=run.language_lora_rank,
            trains_tower=run.train_vision != "frozen",
        )


def _most_images(blend: BlendConfig) -> int:
    """The most images of a row."""
    return blend.max_images_per_pack if blend.packing else blend.max_images


def activations(sizes: LayerSizes, precision: str) -> float:
    """What is kept when a micro-batch has run forward, and the layer that is computed again, in bytes.

    A quarter of the positions is assumed to have a label.
    """
    size = BYTES[precision]
    layer = layer_bytes(sizes, precision) + attention_bytes(sizes, precision)
    decoder = kept_bytes(sizes.layers, sizes.every, layer, sizes.padded_tokens * sizes.width * size)
    if _recomputed_last(sizes.layers, sizes.every):
        decoder += layer
    norm = sizes.padded_tokens * _norm(sizes, size)
    logits = min(sizes.padded_tokens / 4 * sizes.vocabulary, CHUNK_LOGITS) * (size + 4 + 4)
    return decoder + norm + logits + tower_bytes(sizes, precision)


def tower_bytes(sizes: LayerSizes, precision: str) -> float:
    """What the encoder holds at its most, in bytes.

    A trained layer keeps eight tensors of its width (inputs of norms and linear layers, query, key, value, output), and
    of its MLP's width those of the activation function and the input of the last linear layer. A frozen encoder keeps
    nothing, and holds most within an MLP: the encoder's input twice, the layer's, the norm's output, and the function.
    """
    one = sizes.images * sizes.tower_tokens * BYTES[precision]
    inputs, mlp = one * sizes.tower_width, (sizes.tower_gates + 1) * one * sizes.tower_inner
    if not sizes.trains_tower:
        return mlp + (2 + (sizes.tower_layers if sizes.tower_states else 2)) * inputs
    layer = 8 * inputs + mlp
    kept = kept_bytes(sizes.tower_layers, sizes.every, layer, inputs)
    return kept + (layer if _recomputed_last(sizes.tower_layers, sizes.every) else 0)


def layer_bytes(sizes: LayerSizes, precision: str) -> float:
    """What a decoder layer keeps outside of its attention, in bytes."""
    size = BYTES[precision]
    kept = 2 * _norm(sizes, size) + (2 if sizes.fused else 3) * size * sizes.inner
    if sizes.query_norms:
        kept += (sizes.query_width + sizes.kv_width) * (size if sizes.fused else 4)
    if sizes.trained != "frozen":
        kept += size * (2 * sizes.width + sizes.inner)
    if sizes.trained == "lora":
        kept += size * 7 * sizes.rank
    if sizes.trained == "full" and sizes.query_norms and not sizes.fused:
        kept += size * (sizes.query_width + sizes.kv_width)
    return sizes.padded_tokens * kept


def attention_bytes(sizes: LayerSizes, precision: str) -> float:
    """What the attention of a decoder layer keeps, in bytes; its output is also the input of the layer behind it."""
    size = BYTES[precision]
    kept = size * 2 * (sizes.query_width + sizes.kv_width) + 4 * sizes.heads
    if sizes.two_branches:
        kept += size * sizes.query_width + 4 * sizes.heads
    return sizes.padded_tokens * kept


def kept_bytes(layers: int, every: int, whole: float, inputs: float) -> float:
    """What `layers` layers keep of a forward pass, if every `every`-th keeps `inputs` bytes and the others `whole`."""
    checkpointed = -(-layers // every) if every else 0
    return checkpointed * inputs + (layers - checkpointed) * whole


def _norm(sizes: LayerSizes, size: int) -> float:
    """What a norm of the decoder's width keeps of a token, in bytes."""
    if sizes.fused:
        return size * sizes.width + 4
    return 4 * sizes.width + 4 + (size * sizes.width if sizes.trained == "full" else 0)


def _recomputed_last(layers: int, every: int) -> bool:
    """Whether the last layer is checkpointed; if not, a layer that is computed again takes the room of a later one."""
    return every > 0 and (layers - 1) % every == 0
