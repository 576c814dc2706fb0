"""Reads a blend folder: conversations with the bytes of their images, by number. Used by training and evaluation.

A blend folder holds tar shards in plan order, an `.idx` beside each (little-endian uint64 offsets of every
conversation and of the end), `units.idx` (the first conversation of every unit, and the end), `counts.npy`
(dataset, tokens and supervised tokens of every conversation) and `manifest.json`, which counts the conversations of
each shard. So the offset of conversation i is computed, and it is read with one `pread`, in any order, from any
process, with no iterator state to save. A unit is one conversation or a pack of several. Images lie in the shard itself
(`embedded`) or in the media shards that the JSON member names (`referenced`).

Opening a folder checks that all its files exist with their size: a run of days must not fail on its last shard.
"""

import bisect
import itertools
import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from scripts.common.errors import UserError
from scripts.common.files import read_json

COUNTS_NAME = "counts.npy"
COUNTS = np.dtype([("dataset", "<i4"), ("tokens", "<i4"), ("labels", "<i4")])
"""A row of that file: the number of the conversation's dataset (in alphabetical order), tokens, supervised tokens."""

_BLOCK = tarfile.BLOCKSIZE
_HEAD = 8192
"""Bytes to read first where no images are needed: they nearly always hold the JSON member, which comes first."""


@dataclass(frozen=True)
class Sample:
    """One conversation of a blend.

    `images` holds encoded bytes (JPEG, PNG, ...) in the order of their numbers; it is empty if they were not read.
    """

    uids: list[str]
    dataset: str
    messages: list[dict[str, Any]]
    images: list[bytes]
    image_sha256: list[str]
    n_tokens: int
    n_labels: int
    position: int


class BlendReader:
    """Random access to the conversations of one blend folder. It keeps no open file, so processes may share it."""

    def __init__(self, folder: str | Path, root: str | Path) -> None:
        """Open `folder`; references to media shards are relative to the results root `root`.

        Raises:
            UserError: the manifest, a shard or its index is missing or has another size than the manifest says.
        """
        self.folder, self.root = Path(folder), Path(root)
        self.manifest: dict[str, Any] = read_json(self.folder / "manifest.json")
        self.plan: str = self.manifest["plan"]
        self.global_batch: int = self.manifest["global_batch"]
        shards = self.manifest["shards"]
        self._paths = [self.folder / shard["name"] for shard in shards]
        self._offsets = [_checked_offsets(path, shard) for path, shard in zip(self._paths, shards, strict=True)]
        self._starts = [0, *itertools.accumulate(shard["conversations"] for shard in shards)]
        expected = self.manifest["conversations"]
        if self._starts[-1] != expected:
            raise UserError(
                f"{self.folder}/manifest.json counts {expected} conversations, its shards {self._starts[-1]}"
            )
        self._units = _numbers(self.folder / "units.idx", self.manifest["units"] + 1)
        if self.manifest["images"] == "referenced":
            _check_media(self.root)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def units(self) -> int:
        """Number of units: of packs, or without packing of conversations."""
        return len(self._units) - 1

    @property
    def datasets(self) -> list[str]:
        """Names of the blend's datasets, sorted."""
        return sorted(self.manifest["datasets"])

    def members(self, unit: int) -> range:
        """The conversations of unit `unit` (0-based, in plan order)."""
        if not 0 <= unit < self.units:
            raise IndexError(f"unit {unit} of {self.units} in {self.folder}")
        return range(int(self._units[unit]), int(self._units[unit + 1]))

    def counts(self, units: range) -> tuple[Counter[str], int]:
        """The supervised tokens of consecutive units by dataset, and all their tokens.

        Raises:
            UserError: the table of counts is missing or belongs to another blend.
        """
        counts = self._counts[int(self._units[units.start]) : int(self._units[units.stop])]
        labels = np.bincount(counts["dataset"], counts["labels"], minlength=len(self.datasets))
        found = Counter({name: int(number) for name, number in zip(self.datasets, labels, strict=True) if number})
        return found, int(counts["tokens"].sum())

    @cached_property
    def most_labels(self) -> int:
        """The most supervised tokens of a unit; 0 without units.

        Raises:
            UserError: as for `counts`.
        """
        before = np.concatenate([[0], np.cumsum(self._counts["labels"], dtype=np.int64)])
        return int(np.diff(before[self._units.astype(np.int64)]).max(initial=0))

    @cached_property
    def _counts(self) -> np.ndarray:
        path, remedy = self.folder / COUNTS_NAME, "build the blend again (remove its manifest.json if necessary)"
        try:
            counts: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"{path} is missing; {remedy}") from None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}); {remedy}") from None
        if counts.ndim != 1 or counts.dtype != COUNTS:
            raise UserError(f"{path} is no table of counts, but {counts.dtype} {counts.shape}; {remedy}")
        if len(counts) != len(self):
            raise UserError(f"{path} has {len(counts)} rows for {len(self)} conversations; {remedy}")
        if len(counts) and not (counts["dataset"] < len(self.datasets)).all():
            raise UserError(f"{path} counts datasets that the manifest does not name; {remedy}")
        if len(counts) and min(counts[name].min() for name in COUNTS.names or ()) < 0:
            raise UserError(f"{path} counts less than nothing; {remedy}")
        return counts

    def __getitem__(self, position: int) -> Sample:
        """Read conversation `position` (0-based, in plan order) with its images.

        Raises:
            UserError: the shard's content is damaged or a referenced image cannot be read.
        """
        return self.read(position)

    def read(self, position: int, images: bool = True) -> Sample:
        """Read conversation `position`; without `images` these are neither read nor checked.

        Raises:
            UserError: as for `__getitem__`.
        """
        content, embedded = self._read(position, images)
        data = [
            self._referenced(image["ref"]) if "ref" in image else embedded[index]
            for index, image in enumerate(content["images"] if images else ())
        ]
        return Sample(
            uids=content["uids"],
            dataset=content["dataset"],
            messages=content["messages"],
            images=data,
            image_sha256=[image["sha256"] for image in content["images"]],
            n_tokens=content["n_tokens"],
            n_labels=content["n_labels"],
            position=content["position"],
        )

    def uids(self, unit: int) -> list[str]:
        """The uids of the conversations of unit `unit`."""
        return [uid for position in self.members(unit) for uid in self._read(position, False)[0]["uids"]]

    def _read(self, position: int, images: bool) -> tuple[dict[str, Any], dict[int, bytes]]:
        """Return the JSON of a conversation and, if requested, its embedded images by number."""
        if not 0 <= position < len(self):
            raise IndexError(f"conversation {position} of {len(self)} in {self.folder}")
        shard = bisect.bisect_right(self._starts, position) - 1
        index = position - self._starts[shard]
        begin, end = map(int, self._offsets[shard][index : index + 2])
        try:
            members: dict[str, bytes] = {}
            if not images:
                members = dict(_members(_pread(self._paths[shard], begin, min(end - begin, _HEAD)), partial=True))
            if not any(name.endswith(".json") for name in members):
                members = dict(_members(_pread(self._paths[shard], begin, end - begin)))
            text = next(data for name, data in members.items() if name.endswith(".json"))
            embedded = {
                int(name.split(".")[1][1:]): data for name, data in members.items() if not name.endswith(".json")
            }
            return json.loads(text), embedded
        except (StopIteration, ValueError, IndexError) as error:
            raise UserError(
                f"conversation {position} of {self._paths[shard]} is damaged ({type(error).__name__}: {error}); remove "
                "the shard and run blend again"
            ) from None

    def _referenced(self, reference: Sequence[Any]) -> bytes:
        """Read an image in a media shard; `reference`: path below the root, offset, length in bytes."""
        path, offset, length = reference
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts:
            raise UserError(f"{self.folder} refers to an image outside the results root: {path}")
        try:
            data = _pread(self.root / pure, offset, length)
        except OSError as error:
            raise UserError(f"{self.folder} needs {self.root / pure}, which cannot be read: {error}") from None
        if len(data) != length:
            raise UserError(f"{self.root / pure} is shorter than {self.folder} expects; build the media shards again")
        return data


