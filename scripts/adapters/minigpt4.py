"""minigpt4: descriptions of images, the aligned captions of MiniGPT-4's second stage (cc_sbu_align).

    {"annotations": [{"image_id": "2", "caption": "The image shows a man fishing on a lawn ..."}, ...]}

The images are `cc_sbu_align/image/<image_id>.jpg`. The copy of this dataset on the Hugging Face hub has all captions
but few of the images; rows without their image are counted as `missing_image`.
"""

from collections.abc import Iterator

from scripts.adapters.base import Dropped, convert_rows, field, file_stem, text
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import Note, RawFiles, RawRow
from scripts.common.records import ChoiceGroup, Record, Round

FILE = "cc_sbu_align/filter_cap.json"
SOURCE = "cc_sbu_align"
PROMPTS = (
    "Describe this image in detail.",
    "Tell me everything that you see.",
    "Give a thorough account of the picture.",
    "Explain at length what the image contains.",
    "Walk me through this photo.",
    "Write a careful description of the scene.",
    "Say what is going on here, as detailed as you can.",
    "Tell someone who cannot see it what this image shows.",
)


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """One conversation per image: any prompt, its caption."""

    def convert(row: RawRow) -> Iterator[Record]:
        name = field(row.value, "image_id", str, int)
        caption = text(field(row.value, "caption", str), "the caption")
        image = images.find(SOURCE, f"cc_sbu_align/image/{file_stem(name)}.jpg")
        group = ChoiceGroup("prompt", "pick", len(PROMPTS))
        yield Record(str(name), (image,), (Round(PROMPTS, (caption,), (0,), 0),), (group,))

    yield from convert_rows(raw.rows(FILE), convert, FILE)
