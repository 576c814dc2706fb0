"""otter_mimicit_sd: spot the difference between two pictures of one scene (Spot-the-diff, subtle and general).

The images of pair 00001 are `SD_IMG_00001_1` and `SD_IMG_00001_2`; some pairs lack one of the two, and the instructions
about them are dropped. How instructions become conversations: `mimicit`.
"""

from collections.abc import Iterator

from scripts.adapters.base import Dropped
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.mimicit import conversations, find_in_folder
from scripts.adapters.raw import Note, RawFiles
from scripts.common.records import Record

FILE = "MIMIC-IT/SD_instructions.json"


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """One conversation per group of related instructions."""
    return conversations(raw, FILE, find_in_folder(images, "mimicit_sd", "MIMIC-IT/SD/"))
