"""Running an adapter by the name of its dataset, and counting what becomes of the raw rows."""

import importlib
from collections.abc import Iterator

from scripts.adapters.base import Dropped
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import Note, RawFiles
from scripts.common.errors import UserError
from scripts.common.records import Record, check
from scripts.config.registry import DATASETS, Dataset

_EXAMPLES = 20


class Reasons:
    """Counts by reason, with the first examples of each."""

    def __init__(self) -> None:
        self._entries: dict[str, dict] = {}

    def add(self, reason: str, example: str, count: int = 1) -> None:
        """Count `count` cases of `reason`."""
        entry = self._entries.setdefault(reason, {"count": 0, "examples": []})
        entry["count"] += count
        if len(entry["examples"]) < _EXAMPLES:
            # Raw files may hold halves of characters, which no text file can.
            entry["examples"].append(example.encode("utf-8", "backslashreplace").decode())

    @property
    def total(self) -> int:
        """All cases."""
        return sum(entry["count"] for entry in self._entries.values())

    def as_dict(self) -> dict[str, dict]:
        """{reason: {count, examples}}."""
        return dict(sorted(self._entries.items()))

    def __str__(self) -> str:
        return ", ".join(f"{entry['count']} {reason}" for reason, entry in self.as_dict().items())


class Conversion:
    """The records of a dataset and, once they have all been read, the fate of every raw row.

    Iterating ends with a UserError if no row at all can be used.

    Attributes:
        rows: raw rows read.
        kept: those of them that are in a record.
        records: records made of them.
        dropped, noted: counts by reason.
    """

    def __init__(self, dataset: str, raw: RawFiles, images: ImageLookup):
        self.dataset, self._raw, self._images = dataset, raw, images
        self.entry = dataset_entry(dataset, raw)
        self.rows = self.kept = self.records = 0
        self.dropped, self.noted = Reasons(), Reasons()

    def __iter__(self) -> Iterator[Record]:
        for item in load_adapter(self.entry).records(self._raw, self._images):
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
        for note in self._raw.notes:
            self.noted.add(*note)
        if self.rows != self._raw.rows_read:
            raise ValueError(f"the adapter of {self.dataset!r} accounts for {self.rows} of {self._raw.rows_read} rows")
        if not self.records:
            raise self._nothing()

    def expected(self) -> int | None:
        """Rows that the published files have; None if unknown, or if a miniature provides them."""
        sources = [source for source in self._raw.folders if self._raw.card(source)["provided_by"] == "miniature"]
        return None if sources else self.entry.expected

    def _nothing(self) -> UserError:
        first = next(iter(self.dropped.as_dict().values()))["examples"][0]
        return UserError(
            f"dataset {self.dataset!r}: none of its {self.rows} rows can be used ({self.dropped}). For example {first}"
        )


def dataset_entry(name: str, raw: RawFiles) -> Dataset:
    """What is known of a dataset: from the registry, or from the card of its source where it is the user's own.

    Raises:
        UserError: there is none, or it has no records of its own.
    """
    if name in raw.folders and "dataset" in raw.card(name):
        return Dataset.model_validate(raw.card(name)["dataset"])
    known = sorted(dataset for dataset, entry in DATASETS.items() if entry.adapter)
    if name not in DATASETS:
        raise UserError(f"there is no dataset {name!r}; those that can be converted are {known}")
    if DATASETS[name].parts:
        raise UserError(f"{name!r} is a join of {list(DATASETS[name].parts)} that the plan makes: convert those")
    return DATASETS[name]


def load_adapter(entry: Dataset):
    """The adapter module of a dataset."""
    return importlib.import_module(f"scripts.adapters.{entry.adapter}")
