"""Which rows of own data are kept for evaluation: by their column of splits, by their file, by a share of all rows.

`split_of` judges a row while it is read, `keep_rows` a record whose images have been found. Both give the record the
split `HELD_OUT`, which the plan never trains on. A row that shows an image of the hold-out is not judged here: the plan
does that, for all datasets alike.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from scripts.adapters.raw import Note
from scripts.common.errors import UserError
from scripts.common.files import canonical_json
from scripts.common.records import HELD_OUT, Record
from scripts.config.custom import SplitConfig
from scripts.config.holdout import KeptRowsConfig
from scripts.config.registry import path_matches

TRAIN = "train"
SPLIT_MEMBER = "__split__"
"""The member with the split of a row in a folder that `datasets` has saved, or of a file that is named by its split."""
KEPT = "kept_for_evaluation"
"""The reason under which the report counts rows that are kept for evaluation."""
UNKNOWN_SPLIT = "unknown_split"
_SPLIT_NAME = re.compile(rf"({'|'.join(SplitConfig.model_fields['values'].default)})([-_.]?\d.*)?(\.[a-z0-9.]+)?")
_TRAINING = {"train", "training", "trainval", "all"}


def splits_by_name(paths: Iterable[str]) -> dict[str, str]:
    """The splits of files of a folder by their names or those of their folders; "" for files of none.

    As in `test-00000-of-00002.parquet`, `val.jsonl.gz` or `test/rows.jsonl`. If all files have such names, as a single
    `test.jsonl` has, the names mean nothing.
    """
    found = {path: _named_split(path) for path in paths}
    return found if not all(found.values()) else dict.fromkeys(found, "")


def _named_split(path: str) -> str:
    matches = [_SPLIT_NAME.fullmatch(part.casefold()) for part in path.split("/")]
    return next((match[1] for match in matches if match), "")


class OwnSplits:
    """The splits of the rows of one dataset, and what was seen of them."""

    def __init__(self, dataset: str, settings: SplitConfig | None) -> None:
        """Judge rows of `dataset`; rows that carry the split of a `datasets` folder have that, with any `settings`."""
        self._dataset, self._settings = dataset, settings or SplitConfig(column=SPLIT_MEMBER)
        self._column = settings.column if settings and settings.values else None
        self._kept_names = {_plain(value) for value in self._settings.values}
        self._files_left = set(self._settings.files)
        self._values: dict[str, int] = {}

    def split_of(self, file: str, value: str, row: str) -> tuple[str, list[Note]]:
        """The split of a row, `TRAIN` or `HELD_OUT`, and notes to count.

        Args:
            file: the row's file, below the dataset's folder.
            value: what the row's column of splits holds, or "".
            row: names the row in the examples of the report.
        """
        if self._settings.files:
            patterns = [pattern for pattern in self._settings.files if path_matches(file, pattern)]
            if patterns:
                self._files_left.difference_update(patterns)
                return HELD_OUT, [Note(KEPT, f"{row}: a row of {file}")]
        name = _plain(value) if value else ""
        if not name:
            return TRAIN, []
        self._values[name] = self._values.get(name, 0) + 1
        if name in self._kept_names:
            return HELD_OUT, [Note(KEPT, f"{row}: its split is {value!r:.40}")]
        if name in _TRAINING:
            return TRAIN, []
        return TRAIN, [Note(UNKNOWN_SPLIT, f"{row}: its split is {value!r:.40}, which is trained on")]

    def check(self) -> None:
        """Check, after the last row, that the setting `split` has done what it was written for.

        Raises:
            UserError: no row has the column, no row has a value that is kept, or a file gave no row.
        """
        where = f"custom.{self._dataset}.split"
        if self._files_left:
            missing = ", ".join(sorted(self._files_left))
            raise UserError(f"{where}.files: no row was read from {missing}; see `custom.{self._dataset}.files`")
        column = self._column
        if column is None or self._values.keys() & self._kept_names:
            return
        if not self._values:
            raise UserError(f"{where}.column: no row has a value in {column!r}; correct the name, or remove `split`")
        most = sorted(self._values, key=lambda name: (-self._values[name], name))[:5]
        found = ", ".join(f"{name!r:.40} ({self._values[name]})" for name in most)
        raise UserError(
            f"{where}.values: no row would be kept for evaluation, because {column!r} holds {found}; "
            f"list those to keep, such as values: [{most[-1]:.40}]"
        )


def _plain(value: str) -> str:
    return str(value).strip().casefold()


def keep_rows(
    records: Iterable[Record], settings: KeptRowsConfig, count: Callable[[str, str], None]
) -> Iterator[Record]:
    """Pass records on, and keep a share of them for evaluation; `count` is called with reason and example of each."""
    for record in records:
        if _is_judged(record, settings) and content_share(record, settings.seed) < settings.share:
            count(KEPT, f"{record.id}: by the hash of its content")
            record = replace(record, split=HELD_OUT)
        yield record


def _is_judged(record: Record, settings: KeptRowsConfig) -> bool:
    return record.split == TRAIN and not (settings.text_only and record.images)


def content_share(record: Record, seed: int) -> float:
    """A number in [0, 1) from a hash of a record's content: its texts with their roles, and its images.

    Neither the id nor the place of the row counts, nor the name of its dataset: the same row twice has one number.
    """
    rounds = [[round_.question, round_.answer, round_.images] for round_ in record.rounds]
    content = canonical_json([record.system, [image.key for image in record.images], rounds])
    digest = hashlib.blake2b(content.encode(), key=str(seed).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
