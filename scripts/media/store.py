"""Random access to single images in media shards.

A media folder contains every readable image of one source exactly once (`media/<source>/`: shards, `index.parquet`,
`manifest.json`). The store looks up the position of an image in the index and reads it with one `pread`, so that many
processes can read the same shards. An open store must not be sent to another process; open one in each.
"""

import os
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from scripts.common.errors import UserError, damaged
from scripts.common.files import bytes_sha256, read_json, read_table
from scripts.common.row_groups import read_matching

INDEX = "index.parquet"
REJECTED = "rejected.parquet"
MANIFEST = "manifest.json"

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("path", pa.string()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("mode", pa.string()),
        ("orientation", pa.int32()),
        ("flags", pa.list_(pa.string())),
    ]
)
REJECTED_SCHEMA = pa.schema([("path", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


class MediaRow(NamedTuple):
    """One row of the index; `offset` is the position of the image's bytes in the shard, `length` their number."""

    key: str
    path: str
    shard: int
    offset: int
    length: int
    sha256: str
    width: int
    height: int
    format: str
    mode: str
    orientation: int
    flags: list[str]


class MediaStore:
    """The images of several sources by (source, key).

    Args:
        folders: media folder of each source; its index is read when the source is first used.
    """

    def __init__(self, folders: Mapping[str, str | Path]) -> None:
        self._folders = {source: Path(folder) for source, folder in folders.items()}
        self._columns: dict[str, list[pa.Array]] = {}
        self._shards: dict[str, list[Path]] = {}
        self._open: dict[Path, int] = {}

    def lookup(self, source: str, key: str) -> MediaRow | None:
        """The index row of an image, or None if the source has no such image; for many images see `lookup_all`.

        Raises:
            UserError: no media folder was given for `source`, or it has not been built.
        """
        if source not in self._columns:
            table = read_table(self._index(source), schema=INDEX_SCHEMA)
            self._columns[source] = [column.combine_chunks() for column in table.columns]
        columns = self._columns[source]
        # The index is sorted by key.
        number = bisect_right(columns[0], key, key=pa.StringScalar.as_py) - 1
        if number < 0 or columns[0][number].as_py() != key:
            return None
        return MediaRow(*(column[number].as_py() for column in columns))

    def lookup_all(self, images: Iterable[tuple[str, str]]) -> dict[tuple[str, str], MediaRow]:
        """The index rows of many images, given as (source, key), in one pass over each index.

        Images that a source does not have are left out.

        Raises:
            UserError: no media folder was given for a source, or it has not been built.
        """
        keys: dict[str, set[str]] = {}
        for source, key in images:
            keys.setdefault(source, set()).add(key)
        found: dict[tuple[str, str], MediaRow] = {}
        for source, wanted in keys.items():
            table = read_matching(self._index(source), "key", wanted, INDEX_SCHEMA)
            rows = map(MediaRow._make, zip(*table.to_pydict().values(), strict=True))
            found.update(((source, row.key), row) for row in rows)
        return found

    def shard(self, source: str, row: MediaRow) -> Path:
        """The shard that holds an image of `source`, given by its index row."""
        if source not in self._shards:
            folder = self._folder(source)
            self._shards[source] = [folder / shard["name"] for shard in read_json(folder / MANIFEST)["shards"]]
        return self._shards[source][row.shard]

    def read(self, source: str, key: str) -> bytes:
        """The original bytes of an image.

        Raises:
            KeyError: the source has no such image.
            UserError: see `read_row`.
        """
        row = self.lookup(source, key)
        if row is None:
            raise KeyError(f"{source}/{key}")
        return self.read_row(source, row)

    def read_row(self, source: str, row: MediaRow) -> bytes:
        """The original bytes of an image of `source`, given by its index row.

        Raises:
            UserError: the shard is missing, or the image does not have the sha256 of the index.
        """
        shard = self.shard(source, row)
        data = self._read_at(shard, row.offset, row.length)
        if bytes_sha256(data) != row.sha256:
            raise damaged(shard, f"is damaged: the image {row.key} of {source} does not have its sha256")
        return data

    def _read_at(self, shard: Path, offset: int, length: int) -> bytes:
        """`length` bytes of `shard` from `offset` on, or those up to its end; it stays open for the next call."""
        try:
            if shard not in self._open:
                self._open[shard] = os.open(shard, os.O_RDONLY)
            return os.pread(self._open[shard], length, offset)
        except FileNotFoundError:
            raise damaged(shard, "is missing") from None
        except OSError as error:
            error.filename = str(shard)
            raise

    def close(self) -> None:
        """Close all open shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _folder(self, source: str) -> Path:
        if source not in self._folders:
            raise UserError(f"no media folder was given for the source {source!r}; given: {sorted(self._folders)}")
        return self._folders[source]

    def _index(self, source: str) -> Path:
        path = self._folder(source) / INDEX
        if not path.exists():
            raise damaged(path, "is missing")
        return path
