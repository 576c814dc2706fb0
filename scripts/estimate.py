"""Know before you pay: what the runs of a configuration need, from their recipe alone, before anything is downloaded.

    python -m scripts.estimate recipes/paper-7b.yaml [--run mmca] [--gpus 8] [--gpu a100-80]
    python -m scripts.train --estimate recipes/paper-7b.yaml ...          the same

For every run: which parameters are trained and which are frozen; the memory of a GPU at every ZeRO stage with every
offload; the memory of a node; operations per token, and days; and the fewest GPUs of each kind that hold it. The model
is built on the meta device, so that 70 billion parameters are counted on a laptop in seconds; where its bases are not
here, published architectures stand in (`scripts/estimation/architectures.py`).

States are exact; activations are estimated from the layers' shapes, and days from the share of a GPU's peak that
training of such models usually reaches. How many tokens an epoch has is read from the plan, once it is there; before,
it is guessed and said so.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from tabulate import tabulate

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.config import settings

if TYPE_CHECKING:
    from model.modeling import VisualChatForConditionalGeneration
    from scripts.config.run import RunConfig
    from scripts.estimation.memory import LayerSizes, ZeroPlacement
    from scripts.estimation.meta_model import ParameterCounts

# Memory in bytes, from the vendors' data sheets, and the name under which `flops.py` knows their speed.
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
    """What is known of a run: its model without weights, and the settings that decide sizes."""

    name: str
    run: "RunConfig"
    model: "VisualChatForConditionalGeneration"
    counts: "ParameterCounts"
    shape: "LayerSizes"
    largest: int

    @classmethod
    def of(cls, configuration: settings.Settings, name: str) -> "Estimate":
        """Build the model of the run `name` on the meta device."""
        from scripts.estimation import meta_model
        from scripts.estimation.memory import LayerSizes

        run, root = configuration.runs[name], Path(configuration.results)
        section, blend = configuration.models[run.model], configuration.blends[run.blend]
        model = meta_model.build(section, run, root)
        counted = configuration.tokens[section.tokens].image_tokens
        if model.config.image_tokens != counted:
            raise UserError(
                f"runs.{name}: {section.vision} makes {model.config.image_tokens} tokens of an image, but "
                f"tokens.{section.tokens} counts {counted}; set its image_tokens to {model.config.image_tokens}"
            )
        text, vision = model.config.text_config, model.config.vision_config
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        shape = LayerSizes(
            width=text.hidden_size,
            inner=text.intermediate_size,
            kv_width=head * (getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
            layers=text.num_hidden_layers,
            vocabulary=text.vocab_size,
            tower_width=getattr(vision, "vit_width", None) or vision.hidden_size,
            tower_layers=vision.num_hidden_layers,
            tower_tokens=(model.config.image_size // vision.patch_size) ** 2,
            padded_tokens=run.micro_batch * blend.sequence,
            images=run.micro_batch * (blend.max_images_per_pack if blend.packing else blend.max_images),
            checkpointing=run.gradient_checkpointing,
            learns_through_tower=run.train_vision != "frozen",
        )
        return cls(name, run, model, meta_model.count(model, run), shape, meta_model.largest_layer(model))

    def device(self, choice: "ZeroPlacement") -> dict[str, float]:
        """Bytes of a GPU by kind."""
        from scripts.estimation.memory import device_bytes

        return device_bytes(self.counts, choice, self.run.precision, self.shape, self.largest)

    def host(self, choice: "ZeroPlacement", ranks_here: int) -> float:
        """Bytes of a node with so many ranks."""
        from scripts.estimation.memory import host_bytes

        return host_bytes(self.counts, choice, self.run.precision, ranks_here, self.run.workers)

    def choices(self, ranks: int) -> Iterator["ZeroPlacement"]:
        """Every stage and offload that go together."""
        from scripts.estimation.memory import ZeroPlacement

        every = (ZeroPlacement(zero, offload, ranks) for offload in OFFLOADS for zero in STAGES)
        return (choice for choice in every if choice.possible)

    def smallest(self, room: float, offload: bool) -> "tuple[ZeroPlacement, float] | None":
        """The fewest ranks, and then the least offloaded and the lowest stage, that fit into GPUs with `room` bytes.

        Only without `offload` are they fast. Returns the choice and the bytes that it takes of a GPU.
        """
        for ranks in COUNTS:
            for choice in self.choices(ranks):
                needed = sum(self.device(choice).values())
                if needed <= _USABLE * room and (offload or choice.offload == "none"):
                    return choice, needed
        return None


def report(configuration: settings.Settings, name: str, ranks: int, gpu: str, share: float) -> str:
    """The estimate of a run as text: `ranks` GPUs of the kind `gpu`, of whose peak a `share` is reached."""
    from scripts.estimation.epoch_flops import epoch_totals, operations
    from scripts.training.flops import PEAKS
    from scripts.training.trainable import parameter_table

    estimate = Estimate.of(configuration, name)
    run = estimate.run
    blend = configuration.blends[run.blend]
    section = configuration.models[run.model]
    load = epoch_totals(blend, Path(configuration.results) / "plan" / run.blend, estimate.model.config.image_tokens)
    flops = operations(estimate.model, load)
    days = run.epochs * flops / (ranks * PEAKS[GPUS[gpu][1]] * share) / 86400
    here = max(1, ranks // run.nodes)
    lines = [f"run {name}: {section.language} with {section.vision}", "", parameter_table(estimate.model, run), ""]
    lines += [f"GB of a GPU: {ranks} ranks, micro_batch {run.micro_batch}, rows of {blend.sequence}, {run.precision}"]
    names = ("weights", "copies, moments", "gradients", "buckets", "gathered", "activations", "all")
    rows = [("zero", "offload", *names, f"node of {here}", "")]
    for choice in estimate.choices(ranks):
        held = estimate.device(choice)
        get = held.get
        parts = [
            get("weights", 0) + get("encoder outside", 0),
            get("fp32 copies", 0) + get("moments", 0),
            *(get(kind, 0) for kind in ("gradients", "buckets", "gathered", "activations")),
            sum(held.values()),
            estimate.host(choice, here),
        ]
        mark = "<- the recipe" if (choice.zero, choice.offload) == (run.zero, run.offload) else ""
        rows.append((str(choice.zero), choice.offload, *(f"{value / 1e9:.1f}" for value in parts), mark))
    lines += [_aligned(rows)]
    sure = "as planned" if load.planned else "guessed; build the data to know"
    lines += [
        "",
        f"an epoch ({sure}): {load.conversations:,.0f} conversations, {load.tokens / 1e6:,.0f} million tokens",
    ]
    lines += [f"operations per token: {flops / load.tokens:.3g}; of the run: {run.epochs * flops:.3g}"]
    lines += [f"{ranks} x {gpu} at {share:.0%} of their peak: {days:.1f} days for {run.epochs} epochs", ""]
    lines += ["the fewest GPUs that hold it"]
    rows = [("GPU", "", "number", "zero", "GB", "with offload", "zero", "GB", "of")]
    for kind, (room, _) in GPUS.items():
        plain, slow = (_fit(estimate.smallest(room, offload)) for offload in (False, True))
        rows.append((kind, "", *(plain[:3] if plain else ("none", "", "")), *(slow or ("none", "", "", ""))))
    return "\n".join([*lines, _aligned(rows)]).rstrip() + "\n"


def _fit(found: "tuple[ZeroPlacement, float] | None") -> tuple[str, ...]:
    """Number of GPUs, stage, GB and what is offloaded, or nothing."""
    if found is None:
        return ()
    choice, needed = found
    return str(choice.ranks), str(choice.zero), f"{needed / 1e9:.1f}", choice.offload


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
    share = "share of the GPU's peak that training reaches (default: 0.35; 0.3 to 0.5 is usual)"
    arguments.add_argument("--mfu", type=float, default=0.35, help=share)
    options = arguments.parse_args()
    try:
        configuration = settings.load(yaml.safe_load(options.configuration.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{options.configuration} cannot be read: {error.strerror}") from None
    if options.run and options.run not in configuration.runs:
        raise UserError(f"{options.configuration} has no run {options.run!r}, but {', '.join(configuration.runs)}")
    for name in [options.run] if options.run else configuration.runs:
        ranks = options.gpus or configuration.runs[name].ranks
        print(report(configuration, name, ranks, options.gpu, options.share))


if __name__ == "__main__":
    run_program(main)
