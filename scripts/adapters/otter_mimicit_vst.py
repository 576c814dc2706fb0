"""otter_mimicit_vst: stories told over several photographs (VIST).

The photographs came from Flickr, where many have been deleted: the converter of MIMIC-IT leaves such images out and may
list them in `expired_images.json`. A story depends on the number and order of its images, so it is dropped, not
shortened. How instructions become conversations: `mimicit`.
"""

from collections.abc import Iterator

from scripts.adapters.base import Dropped, RowError
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.mimicit import candidate_paths, conversations
from scripts.adapters.raw import Note, RawFiles
from scripts.common.records import ImageRef, Record

FILE = "MIMIC-IT/VST_instructions.json"
EXPIRED = "MIMIC-IT/expired_images.json"
SOURCE = "mimicit_vst"
_PREFIX = "VST_IMG_"


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """One conversation per group of related instructions."""
    listed = raw.optional_json(EXPIRED)
    # The list has the ids without the prefix that the converter adds.
    expired = {str(id_).removeprefix(_PREFIX) for id_ in listed} if isinstance(listed, list) else set()

    def find(id_: str) -> Iterator[ImageRef]:
        try:
            yield images.find(SOURCE, *candidate_paths("MIMIC-IT/VST/", id_))
        except RowError as error:
            if error.reason == "missing_image" and id_.removeprefix(_PREFIX) in expired:
                raise RowError("expired_image", f"{id_} had been deleted when the images were collected") from None
            raise

    return conversations(raw, FILE, find)
