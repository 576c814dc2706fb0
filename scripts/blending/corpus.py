"""The records of several datasets as flat arrays: all that a plan needs of them.

Reads `records/<dataset>.parquet` (without the texts) and `tokens/<tokens>/<dataset>.parquet` and stacks the datasets. A
record is from then on a row number, an image a code into one catalogue. *Rounds* are flat over all records: those of
record r are the rows `round_starts[r]` to `round_starts[r + 1]`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scripts.blending.ragged import Ragged, chunked, flat, list_starts
from scripts.common.errors import UserError
from scripts.common.files import open_table, read_table

PERMUTE = "permute"
_SEPARATOR = "\0"


@dataclass(frozen=True)
class TokenCounts:
    """Token counts of one kind of text of all rounds.

    `alternatives` (rounds + 1,): where the alternatives of each round start. `counts`: per alternative its tokens for
    every offset of image numbers, or a single count where the text names no image.
    """

    alternatives: np.ndarray
    counts: Ragged

    @classmethod
    def from_arrow(cls, column: pa.ListArray) -> "TokenCounts":
        """A flattened column of the token tables: list (alternatives) of list (offsets)."""
        return cls(list_starts(column), Ragged.from_arrow(column.flatten()))

    def of(self, rounds: np.ndarray, choices: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Tokens of the chosen alternative of each round, (n,)."""
        alternative = self.alternatives[rounds] + choices
        starts, ends = self.counts.starts[alternative], self.counts.starts[alternative + 1]
        # Offsets beyond the table belong to images beyond the limit, whose rounds are truncated anyway.
        return self.counts.values[starts + np.minimum(offsets, ends - starts - 1)]


class ImagesMarked(NamedTuple):
    """Whether some, and whether all, of each record's images are marked, both (records,) bool; False without images."""

    some: np.ndarray
    all: np.ndarray


@dataclass(frozen=True)
class Corpus:
    """The records of several datasets, row by row in the order of the datasets' names.

    Per record (records,): `dataset`, an index into `datasets`; `uids`, `licences`, `splits`; `images`, codes into
    `catalogue`, a struct of source and key; `prefixes`, tokens of its own system text, or 0; and its choice groups,
    numbered over all records: `group_names`, `group_sizes`, and `group_permutes`, whether a group is an order of
    rounds. Per round: `shown`, the record's images that appear in it; `question_group` and `answer_group`, the index
    of the group in the record, or -1; `supervised`, whether its answer is trained on; and the token counts of
    `questions`, of `named` (questions that name their image), of `answers`, and of `first`: questions that come first
    in a conversation, without alternatives where that is the same; `None` if it always is.
    """

    datasets: list[str]
    dataset: np.ndarray
    uids: pa.StringArray
    licences: pa.StringArray
    splits: pa.StringArray
    images: Ragged
    catalogue: pa.StructArray
    round_starts: np.ndarray
    shown: Ragged
    question_group: np.ndarray
    answer_group: np.ndarray
    supervised: np.ndarray
    group_names: pa.StringArray
    group_permutes: Ragged
    group_sizes: Ragged
    questions: TokenCounts
    named: TokenCounts
    answers: TokenCounts
    first: TokenCounts | None
    prefixes: np.ndarray

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def permuted(self) -> np.ndarray:
        """Whether the rounds of each record are shown in a drawn order, (records,) bool."""
        permuted = np.zeros(len(self), bool)
        permuted[self.group_permutes.rows[self.group_permutes.values]] = True
        return permuted

    @cached_property
    def image_names(self) -> pa.StringArray:
        """Source and key of every image of the catalogue as one text, for comparing."""
        return _joined(*self.catalogue.flatten())

    @cached_property
    def n_rounds(self) -> np.ndarray:
        """Rounds of each record."""
        return np.diff(self.round_starts)

    def rows_of(self, dataset: str) -> np.ndarray:
        """Row numbers of a dataset's records."""
        return np.flatnonzero(self.dataset == self.datasets.index(dataset))

    def uids_at(self, rows: np.ndarray) -> Iterator[bytes]:
        """The uids of the given rows as bytes, which are hashed; made chunk by chunk, while they are used."""
        uids = self.uids.cast(pa.binary())
        return chain.from_iterable(uids.take(pa.array(chunk)).to_pylist() for chunk in chunked(rows))

    def images_in(self, names: pa.Table) -> np.ndarray:
        """Whether each image of the catalogue is among `names` (columns source and key)."""
        value_set = _joined(names["source"], names["key"])
        return pc.is_in(self.image_names, value_set=value_set).to_numpy(zero_copy_only=False)

    def images_marked(self, marked: np.ndarray) -> ImagesMarked:
        """Of which records some or all images are among those that `marked` (images of the catalogue,) marks."""
        marks = np.bincount(self.images.rows[marked[self.images.values]], minlength=len(self))
        return ImagesMarked(marks > 0, (marks > 0) & (marks == self.images.lengths))


