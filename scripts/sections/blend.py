"""Settings of a blend: which datasets, how much of each, how they are joined, ordered and stored."""

from typing import Annotated, Literal

from pydantic import Field, StrictInt, model_validator

from scripts.sections.base import Section

JOIN = "llava_otter_blend"
JOIN_TALK = ("llava", "llava_dial")
JOIN_PAIRS = "otter_mimicit_cgd"


class Entry(Section):
    """What one dataset gives to every epoch."""

    samples: Literal["all"] | Annotated[StrictInt, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)] = "all"
    """Conversations to draw: `all`, a number, or a share such as 0.25. Counted before concatenation, so numbers
    compare."""
    repeat: Annotated[int, Field(ge=1)] = 1
    """How often each drawn conversation occurs in an epoch; every copy makes its own choices among alternative
    texts."""
    concat: Annotated[int, Field(ge=1)] = 1
    """Joins 1 to this many conversations into one over several images. The paper takes 3 for llava, 2 for llava_dial,
    else 1."""
    after: Annotated[float, Field(ge=0)] = 0.0
    """Moment of the run, in epochs, before which the dataset does not occur: 0.5 is half-way through the first epoch.
    Use it to teach looking before comparing."""
    followup: bool = True
    """Join only: may end with further rounds about one image, which name it ("In image 1, ...")."""
    conversations: Annotated[int, Field(ge=1)] = 2
    """Join only: at most so many single-image conversations about each image, and at least one (the last image may have
    none)."""
    rounds: Annotated[int, Field(ge=1)] = 3
    """Join only: at most so many rounds of each of these conversations."""
    followups: Annotated[int, Field(ge=1)] = 2
    """Join only: at most so many follow-up rounds."""


_JOIN_OPTIONS = ("followup", "conversations", "rounds", "followups")


class Storage(Section):
    """How a blend lies on the disk, whatever it holds (read by `blend`)."""

    tokens: str
    """Name of the token table (section `tokens`) that measures the conversations."""
    images: Literal["referenced", "embedded"] = "referenced"
    """`referenced` shards point into the media shards, which must stay at hand; `embedded` ones carry the images, for
    object stores and for other tools."""
    shards: Annotated[int, Field(ge=1, le=99999)] = 8
    """Tar files per epoch; aim at 100 to 500 MB each. The held-out part is one file."""


class Blend(Storage):
    """A mixture of datasets: decided once per epoch as a table (the plan), then written as shards."""

    seed: int = 0
    """Another seed draws other samples, choices and another order."""
    datasets: Annotated[dict[str, Entry], Field(min_length=1)]
    """Datasets by name. Removing one leaves the choices and the relative order of all others as they were."""
    max_images: Annotated[int, Field(ge=1, le=64)] = 8
    """Images in one conversation at most; what would come later is cut off in whole rounds and counted."""
    sequence: Annotated[int, Field(ge=1)] = 4096
    """Tokens in one conversation at most, images included: not above what the language model can read."""
    global_batch: Annotated[int, Field(ge=1)] = 128
    """Conversations per optimiser step over all ranks. Batches are formed here, so that any number of ranks sees the
    same ones."""
    redraw: bool = True
    """Draw samples, choices and order anew in every epoch. `false` repeats epoch 0, and only that one is written."""

    parity: Literal["original"] | None = None
    """`original` trains on rows of official validation and test splits too, as the original does; such a model must not
    be compared on those benchmarks. Empty: they never train."""

    @model_validator(mode="after")
    def _consistent(self) -> "Blend":
        for name, entry in self.datasets.items():
            if name == JOIN and entry.concat != 1:
                raise ValueError(f"datasets.{name}.concat: a join is over several images already; remove it")
            changed = [name for name in _JOIN_OPTIONS if getattr(entry, name) != Entry.model_fields[name].default]
            if name != JOIN and changed:
                raise ValueError(f"datasets.{name}.{changed[0]}: only {JOIN} takes this option; remove it")
            if entry.after > 0 and not self.redraw:
                raise ValueError(f"datasets.{name}.after: needs redraw: true, because a fixed blend repeats one epoch")
        return self

    def records(self) -> list[str]:
        """Names of the datasets whose records and token tables the blend reads: its entries and the parts of a join."""
        names = set(self.datasets) - {JOIN}
        if JOIN in self.datasets:
            names |= {*JOIN_TALK, JOIN_PAIRS}
        return sorted(names)


class Planned(Blend):
    """What decides the rows of a plan: the blend, and how it treats conversations that only touch the hold-out."""

    mixed: Literal["evaluate", "drop"] = "evaluate"
    """Conversations with some but not all images held out never train: `evaluate` them, or `drop` them everywhere."""
