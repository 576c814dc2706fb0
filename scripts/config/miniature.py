"""Settings of the miniature: synthetic data in the raw formats of the real datasets (read by `miniature`)."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from scripts.config.base import Section

Kind = Literal["what", "colour", "shape", "count", "where", "size", "count_colour", "exist", "compare", "which"]
Fault = Literal[
    "truncated",
    "zero_bytes",
    "not_an_image",
    "one_pixel",
    "bomb",
    "gif_named_jpg",
    "png_named_jpg",
    "cmyk",
    "palette",
    "sixteen_bit",
    "alpha",
    "rotated",
    "long_text",
    "missing_image",
    "padded_id",
    "doubled_clip",
    "expired_image",
    "lost_side",
    "lost_round",
    "self_reference",
    "dangling_reference",
    "one_sided_reference",
    "other_images",
    "prefix_id",
    "odd_turns",
    "doubled_key",
    "doubled_id",
    "wrong_type",
    "empty_answer",
    "invalid_utf8",
    "absolute_path",
    "parent_path",
    "archive_link",
]
"""Faults of raw data; `scripts/synthetic/faults.py` defines each, and the reason under which it is reported."""
TWO_IMAGE_KINDS = frozenset({"compare", "which"})

Rate = Annotated[float, Field(ge=0, le=20)]
Share = Annotated[float, Field(ge=0, le=1)]


class RowsConfig(Section):
    """Raw rows per image and file; a fraction is the share of images that have one (more) row."""

    llava_detail: Rate = 0.2
    """`detail_23k.json`: one description each. They are long; too many slow down the learning of short answers."""

    llava_reasoning: Rate = 1.8
    """`complex_reasoning_77k.json`: one question each."""

    llava_dial: Rate = 1.0
    """`conversation_58k.json`: `dial_rounds` questions each."""

    dial_rounds: Annotated[int, Field(ge=1, le=10)] = 3
    """Questions in a row of `llava_dial`; fewer if an image does not allow as many."""

    cgd: Rate = 2.0
    """`CGD_instructions.json`: pairs of images (the image and an earlier one), each with `cgd_rounds` rounds."""

    cgd_rounds: Annotated[int, Field(ge=1, le=10)] = 3
    """Rounds about a pair. More pairs (`cgd`) train more to distinguish images than more rounds about the same ones."""

    comparisons: Annotated[float, Field(ge=0, le=1)] = 0.4
    """Share of a pair's rounds that ask about both images; the others name one of them."""

    coco_caption: Rate = 1.0
    """`dataset.json`: five captions each. More than one row per image does not exist in this format."""

    aokvqa: Rate = 0.2
    """`aokvqa_v1p0_train.json`: one question with choices and rationales each."""

    mimicit: Share = 0.02
    """`SD`, `SN`, `TVC` and `VST` of MIMIC-IT: number of separate images (in base64) of each file, as a share of
    `images`; two or three per conversation."""

    minigpt4: Share = 0.02
    """`filter_cap.json`: number of separate images with a caption, as a share of `images`."""

    ocr_vqa: Share = 0.02
    """`dataset.json`: number of separate images (book covers), as a share of `images`, with several questions each."""

    sparkles: Share = 0.02
    """`SparklesDialogueCC.json` and `...VG.json`: number of separate images of each file, as a share of `images`; three
    per dialogue."""


class MiniatureConfig(Section):
    """The synthetic images and the rows about them. Increasing `images` does not change the first ones."""

    seed: int = 0
    """Another seed gives other images and rows."""

    images: Annotated[int, Field(ge=1, le=1_000_000)] = 5000
    """Images to generate, a millisecond each. A tiny model memorizes unless there are thousands."""

    image_size: Annotated[int, Field(ge=16, le=1024)] = 64
    """Side of an image in pixels."""

    shapes: Annotated[int, Field(ge=2, le=6)] = 4
    """Number of shapes: the first N of circle, square, triangle, cross, star, diamond."""

    colours: Annotated[int, Field(ge=2, le=8)] = 6
    """Number of colours: the first N of red, green, blue, yellow, purple, black, cyan, pink."""

    sizes: Annotated[int, Field(ge=1, le=2)] = 1
    """2: objects are small or large, and their names include the size."""

    max_objects: Annotated[int, Field(ge=1, le=4)] = 3
    """Most objects in an image, each in its own quarter; at least one."""

    kinds: tuple[Kind, ...] = ("what", "colour", "shape", "count", "where", "compare", "which")
    """Kinds of questions. About one image: what, colour, shape, count, where, size, count_colour, exist. About two:
    compare, which."""

    rows: RowsConfig = RowsConfig()
    """Number of rows about each image in each file."""

    faults: tuple[Fault, ...] = ()
    """Faults to put into the raw files, each in one file, row or image: shows how the workflow treats bad data."""

    @model_validator(mode="after")
    def _askable(self) -> "MiniatureConfig":
        if len(set(self.kinds)) != len(self.kinds):
            raise ValueError("kinds: a kind is listed twice")
        if not set(self.kinds) - TWO_IMAGE_KINDS:
            raise ValueError("kinds: at least one kind of question about one image is needed")
        if "size" in self.kinds and self.sizes == 1:
            raise ValueError("kinds: `size` can be asked only with `sizes: 2`")
        if self.rows.coco_caption > 1:
            raise ValueError("rows.coco_caption: an image has one row in this format, so at most 1")
        return self