def load_corpus(records: Path, tokens: Path, datasets: list[str]) -> Corpus:
    """Read the tables of `datasets`, a column at a time, so that no more than one of them is in memory twice.

    Raises:
        UserError: a table is absent or empty, or a token table does not belong to its records.
    """
    rows = _Tables(records, datasets, "convert")
    counts = _Tables(tokens, datasets, "count_tokens")
    for name, size in zip(datasets, rows.sizes, strict=True):
        if size == 0:
            raise UserError(
                f"{records / name}.parquet holds no records: remove {name} from the blend, or see its report"
            )
    uids = rows.column("uid")
    if not uids.equals(counts.column("uid")):
        raise UserError(_mismatched_tables(rows, counts))

    images, rounds, groups = rows.column("images"), rows.column("rounds", "images"), rows.column("groups")
    catalogue, codes = _catalogue(images.flatten())
    groups_flat = groups.flatten()
    permutes = pc.equal(pc.struct_field(groups_flat, "kind"), PERMUTE).to_numpy(zero_copy_only=False)
    return Corpus(
        datasets=list(datasets),
        dataset=np.repeat(np.arange(len(datasets), dtype=np.int16), rows.sizes),
        uids=uids,
        licences=rows.column("licence").dictionary_encode(),
        splits=rows.column("split").dictionary_encode(),
        images=Ragged(codes, list_starts(images)),
        catalogue=catalogue,
        round_starts=list_starts(rounds),
        shown=Ragged.from_arrow(_field(rounds, "images")),
        question_group=_field(rows.column("rounds", "question_group"), "question_group").to_numpy(),
        answer_group=_field(rows.column("rounds", "answer_group"), "answer_group").to_numpy(),
        supervised=_field(rows.column("rounds", "supervised"), "supervised").to_numpy(zero_copy_only=False),
        group_names=pc.struct_field(groups_flat, "name"),
        group_permutes=Ragged(permutes, list_starts(groups)),
        group_sizes=Ragged(pc.struct_field(groups_flat, "size").to_numpy().astype(np.int64), list_starts(groups)),
        questions=TokenCounts.from_arrow(_field(counts.column("rounds", "question"), "question")),
        named=TokenCounts.from_arrow(_field(counts.column("rounds", "named"), "named")),
        answers=TokenCounts.from_arrow(_field(counts.column("rounds", "answer"), "answer")),
        first=TokenCounts.from_arrow(_field(counts.column("rounds", "first"), "first")) if counts.have_first else None,
        prefixes=counts.column("prefix").to_numpy().astype(np.int64),
    )


class _Tables:
    """The tables of several datasets below one folder, read by column as if they were one."""

    def __init__(self, folder: Path, datasets: list[str], step: str) -> None:
        self.paths = {name: Path(folder) / f"{name}.parquet" for name in datasets}
        for name, path in self.paths.items():
            if not path.exists():
                raise UserError(f"the blend needs {name}, but {path} does not exist: run {step} for this dataset first")
        self.sizes = [_rows_of(path) for path in self.paths.values()]

    @property
    def have_first(self) -> bool:
        """Whether token tables have counts of questions that come first; all of one template have them, or none."""
        with open_table(next(iter(self.paths.values()))) as table:
            return table.schema_arrow.field("rounds").type.value_type.get_field_index("first") >= 0

    def column(self, name: str, field: str | None = None) -> pa.Array:
        """A column of all tables as one array; of a list of structs only one `field`."""
        columns = [name if field is None else f"{name}.list.element.{field}"]
        parts = [flat(_read(path, columns), name) for path in self.paths.values()]
        return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)


def _rows_of(path: Path) -> int:
    with open_table(path) as table:
        return table.metadata.num_rows


def _read(path: Path, columns: list[str]) -> pa.Table:
    with open_table(path) as table:
        return table.read(columns)


def _mismatched_tables(rows: _Tables, counts: _Tables) -> str:
    """The message that names the token table which does not belong to its records."""
    for name, path in rows.paths.items():
        if not read_table(path, columns=["uid"]).equals(read_table(counts.paths[name], columns=["uid"])):
            return f"{counts.paths[name]} does not belong to {path}: run count_tokens for {name} again"
    raise AssertionError("each table has the uids of its records, but all together have not")


def _field(rounds: pa.ListArray, name: str) -> pa.Array:
    """One field of all rounds."""
    return pc.struct_field(rounds.flatten(), name)


def _catalogue(images: pa.StructArray) -> tuple[pa.StructArray, np.ndarray]:
    """The distinct images, sorted by source and key, and the code of each given image."""
    names = _joined(*images.flatten()).dictionary_encode()
    distinct = names.dictionary
    order = pc.sort_indices(distinct).to_numpy()
    code = np.empty(len(order), np.int64)
    code[order] = np.arange(len(order))
    parts = pc.split_pattern(distinct.take(pa.array(order)), _SEPARATOR, max_splits=1)
    fields = [pc.list_element(parts, i) if len(parts) else pa.array([], pa.string()) for i in (0, 1)]
    return pa.StructArray.from_arrays(fields, ["source", "key"]), code[names.indices.to_numpy()]


def _joined(sources: pa.StringArray, keys: pa.StringArray) -> pa.StringArray:
    return pc.binary_join_element_wise(sources, keys, _SEPARATOR)