def _checked_offsets(path: Path, shard: dict[str, Any]) -> np.ndarray:
    """Return the offsets of a shard's conversations, after checking the sizes of it and its index."""
    _check_size(path, shard["bytes"])
    return _numbers(Path(f"{path}.idx"), shard["conversations"] + 1)


def _numbers(path: Path, count: int) -> np.ndarray:
    """Read a file of `count` little-endian uint64."""
    _check_size(path, 8 * count)
    return np.fromfile(path, "<u8")


def _check_size(path: Path, size: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        state = "is missing" if found is None else f"has {found} bytes instead of {size}"
        raise UserError(f"{path} {state}; build the blend again (remove {path.parent}/manifest.json if necessary)")


def _check_media(root: Path) -> None:
    """Check presence and size of every media shard below `root` that a media manifest lists."""
    for manifest in sorted(root.glob("media/*/manifest.json")):
        for shard in read_json(manifest)["shards"]:
            path = manifest.parent / shard["name"]
            found = path.stat().st_size if path.is_file() else None
            if found != shard["bytes"]:
                state = "is missing" if found is None else f"has {found} bytes instead of {shard['bytes']}"
                raise UserError(f"{path} {state}, and the blend's images lie there; build the media shards again")


def _pread(path: Path, offset: int, length: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


def _members(chunk: bytes, partial: bool = False) -> Iterator[tuple[str, bytes]]:
    """Yield (name, data) of every member in a chunk of a tar file that begins at a header.

    Reads only the part of the format that our shards use: `tarfile` takes longer to parse a header than it takes to
    read the crop of an image. A `partial` chunk may end inside a member, which is then left out.

    Raises:
        ValueError: the chunk is damaged.
    """
    offset = 0
    while offset < len(chunk):
        header = chunk[offset : offset + _BLOCK]
        if len(header) < _BLOCK or _octal(header[148:156]) != 256 + sum(header[:148]) + sum(header[156:]):
            if partial:
                return
            raise ValueError("a header does not have its checksum")
        size, offset = _octal(header[124:136]), offset + _BLOCK
        data = chunk[offset : offset + size]
        if len(data) < size:
            if partial:
                return
            raise ValueError("it ends too early")
        yield header[:100].partition(b"\0")[0].decode(), data
        offset += -(-size // _BLOCK) * _BLOCK


def _octal(field: bytes) -> int:
    return int(field.rstrip(b"\0 ") or b"0", 8)
