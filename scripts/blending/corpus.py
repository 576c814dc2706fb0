"""Everything a plan knows about the records of several datasets, as flat arrays.

Reads `records/<dataset>.parquet` (without the texts) and `tokens/<tokens>/<dataset>.parquet` and stacks the datasets. A
record is from then on a row number, an image a code into one catalogue. *Rounds* are flat over all records: those of
record r are the rows `round_starts[r]` to `round_starts[r + 1]`.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scripts.blending.ragged import Ragged, flat, list_starts
from scripts.common.errors import UserError

_COLUMNS = ["uid", "images", "groups", "licence", "split"] + [
    f"rounds.list.element.{name}" for name in ("images", "question_group", "answer_group")
]
PERMUTE = "permute"
_BORDER = "\0"


@dataclass(frozen=True)
class Lengths:
    """Token counts of one kind of text of all rounds.

    `alternatives` (rounds + 1,): where the alternatives of each round start. `counts`: per alternative its tokens for
    every offset of image numbers, or a single count where the text names no image.
    """

    alternatives: np.ndarray
    counts: Ragged

    @classmethod
    def from_arrow(cls, column: pa.ListArray) -> "Lengths":
        """A flattened column of the token tables: list (alternatives) of list (offsets)."""
        return cls(list_starts(column), Ragged.from_arrow(column.flatten()))

    def of(self, rounds: np.ndarray, choices: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Tokens of the chosen alternative of each round, (n,)."""
        alternative = self.alternatives[rounds] + choices
        starts, ends = self.counts.starts[alternative], self.counts.starts[alternative + 1]
        # Offsets beyond the table belong to images beyond the limit, whose rounds are cut off anyway.
        return self.counts.values[starts + np.minimum(offsets, ends - starts - 1)]


@dataclass(frozen=True)
class Corpus:
    """The records of several datasets, row by row in the order of the datasets' names."""

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
    group_names: pa.StringArray
    group_permutes: Ragged
    group_sizes: Ragged
    questions: Lengths
    named: Lengths
    answers: Lengths
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

    def uids_at(self, rows: np.ndarray) -> list[str]:
        """The uids of the given rows."""
        return self.uids.take(pa.array(rows)).to_pylist()

    def images_in(self, names: pa.Table) -> np.ndarray:
        """Whether each image of the catalogue is among `names` (columns source and key)."""
        wanted = _joined(names["source"], names["key"])
        return pc.is_in(self.image_names, value_set=wanted).to_numpy(zero_copy_only=False)

    def any_image(self, marked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Whether any and whether all of each record's images are marked; without images it has neither."""
        marks = np.bincount(self.images.rows[marked[self.images.values]], minlength=len(self))
        return marks > 0, (marks > 0) & (marks == self.images.lengths)


def load_corpus(records: Path, tokens: Path, datasets: list[str]) -> Corpus:
    """Read the tables of `datasets`.

    Raises:
        UserError: a table is absent or empty, or a token table does not belong to its records.
    """
    pairs = [_read_pair(records, tokens, name) for name in datasets]
    rows = pa.concat_tables([pair[0] for pair in pairs])
    counts = pa.concat_tables([pair[1] for pair in pairs])

    images, rounds, groups = flat(rows, "images"), flat(rows, "rounds"), flat(rows, "groups")
    catalogue, codes = _catalogue(images.flatten())
    rounds_flat, groups_flat, counts_flat = rounds.flatten(), groups.flatten(), flat(counts, "rounds").flatten()
    group_starts = list_starts(groups)
    permutes = pc.equal(pc.struct_field(groups_flat, "kind"), PERMUTE).to_numpy(zero_copy_only=False)
    lengths = {name: Lengths.from_arrow(pc.struct_field(counts_flat, name)) for name in ("question", "named", "answer")}
    return Corpus(
        datasets=list(datasets),
        dataset=np.repeat(np.arange(len(datasets)), [pair[0].num_rows for pair in pairs]),
        uids=flat(rows, "uid"),
        licences=flat(rows, "licence"),
        splits=flat(rows, "split"),
        images=Ragged(codes, list_starts(images)),
        catalogue=catalogue,
        round_starts=list_starts(rounds),
        shown=Ragged.from_arrow(pc.struct_field(rounds_flat, "images")),
        question_group=pc.struct_field(rounds_flat, "question_group").to_numpy(),
        answer_group=pc.struct_field(rounds_flat, "answer_group").to_numpy(),
        group_names=pc.struct_field(groups_flat, "name"),
        group_permutes=Ragged(permutes, group_starts),
        group_sizes=Ragged(pc.struct_field(groups_flat, "size").to_numpy().astype(np.int64), group_starts),
        questions=lengths["question"],
        named=lengths["named"],
        answers=lengths["answer"],
        prefixes=flat(counts, "prefix").to_numpy().astype(np.int64),
    )


def _read_pair(records: Path, tokens: Path, dataset: str) -> tuple[pa.Table, pa.Table]:
    paths = Path(records) / f"{dataset}.parquet", Path(tokens) / f"{dataset}.parquet"
    for path, step in zip(paths, ("convert", "count_tokens"), strict=True):
        if not path.exists():
            raise UserError(f"the blend needs {dataset}, but {path} does not exist: run {step} for this dataset first")
    rows, counts = pq.ParquetFile(paths[0]).read(columns=_COLUMNS), pq.read_table(paths[1])
    if rows.num_rows == 0:
        raise UserError(f"{paths[0]} holds no records: take {dataset} out of the blend, or see in its report why")
    if not rows["uid"].equals(counts["uid"]):
        raise UserError(f"{paths[1]} does not belong to {paths[0]}: run count_tokens for {dataset} again")
    return rows, counts


def _catalogue(images: pa.StructArray) -> tuple[pa.StructArray, np.ndarray]:
    """The distinct images, sorted by source and key, and the code of each given image."""
    names = _joined(*images.flatten()).dictionary_encode()
    distinct = names.dictionary
    order = pc.sort_indices(distinct).to_numpy()
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    parts = pc.split_pattern(distinct.take(pa.array(order)), _BORDER, max_splits=1)
    fields = [pc.list_element(parts, i) if len(parts) else pa.array([], pa.string()) for i in (0, 1)]
    return pa.StructArray.from_arrays(fields, ["source", "key"]), place[names.indices.to_numpy()]


def _joined(sources: pa.StringArray, keys: pa.StringArray) -> pa.StringArray:
    return pc.binary_join_element_wise(sources, keys, _BORDER)
