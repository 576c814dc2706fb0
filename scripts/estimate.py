"""Estimate what the runs of a configuration need, from the recipe alone, before anything is downloaded.

    python -m scripts.estimate recipes/paper-7b.yaml [--run mmca] [--gpus 8] [--gpu a100-80]
    python -m scripts.train --estimate recipes/paper-7b.yaml ...          the same

For every run: which parameters are trained and which are frozen; the memory of a GPU at every ZeRO stage with every
offload; the memory of a node; operations per token, and days; and the fewest GPUs of each kind that suffice. The model
is built on the meta device, so that 70 billion parameters are counted on a laptop in seconds; where its bases are not
on this machine, published architectures are used (`scripts/estimation/architectures.py`).

States are exact; activations are what autograd keeps of a Llama-like decoder, for rows as full as they can be; days are
estimated from the share of a GPU's peak that training of such models usually reaches. The size of an epoch is read from
the plan, computed from the records, or estimated from the rows of own data and from the settings (`samples`, `concat`,
packing): see `scripts/estimation/epoch_size.py`. What is a guess is marked as one.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.config import settings

if TYPE_CHECKING:
    from model.modeling import VisualChatForConditionalGeneration
    from scripts.config.run import RunConfig
    from scripts.estimation.activations import LayerSizes
    from scripts.estimation.memory import ZeroPlacement
    from scripts.estimation.meta_model import ParameterCounts

# Memory in bytes, from the vendors' data sheets, and the name of their peak in `flops.PEAKS`.
GPUS = {
    "rtx4090": (24e9, "RTX 4090"),
    "a100-40": (40e9, "A100"),
    "l40s": (48e9, "L40S"),
    "a100-80": (80e9, "A100"),
    "h100": (80e9, "H100"),
    "h200": (141e9, "H200"),
    "b200": (180e9, "B200"),
}
STAGES = (0, 1, 2, 3)
OFFLOADS = ("none", "optimizer", "parameters")
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
# What the allocator cannot use.
_USABLE = 0.94


@dataclass(frozen=True)
class Estimate:
    """A run as far as its memory and time depend on it: its model without weights, and what decides sizes."""

    name: str
    run: "RunConfig"
    model: "VisualChatForConditionalGeneration"
    counts: "ParameterCounts"
    sizes: "LayerSizes"
    largest: int
    global_batch: int

    @classmethod
    def of(cls, configuration: settings.Settings, name: str) -> "Estimate":
        """Build the model of the run `name` on the meta device.

        Raises:
            UserError: a base is unknown, or an image does not become as many tokens as the configuration counts.
        """
        from scripts.estimation import meta_model
        from scripts.estimation.activations import LayerSizes

        run, root = configuration.runs[name], Path(configuration.results)
        section, blend = configuration.models[run.model], configuration.blends[run.blend]
        model = meta_model.build(section, run, root)
        expected = configuration.tokens[section.tokens].image_tokens
        if model.config.image_tokens != expected:
            raise UserError(
                f"runs.{name}: {section.vision} makes {model.config.image_tokens} tokens of an image, but "
                f"tokens.{section.tokens} counts {expected}; set its image_tokens to {model.config.image_tokens}"
            )
        sizes = LayerSizes.of(model, run, blend)
        return cls(
            name, run, model, meta_model.count(model, run), sizes, meta_model.largest_layer(model), blend.global_batch
        )

    def device(self, placement: "ZeroPlacement") -> dict[str, float]:
        """Bytes of a GPU by kind."""
        from scripts.estimation.memory import device_bytes
        from scripts.training.dataset import divide_batch

        # Ranks share the global batch: with many of them a micro-batch holds fewer rows than the setting allows.
        _, rows = divide_batch(self.global_batch, placement.ranks, self.run.micro_batch)
        share = rows / self.run.micro_batch
        sizes = replace(
            self.sizes, padded_tokens=int(self.sizes.padded_tokens * share), images=int(self.sizes.images * share)
        )
        needed = device_bytes(self.counts, placement, self.run.precision, sizes, self.largest)
        return needed | ({"encoder outside": 0.0} if self.run.features else {})

    def host(self, placement: "ZeroPlacement", ranks_here: int) -> float:
        """Bytes of a node with so many ranks."""
        from scripts.estimation.memory import host_bytes

        return host_bytes(self.counts, placement, self.run.precision, ranks_here, self.run.workers)

    def placements(self, ranks: int) -> Iterator["ZeroPlacement"]:
        """Every possible combination of stage and offload, with the run's second copy where there can be one."""
        from scripts.estimation.memory import ZeroPlacement

        copied = self.run.zero_hpz if ranks % self.run.zero_hpz == 0 else 1
        every = (
            ZeroPlacement(zero, offload, ranks, copied if zero == 3 and offload != "parameters" else 1)
            for offload in OFFLOADS
            for zero in STAGES
        )
        return (placement for placement in every if placement.possible)

    def second_copy_offer(self, ranks_here: int) -> list[str]:
        """A line about `zero_hpz`, for runs on several nodes whose divided weights are mostly frozen."""
        from scripts.estimation.memory import second_copy

        run, frozen = self.run, 1 - self.counts.n_trained / self.counts.inside
        if run.zero != 3 or run.offload == "parameters" or run.nodes == 1 or run.zero_hpz > 1 or frozen < 0.5:
            return []
        cost = second_copy(self.counts, run.precision, ranks_here) / 1e9
        line = f"zero_hpz: {ranks_here} would take {cost:.1f} GB more of a GPU; the weights that are frozen"
        return [f"{line} ({frozen:.0%}) are then gathered inside the node"]

    def smallest(self, capacity: float, offload: bool) -> "tuple[ZeroPlacement, float] | None":
        """The fewest ranks, and then the least offloaded and the lowest stage, that fit into GPUs of `capacity` bytes.

        Offloading, which is slow, is considered only with `offload`. Returns the placement and the bytes of a GPU, or
        None if nothing fits.
        """
        for ranks in COUNTS:
            for placement in self.placements(ranks):
                needed = sum(self.device(placement).values())
                if needed <= _USABLE * capacity and (offload or placement.offload == "none"):
                    return placement, needed
        return None


