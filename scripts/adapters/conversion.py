"""Running the adapter of a dataset, and counting how many raw rows are kept, dropped or noted, and why."""

import importlib
from collections.abc import Iterator
from typing import Protocol, cast

from scripts.adapters.base import Dropped
from scripts.adapters.image_lookup import OUTSIDE_SUBSET, ImageLookup
from scripts.adapters.raw import Note, RawFiles
from scripts.common.errors import UserError
from scripts.common.records import Record, check
from scripts.config.registry import DATASETS, Dataset

MEANT = frozenset({OUTSIDE_SUBSET, "nothing_supervised"})
"""Reasons of rows that the configuration or the rows themselves leave out; these are no losses."""
_EXAMPLES = 20


_EXAMPLE_LENGTH = 500


class Reasons:
    """Counts by reason, with the first examples of each."""

    def __init__(self) -> None:
        self._entries: dict[str, dict] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count `count` cases of `reason`."""
        entry = self._entries.setdefault(reason, {"count": 0, "examples": []})
        entry["count"] += count
        if len(entry["examples"]) < _EXAMPLES:
            # Raw files may contain texts of any length, and lone surrogates, which cannot be encoded as UTF-8.
            shown = example if len(example) <= _EXAMPLE_LENGTH else f"{example[:_EXAMPLE_LENGTH]}..."
            entry["examples"].append(shown.encode("utf-8", "backslashreplace").decode())

    @property
    def total(self) -> int:
        """The number of all cases."""
        return sum(entry["count"] for entry in self._entries.values())

    def as_dict(self) -> dict[str, dict]:
        """{reason: {count, examples}}."""
        return dict(sorted(self._entries.items()))

    def __str__(self) -> str:
        return ", ".join(f"{entry['count']} {reason}" for reason, entry in self.as_dict().items())


class Conversion:
    """The records of a dataset and, after the iteration, counts of what became of the raw rows.

    Iterating raises UserError at the end if no row can be used.

    Attributes:
        dataset: its name.
        entry: its entry in the registry.
        rows: raw rows read.
        kept: raw rows that are in a record.
        records: records made of them.
        dropped, noted: counts by reason.
    """

    def __init__(self, dataset: str, raw: RawFiles, images: ImageLookup) -> None:
        self.dataset, self._raw, self._images = dataset, raw, images
        self.entry = dataset_entry(dataset, raw)
        self.rows = self.kept = self.records = 0
        self.dropped, self.noted = Reasons(), Reasons()

    def __iter__(self) -> Iterator[Record]:
        raw_notes = self._raw.notes
        for item in load_adapter(self.entry).records(self._raw, self._images):
            while raw_notes:
                # Kept one by one, they would take gigabytes where every row has one.
                self.noted.add(*raw_notes.pop(0))
            if isinstance(item, Note):
                self.noted.add(item.reason, item.example)
            elif isinstance(item, Dropped):
                self.dropped.add(item.reason, item.example, item.rows)
                self.rows += item.rows
            else:
                check(item)
                self.rows += item.raw_rows
                self.kept += item.raw_rows
                self.records += 1
                yield item
        for note in (*raw_notes, *self._raw.listed_notes()):
            self.noted.add(*note)
        if self.rows != self._raw.rows_read:
            raise ValueError(f"the adapter of {self.dataset!r} accounts for {self.rows} of {self._raw.rows_read} rows")
        if not self.records:
            raise self._nothing_usable()

    def expected(self) -> int | None:
        """Rows of the published files; None if unknown, or if the files are those of the miniature."""
        manifests = [self._raw.manifest(source) for source in self._raw.folders]
        synthetic = any(manifest["provided_by"] == "miniature" for manifest in manifests)
        return None if synthetic else self.entry.expected

    def _nothing_usable(self) -> UserError:
        first = next(iter(self.dropped.as_dict().values()))["examples"][0]
        return UserError(
            f"dataset {self.dataset!r}: none of its {self.rows} rows can be used ({self.dropped}). For example {first}"
        )


def dataset_entry(name: str, raw: RawFiles) -> Dataset:
    """The entry of a dataset: from the registry or, for a custom dataset, from the manifest of its source.

    Raises:
        UserError: there is no such dataset, or it is a join, which has no records.
    """
    if name in raw.folders and "dataset" in raw.manifest(name):
        return Dataset.model_validate(raw.manifest(name)["dataset"])
    known = sorted(dataset for dataset, entry in DATASETS.items() if entry.adapter)
    if name not in DATASETS:
        raise UserError(f"there is no dataset {name!r}; those that can be converted are {known}")
    if DATASETS[name].parts:
        raise UserError(f"{name!r} is a join of {list(DATASETS[name].parts)} that the plan makes: convert those")
    return DATASETS[name]


class Adapter(Protocol):
    """The interface of an adapter module."""

    def records(self, raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
        """The results for the rows of a dataset."""


def load_adapter(entry: Dataset) -> Adapter:
    """Import the adapter module of a dataset."""
    # A module is an object with the function `records`, which a type checker cannot see through import_module.
    return cast(Adapter, importlib.import_module(f"scripts.adapters.{entry.adapter}"))
