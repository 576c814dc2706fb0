"""The pixel store: the processor's crop of every image, as it leaves the processor, found by the image's hash.

A frozen encoder sees an image the same way in every epoch, so decoding and resizing it once is enough. A crop of 224
pixels is 150 kB, about as much as the JPEG it was made from, and is read by mapping the file: no decoder, no copy.

    <source>-00003-of-00016.u8       (images, 3, height, width) uint8, in the order of the media shard
    <source>-00003-of-00016.sha256   (images, 32) bytes: the hash of each image's file
    <source>-00003-of-00016.json     the shape, the sizes, and `key`: what the crops were made with

`key` is a hash of the image processor's settings and of Pillow's version, whose resampling is part of the pixels.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from scripts.common.errors import UserError
from scripts.common.files import canonical_json, read_json, text_sha256

PIXELS, HASHES = ".u8", ".sha256"
_HASH_BYTES = 32
_VERSION = 1
# Names of classes and files, which differ between a processor and its saved copy, and what is None everywhere.
_NOT_PIXELS = ("processor_class", "image_processor_type", "_processor_class", "auto_map", "name_or_path")


def pixels_key(settings: Mapping[str, Any]) -> str:
    """Sixteen hex digits of what decides the crops: an image processor's settings (`to_dict()`), Pillow's version."""
    known = {name: value for name, value in settings.items() if value is not None and name not in _NOT_PIXELS}
    facts = {"v": _VERSION, "pillow": PIL.__version__, "processor": known}
    return text_sha256(canonical_json(facts))[:16]


class PixelStore:
    """The crops of some sources, read by mapping their files; what is mapped is shared by all processes.

    It may be sent to other processes, which map the files anew.
    """

    def __init__(self, described: Iterable[str | Path], key: str):
        """Open the shards that the JSON files `described` tell of, all made with `key` (see `pixels_key`).

        Raises:
            UserError: one is missing or not whole, or was made with another processor or Pillow.
        """
        self._shards = [(Path(path).with_suffix(PIXELS), read_json(path)) for path in described]
        for path, facts in self._shards:
            _check(path, facts, key)

    def __getstate__(self) -> dict[str, Any]:
        return {"_shards": self._shards}

    def __len__(self) -> int:
        return sum(facts["images"] for _, facts in self._shards)

    def get(self, sha256: str) -> np.ndarray:
        """The crop of the image with this hash, uint8 (3, height, width); it must not be written to.

        Raises:
            UserError: the store has no such image.
        """
        hashes, order, begins = self._index
        wanted = np.frombuffer(bytes.fromhex(sha256), f"V{_HASH_BYTES}")
        start = int.from_bytes(wanted[0].tobytes()[:8], "big")
        for place in range(int(np.searchsorted(begins, np.uint64(start))), len(order)):
            if int(begins[place]) != start:
                break
            if hashes[order[place]] == wanted[0]:
                shard = int(np.searchsorted(self._starts, order[place], side="right")) - 1
                return self._maps[shard][order[place] - self._starts[shard]]
        raise UserError(
            f"the pixel store lacks the image with the sha256 {sha256}: the media have changed since, or a source was "
            "not given; run pixels again, or set pixels: false"
        )

    @cached_property
    def _starts(self) -> np.ndarray:
        """The number of the first image of every shard, and of the end."""
        return np.cumsum([0, *(facts["images"] for _, facts in self._shards)])

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        return [
            np.memmap(path, np.uint8, "r", shape=(facts["images"], *facts["shape"])) if facts["images"] else np.empty(0)
            for path, facts in self._shards
        ]

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The hashes (n,) of all images, an order of them, and their first eight bytes in that order."""
        parts = [path.with_suffix(HASHES).read_bytes() for path, _ in self._shards]
        begins = np.frombuffer(b"".join(parts), ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)
        order = np.argsort(begins, kind="stable")
        return np.frombuffer(b"".join(parts), f"V{_HASH_BYTES}"), order, begins[order]


def _check(path: Path, facts: Mapping[str, Any], key: str) -> None:
    """Raise UserError unless a shard of pixels is whole and was made with `key`."""
    if facts["key"] != key:
        made = f"Pillow {facts['pillow']}, this is {PIL.__version__}" if facts["pillow"] != PIL.__version__ else ""
        raise UserError(
            f"{path} was made with another image processor or Pillow than this model's ({made or 'other settings'}): "
            "run pixels again, or set pixels: false"
        )
    sizes = {PIXELS: facts["images"] * int(np.prod(facts["shape"])), HASHES: facts["images"] * _HASH_BYTES}
    for ending, size in sizes.items():
        file = path.with_suffix(ending)
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(f"{file} is missing or not whole: run pixels again")
