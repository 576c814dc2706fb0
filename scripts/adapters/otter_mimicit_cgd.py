"""otter_mimicit_cgd: differences between two COCO images, and other questions about the pair.

Ids contain the number of a COCO image, `CGD_IMG_000000000785`; the images are taken from COCO, where they are larger
than in MIMIC-IT's files. Some copies of the file pad numbers to sixteen digits instead of twelve; only the number
matters. How instructions become conversations: `mimicit`.
"""

import re
from collections.abc import Iterator

from scripts.adapters.base import Dropped, RowError, coco_path
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.mimicit import conversations
from scripts.adapters.raw import Note, RawFiles
from scripts.common.records import ImageRef, Record

FILE = "MIMIC-IT/CGD_instructions.json"
_IMAGE_ID = re.compile(r"CGD_IMG_([0-9]{1,20})")
_DIGITS = 12


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """One conversation per group of related instructions."""

    def find(id_: str) -> Iterator[Note | ImageRef]:
        match = _IMAGE_ID.fullmatch(id_)
        if match is None:
            raise RowError("bad_row", f"'image_ids' should contain ids like CGD_IMG_000000000785, not {id_!r:.80}")
        if len(match[1]) > _DIGITS:
            yield Note("padded_id", f"{id_} has {len(match[1])} digits instead of {_DIGITS}")
        yield images.find("coco", coco_path(match[1]))

    return conversations(raw, FILE, find, count=2)
