"""The pixel store: the output of the image processor for every image, looked up by the hash of the image.

A frozen encoder gets the same pixels in every epoch, so decoding and resizing an image once is enough. A crop of 224
pixels is 150 kB, about as much as the JPEG it was made from, and is read by mapping the file: no decoder, no copy.

    <source>-00003-of-00016.u8       (images, 3, height, width) uint8, in the order of the media shard
    <source>-00003-of-00016.sha256   (images, 32) bytes: the hash of each image's file
    <source>-00003-of-00016.json     number of images, shape of a crop, and `key`: what the crops were made with

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
# Names of classes and files: they differ between a processor and its saved copy and have no influence on pixels.
_NOT_PIXELS = ("processor_class", "image_processor_type", "_processor_class", "auto_map", "name_or_path")


def pixels_key(settings: Mapping[str, Any]) -> str:
    """A hash, 16 hex digits, of what determines the crops: the processor's settings (`to_dict()`), Pillow's version."""
    known = {name: value for name, value in settings.items() if value is not None and name not in _NOT_PIXELS}
    facts = {"v": _VERSION, "pillow": PIL.__version__, "processor": known}
    return text_sha256(canonical_json(facts))[:16]


class PixelStore:
    """The crops of some sources, read by mapping their files; all processes share the mapped pages.

    It may be pickled: the other process maps the files again.
    """

    def __init__(self, manifests: Iterable[str | Path], key: str) -> None:
        """Open the shards of pixels that the JSON files `manifests` describe, all made with `key` (see `pixels_key`).

        Raises:
            UserError: a shard is missing or incomplete, or was made with another image processor or Pillow.
        """
        self._shards = [(Path(path).with_suffix(PIXELS), read_json(path)) for path in manifests]
        for path, facts in self._shards:
            _check(path, facts, key)

    def __getstate__(self) -> dict[str, Any]:
        return {"_shards": self._shards}

    def __len__(self) -> int:
        return sum(facts["images"] for _, facts in self._shards)

    def get(self, sha256: str) -> np.ndarray:
        """The crop of the image with this hash, uint8 (3, height, width); it is read-only.

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
            f"the pixel store lacks the image with the sha256 {sha256}: the media have changed since, or a source was "
            "not given; run preprocess_images again, or set pixels: false"
        )

    @cached_property
    def _starts(self) -> np.ndarray:
        """The number of the first image of every shard, and the number of all images."""
        return np.cumsum([0, *(facts["images"] for _, facts in self._shards)])

    @cached_property
    def _maps(self) -> list[np.ndarray]:
        return [
            np.memmap(path, np.uint8, "r", shape=(facts["images"], *facts["shape"])) if facts["images"] else np.empty(0)
            for path, facts in self._shards
        ]

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The hashes (n,) of all images, their order (n,) by the first eight bytes, and these bytes (n,) sorted."""
        data = b"".join(path.with_suffix(HASHES).read_bytes() for path, _ in self._shards)
        prefixes = np.frombuffer(data, ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)
        order = np.argsort(prefixes, kind="stable")
        return np.frombuffer(data, f"V{_HASH_BYTES}"), order, prefixes[order]


def _check(path: Path, facts: Mapping[str, Any], key: str) -> None:
    """Raise UserError unless a shard of pixels is complete and was made with `key`."""
    if facts["key"] != key:
        made = f"Pillow {facts['pillow']}, this is {PIL.__version__}" if facts["pillow"] != PIL.__version__ else ""
        raise UserError(
            f"{path} was made with another image processor or Pillow than this model's ({made or 'other settings'}): "
            "run preprocess_images again, or set pixels: false"
        )
    sizes = {PIXELS: facts["images"] * int(np.prod(facts["shape"])), HASHES: facts["images"] * _HASH_BYTES}
    for ending, size in sizes.items():
        file = path.with_suffix(ending)
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(f"{file} is missing or incomplete: run preprocess_images again")
