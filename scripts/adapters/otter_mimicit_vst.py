"""otter_mimicit_vst: stories told over several photographs (VIST).

The photographs came from Flickr, and many pages are gone: the converter of MIMIC-IT leaves such images out and may list
them in `expired_images.json`. What is told about them counts on their number and order, so it is dropped, not
shortened. How rounds become conversations: `mimicit`.
"""

from collections.abc import Iterator

from scripts.adapters.base import Dropped, RowError
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.mimicit import conversations, places
from scripts.adapters.raw import Note, RawFiles
from scripts.common.records import ImageRef, Record

FILE = "MIMIC-IT/VST_instructions.json"
EXPIRED = "MIMIC-IT/expired_images.json"
SOURCE = "mimicit_vst"
_PREFIX = "VST_IMG_"


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """One conversation per group of related instructions."""
    listed = raw.optional_json(EXPIRED)
    # Listed before the converter has put the name of the dataset in front.
    expired = {str(id_).removeprefix(_PREFIX) for id_ in listed} if isinstance(listed, list) else set()

    def find(id_: str) -> Iterator[ImageRef]:
        try:
            yield images.find(SOURCE, *places("MIMIC-IT/VST/", id_))
        except RowError as fault:
            if fault.reason == "missing_image" and id_.removeprefix(_PREFIX) in expired:
                raise RowError("expired_image", f"{id_} was gone when the images were collected") from None
            raise

    return conversations(raw, FILE, find)
