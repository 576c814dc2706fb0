"""Lists of different lengths as two flat arrays: the form in which a million conversations are handled at once.

Row i of a `Ragged` is `values[starts[i]:starts[i + 1]]`, exactly as Arrow stores a list column.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    # Only those need it who read or write tables.
    import pyarrow as pa

_CHUNK = 1 << 14


@dataclass(frozen=True)
class Ragged:
    """`values` (total,) and `starts` (rows + 1,)."""

    values: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Number of values of each row."""
        return np.diff(self.starts)

    @property
    def rows(self) -> np.ndarray:
        """The row of every value."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> "Ragged":
        """Cut `values` into rows of the given lengths."""
        return cls(np.asarray(values), starts_from_lengths(lengths))

    @classmethod
    def from_lists(cls, lists: Iterable[list[int]]) -> "Ragged":
        """Flatten Python lists of whole numbers."""
        lists = list(lists)
        values = np.array([value for row in lists for value in row], np.int64)
        return cls.from_lengths(values, np.array([len(row) for row in lists], np.int64))

    @classmethod
    def from_arrow(cls, array: "pa.ListArray") -> "Ragged":
        """A list column of numbers or booleans."""
        return cls(array.flatten().to_numpy(zero_copy_only=False), list_starts(array))

    def to_arrow(self, element: "pa.DataType") -> "pa.ListArray":
        """A list column with elements of the type `element`."""
        import pyarrow as pa

        return nested(self.starts, pa.array(self.values, element))

    def take(self, rows: np.ndarray) -> "Ragged":
        """The given rows, in that order."""
        lengths = self.lengths[rows]
        return Ragged.from_lengths(self.values[concat_ranges(self.starts[:-1][rows], lengths)], lengths)


def concatenate_ragged(parts: Sequence[Ragged]) -> Ragged:
    """The rows of all parts, one part after the other."""
    lengths = np.concatenate([part.lengths for part in parts])
    return Ragged.from_lengths(np.concatenate([part.values for part in parts]), lengths)


def starts_from_lengths(lengths: np.ndarray) -> np.ndarray:
    """Where rows of these lengths start in a flat array, and where the last one ends."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def concat_ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """`start, start + 1, ...` for every pair of start and length, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total) + np.repeat(starts - (ends - lengths), lengths)


def chunked(values: np.ndarray) -> Iterator[np.ndarray]:
    """An array chunk by chunk, for code that makes Python objects of it: millions at once do not fit the CPU caches."""
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))


def segment_sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The sum of each segment `values[starts[i]:starts[i + 1]]`, (segments,); 0 of an empty one."""
    return np.diff(starts_from_lengths(values)[starts])


def segment_cumsum(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Cumulative sums that begin anew at every row; rows may be empty."""
    total = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=total[1:])
    return total[1:] - np.repeat(total[starts[:-1]], np.diff(starts))


def flat(table: "pa.Table", column: str) -> "pa.Array":
    """A column as one contiguous array."""
    import pyarrow as pa

    chunks = table[column].chunks
    if len(chunks) == 1:
        return chunks[0]
    return pa.concat_arrays(chunks) if chunks else pa.array([], table[column].type)


def list_starts(array: "pa.ListArray") -> np.ndarray:
    """Where the rows of a list column start in its flattened values."""
    starts = array.offsets.to_numpy()
    return starts - starts[0] if starts[0] else starts


def nested(starts: np.ndarray, values: "pa.Array") -> "pa.ListArray":
    """Group `values` into a list column."""
    import pyarrow as pa

    return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), values)
