"""What a rank must hold, in bytes, for every ZeRO stage and offload, after ZeRO (arXiv 1910.02054, section 5).

With P trained and F frozen parameters inside the engine, W ranks and b bytes per number (fp32 4, bf16 and fp16 2):

                     stage 0          stages 1 and 2    stage 3
    weights          b (P + F)        b (P + F)         b (P + F) / W, and tensors of up to 100,000 numbers whole
    fp32 copies      4 P, fp32: none  4 P / W           4 P / W           also in fp32: DeepSpeed copies all the same
    AdamW's moments  8 P              8 P / W           8 P / W
    gradients        b P              b P / W or more   b P / W           at the end of the backward pass
    bucket           none             b B meanwhile     b B always        B numbers are added up at once

At stages 1 and 2 a rank keeps the whole gradient of every tensor of which any part is its own. A frozen encoder lies
outside the engine, whole on every rank. Offloading moves lines of this table into the memory of the machine. These are
exact up to padding (a test compares them with what DeepSpeed really holds, without offloading); what a forward pass
leaves behind is an estimate from the shapes of the layers, and says so.
"""

from dataclasses import dataclass, field

from scripts.estimation.meta_model import ParameterCounts

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
BUCKET = 500_000_000
# DeepSpeed's defaults at stage 3: parameters that stay gathered because they are needed again soon, and read ahead.
_LIVE, _AHEAD = 1_000_000_000, 50_000_000
# A Python process with torch and CUDA, and one that decodes images.
_PROCESS, _WORKER = 4e9, 0.7e9
_CONTEXT = 1.2e9


@dataclass(frozen=True)
class ZeroPlacement:
    """How a run is divided: the ZeRO stage, what is offloaded, and over how many ranks."""

    zero: int
    offload: str
    ranks: int

    @property
    def possible(self) -> bool:
        """Whether there is something to offload at this stage."""
        return self.zero >= {"none": 0, "optimizer": 2, "parameters": 3}[self.offload]


@dataclass(frozen=True)
class LayerSizes:
    """What decides the size of a forward pass: the decoder's and the encoder's layers, and a rank's micro-batch."""

    width: int
    inner: int
    kv_width: int
    layers: int
    vocabulary: int
    tower_width: int
    tower_layers: int
    tower_tokens: int
    padded_tokens: int
    images: int
    checkpointing: bool
    learns_through_tower: bool


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by kind. `device`: in the GPU's memory. `host`: in the machine's, where they are offloaded."""

    device: dict[str, float] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """All of it, wherever it lies."""
        return sum(self.device.values()) + sum(self.host.values())


def states(counts: ParameterCounts, choice: ZeroPlacement, precision: str) -> Memory:
    """The bytes of the rank that holds most, at the end of the backward pass.

    The bucket has been in use until then, and at stages 1 and 2 is let go.
    """
    size, ranks, zero = BYTES[precision], choice.ranks, choice.zero
    divided = ranks if zero else 1
    n_trained, inside = counts.n_trained, counts.inside
    bucket = size * min(max(n_trained, 1), BUCKET)
    weights = size * (inside / ranks + counts.small if zero == 3 else inside)
    copies = 0 if zero == 0 and precision == "fp32" else 4 * n_trained / divided
    moments = 8 * n_trained / divided
    gradients = size * (n_trained, _own(counts.groups, ranks), _own(counts.groups, ranks), n_trained / ranks)[zero]
    device = {"encoder outside": size * counts.tower, "buckets": bucket if zero else 0}
    host: dict[str, float] = {}
    (host if choice.offload == "parameters" else device)["weights"] = weights
    away = host if choice.offload != "none" else device
    away["fp32 copies"], away["moments"] = copies, moments
    if choice.offload == "none":
        device["gradients"] = gradients
    else:
        # They are summed on the device and brought to the optimiser's place in fp32.
        device["gradients"] = gradients if zero < 3 else 0
        host["gradients"] = 4 * n_trained / divided
    return Memory(device, host)


def _own(groups: tuple[tuple[int, ...], ...], ranks: int) -> int:
    """Numbers in the tensors that the share of one rank touches: of the rank where these are most."""
    most = [0] * ranks
    for group in groups:
        share = -(-sum(group) // ranks)
        begin = 0
        for size in group:
            for rank in range(begin // share, (begin + size - 1) // share + 1):
                most[rank] += size
            begin += size
    return max(most)


def activations(shape: LayerSizes, precision: str) -> float:
    """An estimate of what one forward pass of a micro-batch leaves for its backward pass, in bytes.

    Counted are the tensors that the operations of a Llama-like layer keep: six of the layer's width (norms, queries,
    attention, residuals), keys and values, and four of the MLP's inner width (Korthikanti et al., arXiv 2205.05198,
    section 4, for a gated MLP and an attention that keeps no scores). With checkpointing only the layer's input stays,
    and one layer at a time is whole. A quarter of the places is taken to have a label.
    """
    size = BYTES[precision]
    layer = shape.padded_tokens * (6 * shape.width + 2 * shape.kv_width + 4 * shape.inner) * size
    kept = shape.padded_tokens * shape.width * size
    decoder = shape.layers * kept + layer if shape.checkpointing else shape.layers * layer
    logits = shape.padded_tokens / 4 * shape.vocabulary * (size + 4 + 4)
    tower_layer = shape.images * shape.tower_tokens * 14 * shape.tower_width * size
    tower = tower_layer * (shape.tower_layers if shape.learns_through_tower and not shape.checkpointing else 2)
    return decoder + logits + tower


def device_bytes(
    counts: ParameterCounts, choice: ZeroPlacement, precision: str, shape: LayerSizes, largest: int
) -> dict[str, float]:
    """What a GPU must have room for, by kind: states, gathered weights, activations, and CUDA itself."""
    memory = states(counts, choice, precision).device
    gathered = 0.0
    if choice.zero == 3:
        gathered = BYTES[precision] * max(2 * largest, min(counts.inside, _LIVE) + _AHEAD)
    return memory | {"gathered": gathered, "activations": activations(shape, precision), "CUDA": _CONTEXT}


def host_bytes(counts: ParameterCounts, choice: ZeroPlacement, precision: str, ranks_here: int, workers: int) -> float:
    """What a machine with `ranks_here` ranks must have, in bytes.

    That is processes, offloaded states, and each rank's weights as they are read, before they go to its GPU. At stage 3
    the decoder's are not among them: they are pages of its files until they are shared out, one after the other.
    """
    reading = BYTES[precision] * (counts.tower + (0 if choice.zero == 3 else counts.inside))
    held = sum(states(counts, choice, precision).host.values())
    return ranks_here * (_PROCESS + workers * _WORKER + max(reading, held))
