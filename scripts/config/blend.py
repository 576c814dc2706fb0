"""Settings of a blend: which datasets, how much of each, how they are joined, packed, ordered and stored."""

from typing import Annotated, Literal

from pydantic import Field, StrictInt, model_validator

from scripts.config.base import Section


class JoinConfig(Section):
    """Two kinds of conversations joined on their images: talk about each image, then questions about all of them."""

    over: str
    """Dataset whose conversations are joined, one for each of its own: pairs or groups of images."""
    talk: Annotated[tuple[str, ...], Field(min_length=1)]
    """Datasets whose conversations about one of these images alone come before and, as follow-ups, after."""


LLAVA_OTTER = "llava_otter_blend"
"""The entry that is this join unless it says otherwise: the paper's."""
_LLAVA_OTTER = JoinConfig(over="otter_mimicit_cgd", talk=("llava", "llava_dial"))


class BlendDatasetConfig(Section):
    """What one dataset gives to every epoch."""

    samples: Literal["all"] | Annotated[StrictInt, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = "all"
    """Conversations to draw: `all`, a number, or a share such as 0.25. Counted before concatenation, so numbers
    compare."""
    repeat: Annotated[int, Field(ge=1)] = 1
    """How often each drawn conversation occurs in an epoch; every copy makes its own choices among alternative
    texts."""
    proportion: Annotated[float, Field(gt=0, le=1)] | None = None
    """Instead of `samples` and `repeat`: share of the blend's `epoch_size`. A small dataset is repeated as often as
    needed, the last time in part; a large one gives other conversations in every epoch."""
    concat: Annotated[int, Field(ge=1)] = 1
    """Joins 1 to this many conversations into one over several images. The paper takes 3 for llava, 2 for llava_dial,
    else 1."""
    after: Annotated[float, Field(ge=0)] = 0.0
    """Moment of the run, in epochs, before which the dataset does not occur: 0.5 is half-way through the first epoch.
    Use it to teach looking before comparing."""
    join: JoinConfig | None = None
    """Makes the entry a join under a name of its own, of any two datasets that show the same images.
    `llava_otter_blend` need not say it."""
    followup: bool = True
    """Join only: may end with further rounds about one image, which name it ("In image 1, ...")."""
    conversations: Annotated[int, Field(ge=1)] = 2
    """Join only: at most so many single-image conversations about each image, and at least one (the last of several
    images may have none)."""
    rounds: Annotated[int, Field(ge=1)] = 3
    """Join only: at most so many rounds of each of these conversations."""
    followups: Annotated[int, Field(ge=1)] = 2
    """Join only: at most so many follow-up rounds."""


_JOIN_OPTIONS = ("followup", "conversations", "rounds", "followups")


class BlendStorageConfig(Section):
    """How a blend lies on the disk, whatever it holds (read by `blend`)."""

    tokens: str
    """Name of the token table (section `tokens`) that measures the conversations."""
    images: Literal["referenced", "embedded"] = "referenced"
    """`referenced` shards point into the media shards, which must stay at hand; `embedded` ones carry the images, for
    object stores and for other tools."""
    shards: Annotated[int, Field(ge=1, le=99999)] = 8
    """Tar files per epoch, built in parallel; aim at 100 to 500 MB each. The held-out part is one file."""


class BlendConfig(BlendStorageConfig):
    """A mixture of datasets: decided once per epoch as a table (the plan), then written as shards."""

    seed: int = 0
    """Another seed draws other samples, choices and another order."""
    datasets: Annotated[dict[str, BlendDatasetConfig], Field(min_length=1)]
    """Datasets by name, and joins. Removing one leaves the choices and the relative order of all others as they
    were."""
    epoch_size: Annotated[int, Field(ge=1)] | None = None
    """Conversations that the `proportion`s of the datasets share out, counted before concatenation."""
    max_images: Annotated[int, Field(ge=1, le=64)] = 8
    """Images in one conversation at most; what would come later is cut off in whole rounds and counted."""
    sequence: Annotated[int, Field(ge=1)] = 4096
    """Tokens in one conversation at most, images included, and in one pack: not above what the language model can
    read."""
    packing: bool = False
    """Put several conversations into one row of up to `sequence` tokens, where they do not see each other. Losses stay
    as they are and almost no place is padding; `global_batch` and a run's `micro_batch` then count packs."""
    max_images_per_pack: Annotated[int, Field(ge=1)] = 16
    """Images in one pack at most, so that no batch needs much more memory for images than another."""
    global_batch: Annotated[int, Field(ge=1)] = 128
    """Conversations, or packs, per optimiser step over all ranks. Batches are formed here, so that any number of ranks
    sees the same ones."""
    redraw: bool = True
    """Draw samples, choices and order anew in every epoch. `false` repeats epoch 0, and only that one is written."""

    parity: Literal["original"] | None = None
    """`original` trains on rows of official validation and test splits too, as the original does; such a model must not
    be compared on those benchmarks. Empty: they never train."""

    @model_validator(mode="after")
    def _consistent(self) -> "BlendConfig":
        for name, entry in self.datasets.items():
            place, join = f"datasets.{name}", self.join_of(name)
            if join and entry.concat != 1:
                raise ValueError(f"{place}.concat: a join is over several images already; remove it")
            changed = [option for option in _JOIN_OPTIONS if getattr(entry, option) != _default(option)]
            if not join and changed:
                raise ValueError(f"{place}.{changed[0]}: only a join takes this option; remove it")
            if join and join.over in join.talk:
                raise ValueError(f"{place}.join: {join.over} cannot be joined with itself")
            if entry.after > 0 and not self.redraw:
                raise ValueError(f"{place}.after: needs redraw: true, because a fixed blend repeats one epoch")
            if entry.proportion is not None:
                if (entry.samples, entry.repeat) != (_default("samples"), _default("repeat")):
                    raise ValueError(f"{place}.proportion: takes the place of samples and repeat; remove them")
                if self.epoch_size is None:
                    raise ValueError(f"{place}.proportion: needs epoch_size, the conversations that it is a share of")
        shares = [entry.proportion for entry in self.datasets.values() if entry.proportion is not None]
        if sum(shares) > 1 + 1e-9:
            raise ValueError(f"datasets: the proportions add up to {sum(shares):g}, which is more than the whole")
        if self.epoch_size is not None and not shares:
            raise ValueError("epoch_size: no dataset has a proportion of it; remove it or give one")
        if self.packing and self.max_images_per_pack < self.max_images:
            raise ValueError("max_images_per_pack: is below max_images, so a single conversation may not fit; raise it")
        return self

    def join_of(self, name: str) -> JoinConfig | None:
        """What the entry `name` joins, if it is a join."""
        return self.datasets[name].join or (_LLAVA_OTTER if name == LLAVA_OTTER else None)

    def component_datasets(self, name: str) -> list[str]:
        """The datasets whose records the entry `name` is made of: itself, or those that it joins."""
        join = self.join_of(name)
        return [join.over, *join.talk] if join else [name]

    def records(self) -> list[str]:
        """Names of the datasets whose records and token tables the blend reads: its entries and the parts of joins."""
        return sorted({part for name in self.datasets for part in self.component_datasets(name)})

    def followup_datasets(self) -> set[str]:
        """The datasets whose questions joins ask as follow-ups, which name their image."""
        joins = [self.join_of(name) for name, entry in self.datasets.items() if entry.followup]
        return {dataset for join in joins if join for dataset in join.talk}


class PlanConfig(BlendConfig):
    """What decides the rows of a plan: the blend, and how it treats conversations that only touch the hold-out."""

    mixed: Literal["evaluate", "drop"] = "evaluate"
    """Conversations with some but not all images held out never train: `evaluate` them, or `drop` them everywhere."""


def _default(option: str) -> object:
    return BlendDatasetConfig.model_fields[option].default
