"""The images of one media shard as an encoder's image processor makes them, in the order of the shard."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from model.cropping import processed_pixels
from model.processing import load_image_processor
from scripts.common.errors import UserError
from scripts.common.files import read_json, read_table
from scripts.common.verified_folder import check_folder
from scripts.media.opening import UnreadableImageError, decode_image
from scripts.media.store import INDEX, MANIFEST, MediaStore


class StoredImage(NamedTuple):
    """An image of a media shard: its key, and the sha256 of its file."""

    key: str
    sha256: str


def image_processor_of(encoder: str | Path) -> Any:
    """Load the image processor of a vision encoder, a folder or hub name.

    Raises:
        UserError: there is none, or the folder is damaged.
    """
    check_folder(encoder)
    try:
        return load_image_processor(encoder)
    except (OSError, ValueError) as error:
        raise UserError(
            f"no image processor could be loaded from {str(encoder)!r}: {str(error).splitlines()[0]}"
        ) from None


def shard_images(source: str, media: Path, shard: str) -> list[StoredImage]:
    """The images of a shard (its name without extension) of the folder `media`, which is `media/<source>`.

    Raises:
        UserError: the folder has no such shard.
    """
    names = [entry["name"] for entry in read_json(media / MANIFEST)["shards"]]
    if f"{shard}.tar" not in names:
        raise UserError(f"{media / MANIFEST} lists no shard {shard}: run shard and media_index for {source} first")
    index = read_table(media / INDEX, columns=["key", "shard", "sha256"])
    rows = index.filter(pc.equal(index["shard"], names.index(f"{shard}.tar")))
    return [StoredImage(row["key"], row["sha256"]) for row in rows.to_pylist()]


def crops(image_processor: Any, source: str, media: Path, images: Sequence[StoredImage]) -> Iterator[np.ndarray]:
    """Decode images of the folder `media` one by one: uint8 (3, height, width), not yet normalised.

    Raises:
        UserError: an image cannot be decoded, or is too large for the image processor.
    """
    store = MediaStore({source: media})
    rows = store.lookup_all((source, stored.key) for stored in images)
    try:
        for stored in images:
            try:
                data = store.read_row(source, rows[source, stored.key])
                yield processed_pixels(image_processor, decode_image(data))
            except (UnreadableImageError, ValueError) as error:
                raise UserError(f"{media}: the image {stored.key} cannot be preprocessed: {error}") from None
    finally:
        store.close()
