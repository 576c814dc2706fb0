"""Settings of a blend: which datasets, how much of each, how they are joined, packed, ordered and stored."""

from typing import Annotated, Literal

from pydantic import Field, StrictInt, model_validator

from scripts.config.base import Section


class JoinConfig(Section):
    """Conversations about single images joined with conversations about pairs or groups of the same images."""

    over: str
    """Dataset with conversations about several images; each of them becomes one joined conversation."""
    talk: Annotated[tuple[str, ...], Field(min_length=1)]
    """Datasets with conversations about one image, which are put before and, as follow-ups, after."""


LLAVA_OTTER = "llava_otter_blend"
"""The name of the join of the paper; an entry with this name needs no `join`."""
_LLAVA_OTTER = JoinConfig(over="otter_mimicit_cgd", talk=("llava", "llava_dial"))


class BlendDatasetConfig(Section):
    """What one dataset contributes to every epoch."""

    samples: Literal["all"] | Annotated[StrictInt, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = "all"
    """Conversations to sample: `all`, a number, or a share such as 0.25. Counted before concatenation."""
    repeat: Annotated[int, Field(ge=1)] = 1
    """How often each sampled conversation occurs in an epoch; the alternative texts are chosen anew for every copy."""
    proportion: Annotated[float, Field(gt=0, le=1)] | None = None
    """Instead of `samples` and `repeat`: share of the blend's `epoch_size`. A small dataset is repeated as often as
    needed, the last time in part; of a large one, every epoch has other conversations."""
    concat: Annotated[int, Field(ge=1)] = 1
    """Joins 1 to this many conversations into one over several images. The paper takes 3 for llava, 2 for llava_dial,
    else 1."""
    after: Annotated[float, Field(ge=0)] = 0.0
    """Time in epochs before which the dataset does not occur: 0.5 is the middle of the first epoch. Use it to train on
    single images before comparisons."""
    join: JoinConfig | None = None
    """Makes the entry a join, under a new name, of datasets that show the same images. Not needed for
    `llava_otter_blend`."""
    followup: bool = True
    """Join only: whether it may end with further rounds about one image, which name it ("In image 1, ...")."""
    conversations: Annotated[int, Field(ge=1)] = 2
    """Join only: most single-image conversations about each image; at least one (none is possible for the last of
    several images)."""
    rounds: Annotated[int, Field(ge=1)] = 3
    """Join only: most rounds of each of these conversations."""
    followups: Annotated[int, Field(ge=1)] = 2
    """Join only: most follow-up rounds."""


_JOIN_OPTIONS = ("followup", "conversations", "rounds", "followups")


class BlendStorageConfig(Section):
    """How a blend is stored, independent of its content (read by `blend`)."""

    tokens: str = ""
    """Entry of `tokens` with which the lengths of conversations are counted. Empty: that of the models of the runs that
    train on this blend."""
    images: Literal["referenced", "embedded"] = "referenced"
    """`referenced`: shards refer to the media shards, which have to be kept; `embedded`: shards contain the images, for
    object stores and for other tools."""
    shards: Annotated[int, Field(ge=1, le=99999)] = 8
    """Tar files per epoch, built in parallel; aim at 100 to 500 MB each. The held-out part is one file."""


class BlendConfig(BlendStorageConfig):
    """A mixture of datasets: fixed for every epoch by a table (the plan), then written as shards."""

    seed: int = 0
    """Another seed gives other samples, other choices and another order."""
    datasets: Annotated[dict[str, BlendDatasetConfig], Field(min_length=1)]
    """Datasets by name, and joins. Removing one does not change the choices and the relative order of the others."""
    epoch_size: Annotated[int, Field(ge=1)] | None = None
    """Conversations in an epoch of which the datasets have their `proportion`, counted before concatenation."""
    max_images: Annotated[int, Field(ge=1, le=64)] = 8
    """Most images in one conversation; later rounds are cut off as a whole and counted."""
    sequence: Annotated[int, Field(ge=1)] = 4096
    """Most tokens in one conversation or pack, images included: at most the context length of the language model."""
    packing: bool = False
    """Put several conversations into one row of up to `sequence` tokens, where they do not attend to each other. The
    losses are the same with almost no padding; `global_batch` and a run's `micro_batch` then count packs."""
    max_images_per_pack: Annotated[int, Field(ge=1)] = 16
    """Most images in one pack, so that all batches need about the same memory for images."""
    global_batch: Annotated[int, Field(ge=1)] = 128
    """Conversations, or packs, per optimizer step over all ranks. Batches are part of the plan, so they are the same
    for any number of ranks."""
    redraw: bool = True
    """Sample, choose and shuffle anew for every epoch. `false` repeats epoch 0, and only that one is written."""

    parity: Literal["original"] | None = None
    """`original` also trains on rows of official validation and test splits, as the original does; such a model must
    not be compared on those benchmarks. Empty: these rows are never used for training."""

    @model_validator(mode="after")
    def _consistent(self) -> "BlendConfig":
        for name, entry in self.datasets.items():
            self._check_entry(f"datasets.{name}", entry, self.join_of(name))
        shares = [entry.proportion for entry in self.datasets.values() if entry.proportion is not None]
        if sum(shares) > 1 + 1e-9:
            raise ValueError(f"datasets: the proportions add up to {sum(shares):g}, which is more than 1")
        if self.epoch_size is not None and not shares:
            raise ValueError("epoch_size: no dataset has a proportion of it; remove it or give one")
        if self.packing and self.max_images_per_pack < self.max_images:
            raise ValueError("max_images_per_pack: is below max_images, so a single conversation may not fit; raise it")
        return self

    def _check_entry(self, path: str, entry: BlendDatasetConfig, join: JoinConfig | None) -> None:
        if join and entry.concat != 1:
            raise ValueError(f"{path}.concat: a join is over several images already; remove it")
        changed = [option for option in _JOIN_OPTIONS if getattr(entry, option) != _default(option)]
        if not join and changed:
            raise ValueError(f"{path}.{changed[0]}: only a join takes this option; remove it")
        if join and join.over in join.talk:
            raise ValueError(f"{path}.join: {join.over} cannot be joined with itself")
        if entry.after > 0 and not self.redraw:
            raise ValueError(f"{path}.after: needs redraw: true, because a fixed blend repeats one epoch")
        if entry.proportion is not None:
            if (entry.samples, entry.repeat) != (_default("samples"), _default("repeat")):
                raise ValueError(f"{path}.proportion: replaces samples and repeat; remove them")
            if self.epoch_size is None:
                raise ValueError(f"{path}.proportion: needs epoch_size, the conversations that it is a share of")

    def join_of(self, name: str) -> JoinConfig | None:
        """The join of the entry `name`; None if it is not a join."""
        return self.datasets[name].join or (_LLAVA_OTTER if name == LLAVA_OTTER else None)

    def component_datasets(self, name: str) -> list[str]:
        """The datasets whose records the entry `name` is made of: itself, or those that it joins."""
        join = self.join_of(name)
        return [join.over, *join.talk] if join else [name]

    def records(self) -> list[str]:
        """Names of the datasets whose records and token tables the blend reads, those of joins included."""
        return sorted({part for name in self.datasets for part in self.component_datasets(name)})

    def followup_datasets(self) -> set[str]:
        """The datasets whose questions occur as follow-ups of a join, where they name their image."""
        joins = [self.join_of(name) for name, entry in self.datasets.items() if entry.followup]
        return {dataset for join in joins if join for dataset in join.talk}

    def joined_datasets(self) -> set[str]:
        """The datasets whose records a join shows."""
        joins = [name for name in self.datasets if self.join_of(name)]
        return {dataset for name in joins for dataset in self.component_datasets(name)}


class PlanConfig(BlendConfig):
    """All settings that determine the rows of a plan: those of the blend, and what `holdout` adds."""

    mixed: Literal["evaluate", "drop"] = "evaluate"
    """What is done with conversations of which some but not all images are held out; see `holdout.mixed`."""
    own: tuple[str, ...] = ()
    """Custom datasets, each of which holds out at least one conversation; empty if `holdout.share` is 0."""


def _default(option: str) -> object:
    return BlendDatasetConfig.model_fields[option].default
