"""Reads a blend folder: conversations with the bytes of their images, by number. Used by training and evaluation.

A blend folder holds tar shards in plan order, an `.idx` beside each (little-endian uint64 offsets of every
conversation and of the end), `units.idx` (the first conversation of every unit, and the end), `counts.npy`
(dataset, tokens, supervised tokens and checksum of every conversation) and `manifest.json`, which counts the
conversations of each shard. So the offset of conversation i is computed, and it is read with one `pread`, in any order,
from any process, with no iterator state to save. A unit is one conversation or a pack of several. Images lie in the
shard itself (`embedded`) or in the media shards that the JSON member names (`referenced`).

Opening a folder checks that all its files exist with their size: a run of days must not fail on its last shard. And
whatever is read is checked: `.idx`, `units.idx` and `counts.npy` have their sha256 in the manifest, the JSON member of
a conversation has its CRC-32 in `counts.npy`, and an image has its sha256 in that member.
"""

import bisect
import io
import itertools
import os
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from scripts.common.errors import UserError, damaged
from scripts.common.files import bytes_sha256, parse_json, read_json

UNITS = "units.idx"
COUNTS_NAME = "counts.npy"
COUNTS = np.dtype([("dataset", "<i4"), ("tokens", "<i4"), ("labels", "<i4"), ("crc32", "<u4")])
"""A row of that file: the number of the conversation's dataset (in alphabetical order), tokens, supervised tokens, and
the CRC-32 of its JSON member."""

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
            UserError: the manifest, a shard or its index is missing or is not what the manifest describes.
        """
        self.folder, self.root = Path(folder), Path(root)
        self.manifest: dict[str, Any] = read_json(self.folder / "manifest.json")
        if "files" not in self.manifest:
            raise UserError(
                f"{self.folder} was written before blends had checksums: run blend and blend_manifest again"
            )
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
        units = self.folder / UNITS
        self._units = _numbers(units, self.manifest["units"] + 1, self.manifest["files"][UNITS])
        self._counts = self._read_counts()
        self._crc32 = self._counts["crc32"].tolist()
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
        """The supervised tokens of consecutive units by dataset, and all their tokens."""
        counts = self._counts[int(self._units[units.start]) : int(self._units[units.stop])]
        labels = np.bincount(counts["dataset"], counts["labels"], minlength=len(self.datasets))
        found = Counter({name: int(number) for name, number in zip(self.datasets, labels, strict=True) if number})
        return found, int(counts["tokens"].sum())

    @cached_property
    def most_labels(self) -> int:
        """The most supervised tokens of a unit; 0 without units."""
        before = np.concatenate([[0], np.cumsum(self._counts["labels"], dtype=np.int64)])
        return int(np.diff(before[self._units.astype(np.int64)]).max(initial=0))

    @property
    def most_tokens(self) -> int:
        """The most tokens of a conversation; 0 without conversations."""
        return int(self._counts["tokens"].max(initial=0))

    def _read_counts(self) -> np.ndarray:
        path = self.folder / COUNTS_NAME
        data = _checked_bytes(path, self.manifest["files"][COUNTS_NAME])
        try:
            counts: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise damaged(path, f"is no table of counts ({error})") from None
        if counts.ndim != 1 or counts.dtype != COUNTS or len(counts) != len(self):
            raise damaged(
                path, f"is no table of counts of {len(self)} conversations, but {counts.dtype} {counts.shape}"
            )
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
            self._checked_image(position, image, embedded.get(index))
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
        shard = self._shard(position)
        index = position - self._starts[shard]
        begin, end = map(int, self._offsets[shard][index : index + 2])
        try:
            text, embedded = None, {}
            if not images:
                head = _pread(self._paths[shard], begin, min(end - begin, _HEAD))
                text = next((data for name, data in _members(head, partial=True) if name.endswith(".json")), None)
            if text is None:
                members = dict(_members(_pread(self._paths[shard], begin, end - begin)))
                text = members.pop(next(name for name in members if name.endswith(".json")))
                embedded = {int(name.split(".")[1][1:]): data for name, data in members.items()}
        except (StopIteration, ValueError, IndexError) as error:
            reason = "it has no JSON member" if isinstance(error, StopIteration) else str(error)
            raise damaged(self._paths[shard], f"is damaged at conversation {position}: {reason}") from None
        if zlib.crc32(text) != self._crc32[position]:
            reason = f"the JSON of conversation {position} does not have its checksum"
            raise damaged(self._paths[shard], f"is damaged: {reason}")
        return parse_json(text, f"conversation {position} of {self._paths[shard]}"), embedded

    def _shard(self, position: int) -> int:
        """The number of the shard of a conversation."""
        return bisect.bisect_right(self._starts, position) - 1

    def _checked_image(self, position: int, image: dict[str, Any], embedded: bytes | None) -> bytes:
        """The bytes of an image, `embedded` or referenced, once they have the sha256 that the JSON names."""
        path = self._paths[self._shard(position)]
        what = f"the image {image['key']} of {image['source']}"
        needed_by = f"conversation {position} of {path} shows it"
        if "ref" in image:
            path, data = self._referenced(image["ref"], needed_by)
        elif embedded is None:
            raise damaged(path, f"is damaged: {what} is missing", needed_by)
        else:
            data = embedded
        if bytes_sha256(data) != image["sha256"]:
            raise damaged(path, f"is damaged: {what} does not have its sha256", needed_by)
        return data

    def _referenced(self, reference: Sequence[Any], needed_by: str) -> tuple[Path, bytes]:
        """Read an image in a media shard; `reference`: path below the root, offset, length in bytes."""
        name, offset, length = reference
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise UserError(f"{self.folder} refers to an image outside the results root: {name}")
        path = self.root / pure
        try:
            data = _pread(path, offset, length)
        except FileNotFoundError:
            raise damaged(path, "is missing", needed_by) from None
        if len(data) != length:
            raise damaged(path, "is damaged: it ends before an image does", needed_by)
        return path, data


def _checked_offsets(path: Path, shard: dict[str, Any]) -> np.ndarray:
    """Return the offsets of a shard's conversations, after checking the size of the shard and its index."""
    _check_size(path, shard["bytes"])
    return _numbers(Path(f"{path}.idx"), shard["conversations"] + 1, shard["index_sha256"])


def _numbers(path: Path, count: int, sha256: str) -> np.ndarray:
    """Read a file of `count` little-endian uint64."""
    _check_size(path, 8 * count)
    return np.frombuffer(_checked_bytes(path, sha256), "<u8")


def _checked_bytes(path: Path, sha256: str) -> bytes:
    """The content of a file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise damaged(path, "is missing") from None
    if bytes_sha256(data) != sha256:
        raise damaged(path, "is damaged: it does not have the sha256 of its manifest")
    return data


def _check_size(path: Path, size: int, needed_by: str = "") -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        raise damaged(path, "is missing" if found is None else f"has {found} bytes instead of {size}", needed_by)


def _check_media(root: Path) -> None:
    """Check presence and size of every media shard below `root` that a media manifest lists."""
    for manifest in sorted(root.glob("media/*/manifest.json")):
        for shard in read_json(manifest)["shards"]:
            _check_size(manifest.parent / shard["name"], shard["bytes"], "the blend's images lie there")


def _pread(path: Path, offset: int, length: int) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, length, offset)
    except OSError as error:
        error.filename = str(path)
        raise
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
