"""otter_mimicit_tvc: questions about the frames of a clip of a television series (TVQA captions).

A frame is `TVC_IMG_<clip>_<frame>`. The two published files disagree: one of them repeats the name of the clip,
`TVC_IMG_<clip>_<clip>_<frame>`. An image is found under either name. Clips have up to 16 frames, more than `max_images`
of most blends; the plan counts the rounds lost to that. How instructions become conversations: `mimicit`.
"""

import re
from collections.abc import Iterator

from scripts.adapters.base import Dropped
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.mimicit import candidate_paths, conversations
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
        candidates = candidate_paths(FOLDER, id_) + (candidate_paths(FOLDER, other) if other else [])
        if (
            other
            and images.has(SOURCE, *candidate_paths(FOLDER, other))
            and not images.has(SOURCE, *candidate_paths(FOLDER, id_))
        ):
            yield Note("doubled_clip_name", f"the image {id_} has the name {other}")
        yield images.find(SOURCE, *candidates)

    return conversations(raw, FILE, find)


def other_name(id_: str) -> str | None:
    """The id with its clip named once instead of twice, or the other way round; None for other ids."""
    if match := _DOUBLED.fullmatch(id_):
        return f"TVC_IMG_{match[1]}_{match[2]}"
    if match := _PLAIN.fullmatch(id_):
        return f"TVC_IMG_{match[1]}_{match[1]}_{match[2]}"
    return None
