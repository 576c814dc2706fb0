"""Stores of one array per image, read by mapping files and looked up by the hash of the image.

The pixel store and the feature store are such stores. Each has four files beside each other for every media shard:

    <source>-00003-of-00016.<ending>   (images, *shape) numbers of one type, in the order of the media shard
    <source>-00003-of-00016.sha256     (images, 32) bytes: the hash of each image's file
    <source>-00003-of-00016.sums       (images,) little-endian uint64: the checksum of each array
    <source>-00003-of-00016.json       number of images, shape of an array, `key`: what the arrays were made with, and
                                       `files`: the sha256 of the two files before

The JSON file is written last, so that a shard whose JSON file is there was written to its end. Whenever an array is
read, it is compared with its checksum: the sum of its bytes, taken as little-endian 64-bit numbers, modulo 2^64. It
costs a tenth of a CRC-32, and no change of a single number escapes it.
"""

import bisect
import itertools
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from scripts.common.errors import UserError, damaged
from scripts.common.files import atomic, bytes_sha256, read_json, write_json

_HASHES = ".sha256"
_HASH_BYTES = 32
_SUMS = ".sums"
_WORD_BYTES = 8


class ArrayStore(ABC):
    """The arrays of the images of some sources; all processes that read them share the mapped pages.

    It may be pickled: the other process maps the files again. Subclasses describe one kind of array.
    """

    NAME: ClassVar[str]
    """What messages call the store."""
    ENDING: ClassVar[str]
    """Ending of the files with the arrays."""
    DTYPE: ClassVar[DTypeLike]
    """Type of the numbers."""
    AXES: ClassVar[int]
    """Number of axes of an image's array."""
    PROGRAM: ClassVar[str]
    """The program that writes the store, and its rule."""
    SETTING: ClassVar[str]
    """The setting of a run that makes it read the store."""

    def __init__(self, manifests: Iterable[str | Path], key: str) -> None:
        """Open the shards that the JSON files `manifests` describe, all made with `key`.

        Raises:
            UserError: a shard is missing or incomplete, or was made with something else.
        """
        self._shards = [(Path(path).with_suffix(self.ENDING), self._read(path)) for path in manifests]
        for path, facts in self._shards:
            if facts["key"] != key:
                raise UserError(f"{path} was made with {self._difference(facts)}: {self._remedy()}")
            self._check_sizes(path, facts)

    @classmethod
    def write(
        cls, stem: Path, arrays: Iterable[np.ndarray], hashes: Sequence[str], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write a shard and return the contents of its JSON file.

        Args:
            stem: path of its files without the ending.
            arrays: one for each image, all of one shape.
            hashes: the sha256 of each image's file, in hex.
            facts: `key`, and what else the JSON file holds.

        Raises:
            UserError: two arrays have different shapes.
        """
        shape, count = [0] * cls.AXES, 0
        sums = array("Q")
        with atomic(stem.with_suffix(cls.ENDING)) as file:
            for count, values in enumerate(arrays, start=1):
                if count > 1 and list(values.shape) != shape:
                    raise UserError(
                        f"{stem.name}: image 1 has an array of the shape {shape}, image {count} one of "
                        f"{list(values.shape)}; the image processor must make images of one size"
                    )
                shape = list(values.shape)
                stored = np.ascontiguousarray(values, cls.DTYPE)
                file.write(stored.data)
                sums.append(_checksum(stored))
        if count != len(hashes):
            raise ValueError(f"{count} arrays for {len(hashes)} images")
        small = {_HASHES: b"".join(map(bytes.fromhex, hashes)), _SUMS: np.array(sums, "<u8").tobytes()}
        for ending, data in small.items():
            with atomic(stem.with_suffix(ending)) as file:
                file.write(data)
        files = {stem.with_suffix(ending).name: bytes_sha256(data) for ending, data in small.items()}
        manifest = {"v": 2, "images": count, "shape": shape, "files": files, **facts}
        write_json(stem.with_suffix(".json"), manifest)
        return manifest

    def __getstate__(self) -> dict[str, Any]:
        return {"_shards": self._shards}

    def __len__(self) -> int:
        return sum(facts["images"] for _, facts in self._shards)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays on the disk."""
        return sum(self._array_bytes(facts) for _, facts in self._shards)

    def get(self, sha256: str) -> np.ndarray:
        """The array of the image with this hash; it is read-only.

        Raises:
            UserError: the store has no such image, or its array is damaged.
        """
        hashes, order, prefixes = self._index
        image_hash = bytes.fromhex(sha256)
        prefix = np.uint64(int.from_bytes(image_hash[:8], "big"))
        for position in range(int(prefixes.searchsorted(prefix)), len(order)):
            if prefixes[position] != prefix:
                break
            number = int(order[position])
            if hashes[number * _HASH_BYTES :][:_HASH_BYTES] == image_hash:
                shard = bisect.bisect_right(self._starts, number) - 1
                values = self._maps[shard][number - self._starts[shard]]
                if _checksum(values) != self._sums[number]:
                    path = self._shards[shard][0]
                    raise damaged(path, f"is damaged: the array of the image {sha256} does not have its checksum")
                return values
        raise UserError(
            f"the {self.NAME} lacks the image with the sha256 {sha256}: the media have changed since, or a source was "
            f"not given; {self._remedy()}"
        )

    @abstractmethod
    def _difference(self, facts: Mapping[str, Any]) -> str:
        """What a shard with these facts was made with, and what is expected, where its key is another."""

    @classmethod
    def _remedy(cls) -> str:
        return f"run {cls.PROGRAM} again (snakemake --forcerun {cls.PROGRAM}), or set {cls.SETTING}: false"

    @classmethod
    def _read(cls, manifest: str | Path) -> dict[str, Any]:
        if not Path(manifest).is_file():
            raise damaged(manifest, "is missing")
        facts = read_json(manifest)
        if facts["v"] != 2:
            raise UserError(f"{manifest} was written before this store had checksums: {cls._remedy()}")
        return facts

    @classmethod
    def _array_bytes(cls, facts: Mapping[str, Any]) -> int:
        return facts["images"] * int(np.prod(facts["shape"])) * np.dtype(cls.DTYPE).itemsize

    @classmethod
    def _check_sizes(cls, path: Path, facts: Mapping[str, Any]) -> None:
        """Raise UserError unless the files of a shard have the sizes that its JSON file requires."""
        sizes = {
            cls.ENDING: cls._array_bytes(facts),
            _HASHES: facts["images"] * _HASH_BYTES,
            _SUMS: facts["images"] * _WORD_BYTES,
        }
        for ending, size in sizes.items():
            file = path.with_suffix(ending)
            if not file.is_file() or file.stat().st_size != size:
                raise damaged(file, "is missing or incomplete")

    @cached_property
    def _starts(self) -> list[int]:
        """The number of the first image of every shard, and the number of all images."""
        return list(itertools.accumulate((facts["images"] for _, facts in self._shards), initial=0))

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        return [
            np.asarray(np.memmap(path, self.DTYPE, "r", shape=(facts["images"], *facts["shape"])))
            if facts["images"]
            else np.empty(0)
            for path, facts in self._shards
        ]

    @cached_property
    def _sums(self) -> list[int]:
        """The checksum of every array."""
        return np.frombuffer(self._small_files(_SUMS), "<u8").tolist()

    def _small_files(self, ending: str) -> bytes:
        """The files of all shards with one ending, joined, each compared with its sha256."""
        data = []
        for path, facts in self._shards:
            file = path.with_suffix(ending)
            data.append(file.read_bytes())
            if bytes_sha256(data[-1]) != facts["files"][file.name]:
                raise damaged(file, "is damaged: it does not have the sha256 of its manifest")
        return b"".join(data)

    @cached_property
    def _index(self) -> tuple[memoryview, np.ndarray, np.ndarray]:
        """The hashes of all images in a row, their order (n,) by the first eight bytes, and these bytes (n,) sorted."""
        data = self._small_files(_HASHES)
        prefixes = np.frombuffer(data, ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)
        order = np.argsort(prefixes, kind="stable")
        return memoryview(data), order, prefixes[order]


def _checksum(values: np.ndarray) -> int:
    """The sum of an array's bytes as little-endian 64-bit numbers, modulo 2^64; zeros fill up the last one."""
    data = values.reshape(-1).view(np.uint8)
    whole = len(data) - len(data) % _WORD_BYTES
    rest = int.from_bytes(data[whole:].tobytes(), "little")
    return (int(np.add.reduce(data[:whole].view("<u8"))) + rest) % (1 << 64)
