"""Random access to single images in media shards.

A media folder contains every readable image of one source exactly once (`media/<source>/`: shards, `index.parquet`,
`manifest.json`). The store looks up the position of an image in the index and reads it with one `pread`, so that many
processes can read the same shards. An open store must not be sent to another process; open one in each.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from scripts.common.errors import UserError, damaged
from scripts.common.files import bytes_sha256, read_json, read_table

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
        self._rows: dict[str, dict[str, int]] = {}
        self._shards: dict[str, list[Path]] = {}
        self._open: dict[Path, int] = {}

    def lookup(self, source: str, key: str) -> MediaRow | None:
        """The index row of an image, or None if the source has no such image.

        Raises:
            UserError: no media folder was given for `source`, or it has not been built.
        """
        if source not in self._rows:
            self._load(source)
        number = self._rows[source].get(key)
        if number is None:
            return None
        return MediaRow(*(column[number].as_py() for column in self._columns[source]))

    def reference(self, source: str, key: str) -> tuple[Path, int, int]:
        """The position of an image's bytes: path of the shard, offset, length.

        Raises:
            KeyError: the source has no such image.
        """
        row = self.lookup(source, key)
        if row is None:
            raise KeyError(f"{source}/{key}")
        return self._shards[source][row.shard], row.offset, row.length

    def read(self, source: str, key: str) -> bytes:
        """The original bytes of an image.

        Raises:
            KeyError: the source has no such image.
            UserError: the shard is missing, or the image does not have the sha256 of the index.
        """
        row = self.lookup(source, key)
        if row is None:
            raise KeyError(f"{source}/{key}")
        shard = self._shards[source][row.shard]
        data = self._read_at(shard, row.offset, row.length)
        if bytes_sha256(data) != row.sha256:
            raise damaged(shard, f"is damaged: the image {key} of {source} does not have its sha256")
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

    def _load(self, source: str) -> None:
        if source not in self._folders:
            raise UserError(f"no media folder was given for the source {source!r}; given: {sorted(self._folders)}")
        folder = self._folders[source]
        manifest = read_json(folder / MANIFEST)
        table = read_table(folder / INDEX, schema=INDEX_SCHEMA)
        self._columns[source] = [column.combine_chunks() for column in table.columns]
        self._shards[source] = [folder / shard["name"] for shard in manifest["shards"]]
        self._rows[source] = {key: number for number, key in enumerate(table["key"].to_pylist())}
