"""The size of an epoch of a blend: conversations, rows of a batch, tokens, labels and images.

The plan has the exact numbers. Where there is none, or one of other settings, it is computed here from the records, if
these are built; and else estimated: as many conversations of every dataset as its settings ask for and as there are,
concatenated, cut to the sequence, and packed like those of a plan.
"""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scripts.blending.packing import pack
from scripts.blending.plan_writing import write_plan
from scripts.blending.selection import requested_count, requested_samples
from scripts.common.errors import UserError
from scripts.common.files import read_json
from scripts.config.blend import BlendConfig, BlendDatasetConfig, PlanConfig
from scripts.config.settings import Settings
from scripts.estimation.dataset_sizes import DatasetSize, Lengths, dataset_size, reading_of, tokens_to_start
from scripts.workflow import targets

PLANNED, COMPUTED = "as planned", "as it would be planned from the records"
_SIMULATED = 20_000
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class EpochTotals:
    """One epoch: conversations, rows of a batch (packs, or conversations), tokens, labels and images.

    `source`: where the numbers come from, in words. `notes`: what is known of datasets whose size is estimated.
    """

    conversations: float
    units: float
    tokens: float
    labels: float
    images: float
    source: str
    notes: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether the numbers are those of a plan."""
        return self.source in (PLANNED, COMPUTED)


def epoch_totals(configuration: Settings, name: str, image_tokens: int) -> EpochTotals:
    """The first epoch of the blend `name`. `image_tokens`: tokens of an image."""
    blend, root = configuration.blends[name], Path(configuration.results)
    manifest = root / "plan" / name / "epoch-000.json"
    plan = read_json(manifest) if manifest.is_file() else None
    if plan and is_of(plan, blend):
        return _of_plan(plan, PLANNED)
    try:
        return _of_plan(_computed_plan(configuration, name), COMPUTED)
    except (UserError, KeyError):
        # Not all is built, or by an earlier version, whose tables lack a column.
        return _estimated(configuration, name, image_tokens)


def _of_plan(plan: Mapping[str, Any], source: str) -> EpochTotals:
    images = sum(entry.get("images", 0) for entry in plan["datasets"].values())
    return EpochTotals(plan["conversations"], plan["units"], plan["tokens"], plan["labels"], images, source)


def is_of(plan: Mapping[str, Any], blend: BlendConfig) -> bool:
    """Whether a plan was made with these settings of the blend."""
    keys = ("seed", "sequence", "max_images", "global_batch", "packing", "epoch_size")
    asked = {name: account["asked"] for name, account in plan["datasets"].items()}
    entries = {
        name: entry.model_dump(mode="json", include=set(asked.get(name, ()))) for name, entry in blend.datasets.items()
    }
    return asked == entries and all(plan[key] == getattr(blend, key) for key in keys)


def _computed_plan(configuration: Settings, name: str) -> dict[str, Any]:
    """The manifest of the plan that the rule `plan` would make.

    Raises:
        UserError: its inputs are not all built.
    """
    root = Path(configuration.results)
    settings = PlanConfig.model_validate_json(targets.plan_rerun_key(configuration, name))
    with tempfile.TemporaryDirectory() as folder:
        return write_plan(
            name,
            settings,
            0,
            records=root / "records",
            tokens=root / "tokens" / configuration.blends[name].tokens,
            split=root / "split",
            media={source: root / "media" / source for source in targets.image_sources(configuration)},
            out=Path(folder),
        )


def _estimated(configuration: Settings, name: str, image_tokens: int) -> EpochTotals:
    blend = configuration.blends[name]
    reading = reading_of(configuration.tokens[blend.tokens], Path(configuration.results))
    entries = {each: entry for each, entry in sorted(blend.datasets.items()) if entry.after < 1}
    sizes = {each: dataset_size(configuration, each, blend.component_datasets(each), reading) for each in entries}
    numbers = {each: _asked(sizes[each], entries[each], configuration, blend) for each in entries}
    total = sum(numbers.values())
    scale = min(1.0, _SIMULATED / max(total, 1.0))
    start = tokens_to_start(reading)
    parts = []
    for each, entry in entries.items():
        count = max(1, round(scale * numbers[each]))
        concat = 1 if sizes[each].concatenated else entry.concat
        parts.append((_conversations(sizes[each].lengths, count, concat, start), numbers[each] / count))
    text, labels, images = (np.concatenate([getattr(lengths, key) for lengths, _ in parts]) for key in Lengths._fields)
    weights = np.concatenate([np.full(len(lengths.text), weight) for lengths, weight in parts])
    images = np.minimum(images, blend.max_images)
    tokens = np.minimum(text + images * image_tokens, blend.sequence)
    units = total
    if blend.packing:
        order = np.random.default_rng(0).permutation(len(tokens))
        whole = np.ceil(tokens[order]).astype(np.int64), np.round(images[order]).astype(np.int64)
        units = len(pack(*whole, blend.sequence, blend.max_images_per_pack).lengths) * float(weights.mean())
    notes = tuple(
        f"{each}: {numbers[each]:,.0f} conversations "
        f"({'a guess' if size.guessed else 'counted'}, from {_WHERE[size.source]})"
        for each, size in sizes.items()
    )
    sums = {
        "tokens": float((weights * tokens).sum()),
        "labels": float((weights * labels).sum()),
        "images": float((weights * images).sum()),
    }
    guess = "a guess" if any(size.guessed for size in sizes.values()) else "estimated from its rows"
    source = f"{guess}; build the data for the exact number"
    return EpochTotals(conversations=total, units=units, source=source, notes=notes, **sums)


_WHERE = {
    "records": "its records",
    "rows": "its files",
    "miniature": "the settings of the miniature",
    "replay": "its settings",
    "published": "the published numbers",
    "unknown": "nothing: it is not here yet",
}


def _asked(size: DatasetSize, entry: BlendDatasetConfig, configuration: Settings, blend: BlendConfig) -> float:
    """The conversations of an entry in an epoch, after concatenation."""
    # Rows without images are held out by the same share, where own data has no split.
    least = 1 if size.held_out_alone else 0
    shares = (1 - configuration.holdout.share) ** np.maximum(size.lengths.images, least)
    available = size.conversations * float(shares.mean())
    joined = (1 + entry.concat) / 2
    if size.concatenated and entry.proportion is None:
        share = entry.samples if isinstance(entry.samples, float) else 1.0
        number = available * share if not isinstance(entry.samples, int) else min(available, entry.samples / joined)
        return number * entry.repeat
    if entry.proportion is not None:
        return requested_count(entry, math.floor(available), blend.epoch_size) / joined
    return requested_samples(entry.samples, math.floor(available)) * entry.repeat / joined


def _conversations(lengths: Lengths, count: int, concat: int, start: float) -> Lengths:
    """So many conversations, each of 1 to `concat` of those of a sample; `start`: tokens that the first one has."""
    sizes = 1 + np.arange(count) % concat
    # Multiples of the golden ratio: any number of them takes members from all over the sample.
    members = (np.arange(int(sizes.sum())) * _GOLDEN % 1 * len(lengths.text)).astype(int)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    joined = Lengths(*(np.add.reduceat(column[members], starts) for column in lengths))
    return joined._replace(text=joined.text - start * (sizes - 1))
