"""Reads a blend folder: a number in, conversations with their image bytes out. Used by training and by evaluation.

A blend folder holds tar shards in plan order, an `.idx` beside each (little-endian uint64 offsets of every
conversation and of the end), `units.idx` (the first conversation of every unit, and the end) and `manifest.json`,
which says how many conversations each shard holds. So conversation i is found by arithmetic and read with one `pread`,
in any order, from any process, without a decoder state to save; a unit is one conversation or a pack of several.
Images lie in the shard itself (`embedded`) or in the media shards that the JSON member names (`referenced`).

Everything that can be missing is looked for when a folder is opened: a run of days must not fail on its last shard.
"""

import bisect
import itertools
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from scripts.common.errors import UserError
from scripts.common.files import read_json

_BLOCK = tarfile.BLOCKSIZE
_HEAD = 8192
"""Read first where no images are wanted: it nearly always holds the whole JSON member, which comes first."""


@dataclass(frozen=True)
class Sample:
    """One conversation of a blend.

    `images` holds encoded bytes (JPEG, PNG, ...) in the order of their numbers; nothing if they were not asked for.
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

    def __init__(self, folder: str | Path, root: str | Path):
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
        counted = self.manifest["conversations"]
        if self._starts[-1] != counted:
            raise UserError(
                f"{self.folder}/manifest.json counts {counted} conversations, its shards {self._starts[-1]}"
            )
        self._units = _numbers(self.folder / "units.idx", self.manifest["units"] + 1)
        if self.manifest["images"] == "referenced":
            _check_media(self.root)

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def units(self) -> int:
        """Number of units: of packs, or where nothing is packed of conversations."""
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

    def __getitem__(self, position: int) -> Sample:
        """Read conversation `position` (0-based, in plan order) with its images.

        Raises:
            UserError: the shard's content is damaged or a referenced image cannot be read.
        """
        return self.read(position)

    def read(self, position: int, images: bool = True) -> Sample:
        """Read conversation `position`; without `images` they are neither read nor looked for."""
        member, embedded = self._read(position, images)
        shown = [
            self._referenced(image["ref"]) if "ref" in image else embedded[index]
            for index, image in enumerate(member["images"] if images else ())
        ]
        return Sample(
            uids=member["uids"],
            dataset=member["dataset"],
            messages=member["messages"],
            images=shown,
            image_sha256=[image["sha256"] for image in member["images"]],
            n_tokens=member["n_tokens"],
            n_labels=member["n_labels"],
            position=member["position"],
        )

    def uids(self, unit: int) -> list[str]:
        """The uids of the conversations of unit `unit`."""
        return [uid for position in self.members(unit) for uid in self._read(position, False)[0]["uids"]]

    def _read(self, position: int, images: bool) -> tuple[dict[str, Any], dict[int, bytes]]:
        """Return the JSON member of a conversation and, if asked for, its embedded images by number."""
        if not 0 <= position < len(self):
            raise IndexError(f"conversation {position} of {len(self)} in {self.folder}")
        shard = bisect.bisect_right(self._starts, position) - 1
        place = position - self._starts[shard]
        begin, end = map(int, self._offsets[shard][place : place + 2])
        try:
            members = {}
            if not images:
                members = dict(_members(_pread(self._paths[shard], begin, min(end - begin, _HEAD)), short=True))
            if not any(name.endswith(".json") for name in members):
                members = dict(_members(_pread(self._paths[shard], begin, end - begin)))
            content = next(data for name, data in members.items() if name.endswith(".json"))
            shown = {int(name.split(".")[1][1:]): data for name, data in members.items() if not name.endswith(".json")}
            return json.loads(content), shown
        except (StopIteration, ValueError, IndexError) as error:
            raise UserError(
                f"conversation {position} of {self._paths[shard]} is damaged ({type(error).__name__}: {error}); remove "
                "the shard, so that it is built again"
            ) from None

    def _referenced(self, reference: list) -> bytes:
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
    """Return the offsets of a shard's conversations, after checking that it and its index are whole."""
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
        raise UserError(f"{path} {state}; build the blend again (remove {path.parent}/manifest.json if need be)")


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


def _members(chunk: bytes, short: bool = False) -> Iterator[tuple[str, bytes]]:
    """Yield (name, data) of every member in a piece of a tar file that begins at a header.

    Reads what our shards hold and no more of the format: `tarfile` takes longer to parse a header than it takes to read
    the crop of an image. With `short` the piece may end inside of a member, which is then left out.

    Raises:
        ValueError: the piece is damaged.
    """
    place = 0
    while place < len(chunk):
        header = chunk[place : place + _BLOCK]
        if len(header) < _BLOCK or _octal(header[148:156]) != 256 + sum(header[:148]) + sum(header[156:]):
            if short:
                return
            raise ValueError("a header is not what it says it is")
        size, place = _octal(header[124:136]), place + _BLOCK
        data = chunk[place : place + size]
        if len(data) < size:
            if short:
                return
            raise ValueError("it ends too early")
        yield header[:100].partition(b"\0")[0].decode(), data
        place += -(-size // _BLOCK) * _BLOCK


def _octal(field: bytes) -> int:
    return int(field.rstrip(b"\0 ") or b"0", 8)
