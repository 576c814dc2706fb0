"""Stores of one array per image, read by mapping files and looked up by the hash of the image.

The pixel store and the feature store are such stores. Each has three files beside each other for every media shard:

    <source>-00003-of-00016.<ending>   (images, *shape) numbers of one type, in the order of the media shard
    <source>-00003-of-00016.sha256     (images, 32) bytes: the hash of each image's file
    <source>-00003-of-00016.json       number of images, shape of an array, and `key`: what the arrays were made with

The JSON file is written last, so that a shard whose JSON file is there was written to its end.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from scripts.common.errors import UserError
from scripts.common.files import atomic, read_json, write_json

_HASHES = ".sha256"
_HASH_BYTES = 32


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
        with atomic(stem.with_suffix(cls.ENDING)) as file:
            for count, array in enumerate(arrays, start=1):
                if count > 1 and list(array.shape) != shape:
                    raise UserError(
                        f"{stem.name}: image 1 has an array of the shape {shape}, image {count} one of "
                        f"{list(array.shape)}; the image processor must make images of one size"
                    )
                shape = list(array.shape)
                file.write(np.ascontiguousarray(array, cls.DTYPE).data)
        if count != len(hashes):
            raise ValueError(f"{count} arrays for {len(hashes)} images")
        with atomic(stem.with_suffix(_HASHES)) as file:
            file.write(b"".join(map(bytes.fromhex, hashes)))
        manifest = {"v": 1, "images": count, "shape": shape, **facts}
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
            UserError: the store has no such image.
        """
        hashes, order, prefixes = self._index
        image_hash = np.frombuffer(bytes.fromhex(sha256), f"V{_HASH_BYTES}")[0]
        prefix = int.from_bytes(image_hash.tobytes()[:8], "big")
        for position in range(int(np.searchsorted(prefixes, np.uint64(prefix))), len(order)):
            if int(prefixes[position]) != prefix:
                break
            number = order[position]
            if hashes[number] == image_hash:
                shard = int(np.searchsorted(self._starts, number, side="right")) - 1
                return self._maps[shard][number - self._starts[shard]]
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
            raise UserError(f"{manifest} is missing: {cls._remedy()}")
        return read_json(manifest)

    @classmethod
    def _array_bytes(cls, facts: Mapping[str, Any]) -> int:
        return facts["images"] * int(np.prod(facts["shape"])) * np.dtype(cls.DTYPE).itemsize

    @classmethod
    def _check_sizes(cls, path: Path, facts: Mapping[str, Any]) -> None:
        """Raise UserError unless the files of a shard have the sizes that its JSON file requires."""
        sizes = {cls.ENDING: cls._array_bytes(facts), _HASHES: facts["images"] * _HASH_BYTES}
        for ending, size in sizes.items():
            file = path.with_suffix(ending)
            if not file.is_file() or file.stat().st_size != size:
                raise UserError(f"{file} is missing or incomplete: {cls._remedy()}")

    @cached_property
    def _starts(self) -> np.ndarray:
        """The number of the first image of every shard, and the number of all images."""
        return np.cumsum([0, *(facts["images"] for _, facts in self._shards)])

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        return [
            np.memmap(path, self.DTYPE, "r", shape=(facts["images"], *facts["shape"]))
            if facts["images"]
            else np.empty(0)
            for path, facts in self._shards
        ]

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The hashes (n,) of all images, their order (n,) by the first eight bytes, and these bytes (n,) sorted."""
        data = b"".join(path.with_suffix(_HASHES).read_bytes() for path, _ in self._shards)
        prefixes = np.frombuffer(data, ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)
        order = np.argsort(prefixes, kind="stable")
        return np.frombuffer(data, f"V{_HASH_BYTES}"), order, prefixes[order]
