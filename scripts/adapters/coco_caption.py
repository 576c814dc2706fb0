"""coco_caption: a request for a caption; the answer is one of the image's captions.

    {"cocoid": 785, "filepath": "val2014", "filename": "COCO_val2014_000000000785.jpg", "split": "restval",
     "sentences": [{"raw": "a skier on a slope", "tokens": [...], ...}, ...]}

The rows name the files of COCO 2014; COCO 2017 has the same images under their number, most of them in train2017 and
5,000 in val2017. Karpathy's val and test images are benchmarks and keep that split; restval is meant for training.

Instead of that file, the training rows are also read in the form that LAVIS publishes, with one caption per row:

    {"caption": "a skier on a slope", "image": "val2014/COCO_val2014_000000000785.jpg", "image_id": "coco_785"}
"""

import re
from collections.abc import Iterator

from scripts.adapters.base import Dropped, RowError, coco_path, convert_rows, field, text
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import Note, RawFiles, RawRow
from scripts.common.records import ChoiceGroup, ImageRef, Record, Round

FILE = "coco_caption/dataset.json"
PROMPTS = (
    "Describe the image in one sentence.",
    "Write a caption for this image.",
    "Sum up the scene in one sentence.",
    "Give this photo a short caption.",
    "Briefly say what is going on here.",
    "Tell me briefly what the image contains.",
    "Put what you see into one sentence.",
    "Caption the image.",
    "In a few words, report what is shown.",
    "Offer a plain caption for the picture.",
    "State briefly what can be seen.",
    "Use one sentence to tell what is in view.",
)
_SPLITS = {"train": "train", "restval": "train", "val": "val", "test": "test"}


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """One conversation per image: any prompt, any caption."""
    if raw.form(FILE) != FILE:
        yield from _single_captions(raw, images)
        return

    def convert(row: RawRow) -> Iterator[Record | Note]:
        number = field(row.value, "cocoid", int)
        split = field(row.value, "split", str)
        if split not in _SPLITS:
            raise RowError("bad_row", f"unknown split {split!r}")
        captions, empty = _captions(row)
        image = _image(images, number)
        if empty:
            yield Note("empty_caption", f"{FILE} row {row.id}: {empty} of {empty + len(captions)} captions left out")
        yield _record(number, image, captions, _SPLITS[split])

    yield from convert_rows(raw.rows(FILE), convert, FILE)


def _captions(row: RawRow) -> tuple[tuple[str, ...], int]:
    """The captions of a row, and the number of empty ones."""
    captions = []
    sentences = field(row.value, "sentences", list)
    for sentence in sentences:
        caption = field(sentence, "raw", str)
        if caption.strip():
            captions.append(text(caption, "a caption"))
    if not captions:
        raise RowError("empty_text", "no caption")
    return tuple(captions), len(sentences) - len(captions)


def _image(images: ImageLookup, number: int) -> ImageRef:
    return images.find("coco", coco_path(number), coco_path(number, "val2017"))


def _record(number: int, image: ImageRef, captions: tuple[str, ...], split: str = "train", raw_rows: int = 1) -> Record:
    groups = [ChoiceGroup("prompt", "pick", len(PROMPTS))]
    if len(captions) > 1:
        groups.append(ChoiceGroup("caption", "pick", len(captions)))
    round_ = Round(PROMPTS, captions, (0,), 0, 1 if len(captions) > 1 else -1)
    return Record(str(number), (image,), (round_,), tuple(groups), split, raw_rows)


_NUMBER = re.compile(r".*?([0-9]{1,12})(?:\.jpg)?")


def _single_captions(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """The rows of LAVIS, grouped by image."""
    file = raw.form(FILE)
    by_image: dict[int, tuple[ImageRef, list[str]]] = {}
    for row in raw.rows(FILE):
        try:
            caption = text(field(row.value, "caption", str), "the caption")
            match = _NUMBER.fullmatch(field(row.value, "image", str))
            if match is None:
                raise RowError("bad_row", f"'image' should name a file of COCO, not {row.value['image']!r:.80}")
            number = int(match[1])
            if number not in by_image:
                by_image[number] = _image(images, number), []
            by_image[number][1].append(caption)
        except RowError as error:
            yield Dropped(error.reason, f"{file} row {row.id}: {error.detail}")
    for number, (image, captions) in by_image.items():
        yield _record(number, image, tuple(captions), raw_rows=len(captions))
