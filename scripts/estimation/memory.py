"""The memory of a rank in bytes, for every ZeRO stage and offload, after ZeRO (arXiv 1910.02054, section 5).

With P trained and F frozen parameters inside the engine, W ranks and b bytes per number (fp32 4, bf16 and fp16 2):

                     stage 0          stages 1 and 2    stage 3
    weights          b (P + F)        b (P + F)         b (P + F) / W, and tensors of up to 100,000 numbers whole
    fp32 copies      4 P, fp32: none  4 P / W           4 P / W           DeepSpeed copies fp32 weights as well
    optimizer state  4 S P            4 S P / W         4 S P / W         S tensors per parameter, AdamW: 2
    gradients        b P              b P / W or more   b P / W           at the end of the backward pass
    bucket           none             b B until then    b B always        B numbers are summed at once

At stages 1 and 2 a rank keeps the whole gradient of every tensor of which any part is its own. A frozen encoder lies
outside the engine, whole on every rank. Offloading moves lines of this table into the memory of the machine. These are
exact up to padding (a test compares them with what DeepSpeed really holds, without offloading); activations are
estimated from the shapes of the layers.
"""

from dataclasses import dataclass, field

from scripts.estimation.meta_model import ParameterCounts

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
BUCKET = 500_000_000
# DeepSpeed's defaults at stage 3: parameters that stay gathered because they are needed again soon, and prefetched.
_LIVE, _PREFETCHED = 1_000_000_000, 50_000_000
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
    """What decides the memory of a forward pass: the decoder's and the encoder's layers, and a rank's micro-batch."""

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
    trains_tower: bool


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank by kind. `device`: in the GPU's memory. `host`: in the machine's, where they are offloaded."""

    device: dict[str, float] = field(default_factory=dict)
    host: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """Bytes on device and host together."""
        return sum(self.device.values()) + sum(self.host.values())


def states(counts: ParameterCounts, placement: ZeroPlacement, precision: str) -> Memory:
    """The bytes of the rank that holds most, at the end of the backward pass.

    The bucket is in use until then; at stages 1 and 2 it is freed afterwards.
    """
    size, ranks, zero = BYTES[precision], placement.ranks, placement.zero
    divisor = ranks if zero else 1
    n_trained, inside = counts.n_trained, counts.inside
    bucket = size * min(max(n_trained, 1), BUCKET)
    weights = size * (inside / ranks + counts.small if zero == 3 else inside)
    copies = 0 if zero == 0 and precision == "fp32" else 4 * n_trained / divisor
    optimizer_state = 4 * counts.state_tensors * n_trained / divisor
    n_gradients: float = n_trained
    if zero in (1, 2):
        n_gradients = _largest_share(counts.groups, ranks)
    elif zero == 3:
        n_gradients = n_trained / ranks
    gradients = size * n_gradients
    device: dict[str, float] = {"encoder outside": size * counts.tower, "buckets": bucket if zero else 0}
    host: dict[str, float] = {}
    (host if placement.offload == "parameters" else device)["weights"] = weights
    of_optimizer = host if placement.offload != "none" else device
    of_optimizer["fp32 copies"], of_optimizer["optimizer state"] = copies, optimizer_state
    if placement.offload == "none":
        device["gradients"] = gradients
    else:
        # They are summed on the device and then copied to the optimizer in fp32.
        device["gradients"] = gradients if zero < 3 else 0
        host["gradients"] = 4 * n_trained / divisor
    return Memory(device, host)


def _largest_share(groups: tuple[tuple[int, ...], ...], ranks: int) -> int:
    """Numbers in the tensors that lie wholly or partly in the share of one rank; of the rank with most of them."""
    most = [0] * ranks
    for group in groups:
        share = -(-sum(group) // ranks)
        begin = 0
        for size in group:
            for rank in range(begin // share, (begin + size - 1) // share + 1):
                most[rank] += size
            begin += size
    return max(most)


def activations(sizes: LayerSizes, precision: str) -> float:
    """An estimate of what one forward pass of a micro-batch leaves for its backward pass, in bytes.

    Counted are the tensors that the operations of a Llama-like layer keep: six of the layer's width (norms, queries,
    attention, residuals), keys and values, and four of the MLP's inner width (Korthikanti et al., arXiv 2205.05198,
    section 4, for a gated MLP and an attention that keeps no scores). With checkpointing only the layer's input stays,
    and one layer at a time is whole. A quarter of the positions is assumed to have a label.
    """
    size = BYTES[precision]
    layer = sizes.padded_tokens * (6 * sizes.width + 2 * sizes.kv_width + 4 * sizes.inner) * size
    kept = sizes.padded_tokens * sizes.width * size
    decoder = sizes.layers * kept + layer if sizes.checkpointing else sizes.layers * layer
    logits = sizes.padded_tokens / 4 * sizes.vocabulary * (size + 4 + 4)
    tower_layer = sizes.images * sizes.tower_tokens * 14 * sizes.tower_width * size
    tower = tower_layer * (sizes.tower_layers if sizes.trains_tower and not sizes.checkpointing else 2)
    return decoder + logits + tower


def device_bytes(
    counts: ParameterCounts, placement: ZeroPlacement, precision: str, sizes: LayerSizes, largest: int
) -> dict[str, float]:
    """The bytes of a GPU by kind: states, gathered weights, activations, and CUDA itself.

    `largest`: parameters of the largest module that is gathered as a whole, see `meta_model.largest_layer`.
    """
    memory = states(counts, placement, precision).device
    gathered = 0.0
    if placement.zero == 3:
        gathered = BYTES[precision] * max(2 * largest, min(counts.inside, _LIVE) + _PREFETCHED)
    return memory | {"gathered": gathered, "activations": activations(sizes, precision), "CUDA": _CONTEXT}


def host_bytes(
    counts: ParameterCounts, placement: ZeroPlacement, precision: str, ranks_here: int, workers: int
) -> float:
    """The bytes of a machine with `ranks_here` ranks, each with `workers` processes that prepare batches.

    That is processes, offloaded states, and each rank's weights as they are read, before they go to its GPU. At stage 3
    the decoder's are not among them: they are pages of mapped files until they are divided, one after the other.
    """
    reading = BYTES[precision] * (counts.tower + (0 if placement.zero == 3 else counts.inside))
    offloaded = sum(states(counts, placement, precision).host.values())
    return ranks_here * (_PROCESS + workers * _WORKER + max(reading, offloaded))