def report(configuration: settings.Settings, name: str, ranks: int, gpu: str, mfu: float) -> str:
    """The estimate of a run as text, on `ranks` GPUs of the kind `gpu` at a model flops utilisation of `mfu`.

    Raises:
        UserError: see `Estimate.of`.
    """
    from scripts.estimation.epoch_flops import operations
    from scripts.estimation.epoch_size import epoch_totals
    from scripts.training.flops import PEAKS
    from scripts.training.trainable import parameter_table

    estimate = Estimate.of(configuration, name)
    run = estimate.run
    blend = configuration.blends[run.blend]
    section = configuration.models[run.model]
    epoch = epoch_totals(configuration, run.blend, estimate.model.config.image_tokens)
    flops = operations(estimate.model, epoch, run.features)
    days = run.epochs * flops / (ranks * PEAKS[GPUS[gpu][1]] * mfu) / 86400
    ranks_here = max(1, ranks // run.nodes)
    lines = [f"run {name}: {section.language} with {section.vision}", "", parameter_table(estimate.model, run), ""]
    lines += [f"GB of a GPU: {ranks} ranks, micro_batch {run.micro_batch}, rows of {blend.sequence}, {run.precision}"]
    names = ("weights", "copies, state", "gradients", "buckets", "gathered", "activations", "all")
    rows: list[Sequence[str]] = [("zero", "offload", *names, f"node of {ranks_here}", "")]
    for placement in estimate.placements(ranks):
        needed = estimate.device(placement)
        get = needed.get
        parts = [
            get("weights", 0) + get("second copy", 0) + get("encoder outside", 0),
            get("fp32 copies", 0) + get("optimizer state", 0),
            *(get(kind, 0) for kind in ("gradients", "buckets", "gathered", "activations")),
            sum(needed.values()),
            estimate.host(placement, ranks_here),
        ]
        mark = "<- the recipe" if (placement.zero, placement.offload) == (run.zero, run.offload) else ""
        rows.append((str(placement.zero), placement.offload, *(f"{value / 1e9:.1f}" for value in parts), mark))
    lines += [_aligned(rows), *estimate.second_copy_offer(ranks_here)]
    packed = f"{epoch.units:,.0f} packs of {blend.sequence} tokens" if blend.packing else "a row each"
    steps = math.ceil(epoch.units / blend.global_batch)
    lines += [
        "",
        f"an epoch ({epoch.source}): {epoch.conversations:,.0f} conversations in {packed},",
        f"  {epoch.tokens / 1e6:,.3g} million tokens, {epoch.images:,.0f} images",
        *(f"  {note}" for note in epoch.notes),
        f"steps of {blend.global_batch} rows: {steps:,} in an epoch, {run.epochs * steps:,} in the run",
    ]
    lines += [f"operations per token: {flops / epoch.tokens:.3g}; of the run: {run.epochs * flops:.3g}"]
    lines += [f"{ranks} x {gpu} at {mfu:.0%} of their peak: {days:.1f} days for {run.epochs} epochs", ""]
    lines += ["the fewest GPUs that suffice"]
    rows = [("GPU", "", "number", "zero", "GB", "with offload", "zero", "GB", "of")]
    for kind, (capacity, _) in GPUS.items():
        plain, offloaded = (_fit(estimate.smallest(capacity, offload)) for offload in (False, True))
        rows.append((kind, "", *plain[:3], *offloaded))
    return "\n".join([*lines, _aligned(rows)]).rstrip() + "\n"


def _fit(found: "tuple[ZeroPlacement, float] | None") -> tuple[str, ...]:
    """Number of GPUs, stage, GB and what is offloaded."""
    if found is None:
        return "none", "", "", ""
    placement, needed = found
    return str(placement.ranks), str(placement.zero), f"{needed / 1e9:.1f}", placement.offload


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines of equal columns: the first two and the last to the left, the others to the right."""
    sides = ("left", "left", *("right" for _ in rows[0][3:]), "left")
    return tabulate(rows, tablefmt="plain", colalign=sides, disable_numparse=True)


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("configuration", type=Path, help="config.yaml or a recipe")
    arguments.add_argument("--run", help="only this run (default: all)")
    arguments.add_argument("--gpus", type=int, help="number of GPUs (default: the run's ranks)")
    arguments.add_argument(
        "--gpu", choices=GPUS, default="a100-80", help="kind of GPU, for the days (default: a100-80)"
    )
    mfu = "model flops utilisation: share of the GPU's peak that training reaches (default: 0.35; usual: 0.3 to 0.5)"
    arguments.add_argument("--mfu", type=float, default=0.35, help=mfu)
    options = arguments.parse_args()
    configuration = settings.read_configuration(options.configuration)
    if options.run and options.run not in configuration.runs:
        raise UserError(f"{options.configuration} has no run {options.run!r}, but {', '.join(configuration.runs)}")
    for name in [options.run] if options.run else configuration.runs:
        ranks = options.gpus or configuration.runs[name].ranks
        print(report(configuration, name, ranks, options.gpu, options.mfu))


if __name__ == "__main__":
    run_program(main)
