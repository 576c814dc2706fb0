"""otter_mimicit_tvc: questions about the frames of a clip of a television series (TVQA captions).

A frame is `TVC_IMG_<clip>_<frame>`. The two published files disagree: in one of them the name of the clip stands twice,
`TVC_IMG_<clip>_<clip>_<frame>`. Either is found by the other. Clips have up to 16 frames, more than a blend's
`max_images` commonly allows; the plan counts what that costs. How rounds become conversations: `mimicit`.
"""

import re
from collections.abc import Iterator

from scripts.adapters.base import Dropped
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.mimicit import conversations, places
from scripts.adapters.raw import Note, RawFiles
from scripts.common.records import ImageRef, Record

FILE = "MIMIC-IT/TVC_instructions.json"
SOURCE = "mimicit_tvc"
FOLDER = "MIMIC-IT/TVC/"
_DOUBLED = re.compile(r"TVC_IMG_(.+_clip_[0-9]+)_\1_([0-9]+)")
_PLAIN = re.compile(r"TVC_IMG_(.+?_clip_[0-9]+)_([0-9]+)")


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """One conversation per group of related instructions."""

    def find(id_: str) -> Iterator[Note | ImageRef]:
        other = other_name(id_)
        candidates = places(FOLDER, id_) + (places(FOLDER, other) if other else [])
        if other and images.has(SOURCE, *places(FOLDER, other)) and not images.has(SOURCE, *places(FOLDER, id_)):
            yield Note("doubled_clip_name", f"{id_} is called {other} among the images")
        yield images.find(SOURCE, *candidates)

    return conversations(raw, FILE, find)


def other_name(id_: str) -> str | None:
    """The id with its clip named once instead of twice, or the other way round; None for other ids."""
    if match := _DOUBLED.fullmatch(id_):
        return f"TVC_IMG_{match[1]}_{match[2]}"
    if match := _PLAIN.fullmatch(id_):
        return f"TVC_IMG_{match[1]}_{match[1]}_{match[2]}"
    return None
