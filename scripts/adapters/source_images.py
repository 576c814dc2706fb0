"""The images of one source by their paths, in a tenth of the memory of a dict of strings.

A million paths and keys are two Arrow columns (some 90 MB, their text alone); beside them lie the sorted 64-bit hashes
of the paths with their rows (16 MB). A look-up finds the rows whose hash is that of the path and compares the path
itself, so that equal hashes do no harm. Other spellings (`derived_rows`) get an index of the same kind when they are
first needed.
"""

import posixpath
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_AT_ONCE = 1 << 16
_MASK = (1 << 64) - 1


class Texts:
    """A column of texts, (n,), of which single ones are read faster than through Arrow's scalars."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        column = column.cast(pa.large_string())
        array = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([*column.chunks, _NO_TEXTS])
        self._array = array
        _, offsets, characters = array.buffers()
        # An array without elements may have no buffers.
        self._offsets = memoryview(offsets).cast("q")[array.offset :] if len(array) else memoryview(b"")
        self._characters = memoryview(characters) if characters is not None else memoryview(b"")

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, row: int) -> str:
        return str(self._characters[self._offsets[row] : self._offsets[row + 1]], "utf-8")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self._array), _AT_ONCE):
            yield from self._array.slice(first, _AT_ONCE).to_pylist()

    @property
    def array(self) -> pa.LargeStringArray:
        """The column as one array."""
        return self._array


_NO_TEXTS = pa.nulls(0, pa.large_string())


class _HashIndex:
    """Rows by the hash of a text of each."""

    def __init__(self, texts: Iterable[str], rows: int) -> None:
        hashes = np.fromiter((hash(text) & _MASK for text in texts), np.uint64, rows)
        # Stable: rows with one hash stay in their order.
        order = np.argsort(hashes, stable=True)
        hashes = hashes[order]
        # As many buckets as rows, by the first bits: a bucket has one row on average.
        bits = max(1, rows.bit_length())
        self._shift = 64 - bits
        firsts = np.arange((1 << bits) + 1, dtype=np.uint64) << np.uint64(self._shift)
        firsts[-1] = _MASK
        starts = np.searchsorted(hashes, firsts).astype(np.int32)
        starts[-1] = rows
        # Numbers are read from a memoryview much faster than from a numpy array.
        self._starts, self._hashes = starts.data, hashes.data
        self._rows = order.astype(np.int32).data

    def first_equal(self, text: str, texts: Texts) -> int | None:
        """The first row of `texts` that is `text`; None: there is none."""
        value = hash(text) & _MASK
        bucket = value >> self._shift
        for at in range(self._starts[bucket], self._starts[bucket + 1]):
            if self._hashes[at] == value and texts[self._rows[at]] == text:
                return self._rows[at]
        return None

    def rows(self, text: str) -> Iterator[int]:
        """The rows whose text has the hash of `text`, rising."""
        value = hash(text) & _MASK
        bucket = value >> self._shift
        for at in range(self._starts[bucket], self._starts[bucket + 1]):
            if self._hashes[at] == value:
                yield self._rows[at]


class SourceImages:
    """The images of one source: usable ones, with a key, and rejected ones, with a reason.

    Args:
        paths: of the usable images, (n,).
        keys: of the usable images, (n,); None: the paths are the keys.
        rejected: paths of all others.
        reasons: theirs, of the same length.
    """

    def __init__(
        self,
        paths: pa.ChunkedArray,
        keys: pa.ChunkedArray | None,
        rejected: pa.ChunkedArray,
        reasons: pa.ChunkedArray,
    ) -> None:
        self.usable = len(paths)
        self._paths = Texts(pa.chunked_array([*paths.chunks, *rejected.chunks], pa.string()))
        self._keys = self._paths if keys is None else Texts(keys)
        self._reasons = Texts(reasons)
        self._all_reasons = frozenset(pc.unique(self._reasons.array).to_pylist())
        self._by_path = _HashIndex(self._paths, len(self._paths))
        self._derived: dict[Callable[[str], str], _HashIndex] = {}
        self._seen = bytearray(len(self._paths))

    def row(self, path: str) -> int | None:
        """The number of the image at `path`, of a usable one rather than of a rejected one; None: there is none."""
        return self._by_path.first_equal(path, self._paths)

    def path(self, row: int) -> str:
        """The path of an image."""
        return self._paths[row]

    def key(self, row: int) -> str:
        """The key of a usable image."""
        return self._keys[row]

    def reason(self, row: int) -> str:
        """Why an image is rejected; "": it is usable."""
        return "" if row < self.usable else self._reasons[row - self.usable]

    def derived_rows(self, derive: Callable[[str], str], value: str) -> list[int]:
        """The images from whose path `derive` makes `value`, rising; the same function object is indexed once."""
        if derive not in self._derived:
            self._derived[derive] = _HashIndex(map(derive, self._paths), len(self._paths))
        return [row for row in self._derived[derive].rows(value) if derive(self._paths[row]) == value]

    def has_reason(self, reason: str) -> bool:
        """Whether any image is rejected for `reason`."""
        return reason in self._all_reasons

    def ending_with(self, name: str) -> list[str]:
        """The paths of the usable images whose file name is `name`; all paths are looked through."""
        try:
            name.encode()
        except UnicodeEncodeError:
            return []
        usable = self._paths.array.slice(0, self.usable)
        return [
            path for path in usable.filter(pc.ends_with(usable, name)).to_pylist() if posixpath.basename(path) == name
        ]

    def texts(self) -> Iterator[str]:
        """All paths, those of the usable images first."""
        return iter(self._paths)

    def see(self, row: int) -> None:
        """Count an image as looked up."""
        self._seen[row] = 1

    def seen(self) -> tuple[int, int]:
        """The numbers of images that were looked up: usable ones, and all."""
        usable = self._seen.count(1, 0, self.usable)
        return usable, self._seen.count(1)
