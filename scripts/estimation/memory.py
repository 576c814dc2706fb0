"""The memory of a rank in bytes, for every ZeRO stage and offload, after ZeRO (arXiv 1910.02054, section 5).

With P trained and F frozen parameters inside the engine, W ranks and b bytes per number (fp32 4, bf16 and fp16 2):

                     stage 0          stages 1 and 2    stage 3
    weights          b (P + F)        b (P + F)         b (P + F) / W, and tensors of up to 100,000 numbers whole
    second copy      none             none              b (P + F) / N among N ranks (`zero_hpz`), of P until the step
    fp32 copies      4 P, fp32: none  4 P / W           4 P / W           DeepSpeed copies fp32 weights as well
    optimizer state  4 S P            4 S P / W         4 S P / W         S tensors per parameter, AdamW: 2
    gradients        b P              b P / W or more   b P / W           at the end of the backward pass
    bucket           none             b B until then    b B always        B numbers are summed at once

At stages 1 and 2 a rank keeps the whole gradient of every tensor of which any part is its own. A frozen encoder lies
outside the engine, whole on every rank. Frozen weights in 4 bits (`quantize: nf4`) have 0.516 bytes instead of b; the
stages 0 to 2 have such runs. Offloading moves lines of this table into the memory of the machine. These are
exact up to padding (a test compares them with what DeepSpeed really holds, without offloading). Activations are in
`activations.py`.
"""

from dataclasses import dataclass, field

from scripts.estimation.activations import BYTES, LayerSizes, activations
from scripts.estimation.meta_model import ParameterCounts
from scripts.inference.quantization import BYTES_PER_NF4_WEIGHT

BUCKET = 500_000_000
# DeepSpeed's defaults at stage 3: parameters that stay gathered because they are needed again soon, and prefetched.
_LIVE, _PREFETCHED = 1_000_000_000, 50_000_000
# A Python process with torch and CUDA, and one that decodes images.
_PROCESS, _WORKER = 4e9, 0.7e9
_CONTEXT = 1.2e9


@dataclass(frozen=True)
class ZeroPlacement:
    """How a run is divided: the ZeRO stage, what is offloaded, and over how many ranks.

    `zero_hpz`: so many ranks hold a second copy of the weights among them; 1: there is none.
    """

    zero: int
    offload: str
    ranks: int
    zero_hpz: int = 1

    @property
    def possible(self) -> bool:
        """Whether there is something to offload at this stage."""
        return self.zero >= {"none": 0, "optimizer": 2, "parameters": 3}[self.offload]


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
    weights -= (size - BYTES_PER_NF4_WEIGHT) * counts.quantized
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
    if placement.zero_hpz > 1:
        device["second copy"] = second_copy(counts, precision, placement.zero_hpz)
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


def second_copy(counts: ParameterCounts, precision: str, ranks: int) -> float:
    """The bytes of a rank for a second copy of all weights inside the engine, divided among `ranks` ranks."""
    return BYTES[precision] * counts.inside / ranks


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
    the decoder's are not among them: they are pages of mapped files until they are divided, one after the other. Nor
    are those that are quantised, one after the other.
    """
    reading = BYTES[precision] * (counts.tower + (0 if placement.zero == 3 else counts.inside - counts.quantized))
    offloaded = sum(states(counts, placement, precision).host.values())
    return ranks_here * (_PROCESS + workers * _WORKER + max(reading, offloaded))
