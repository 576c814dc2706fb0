r"""llava: the first question and answer of every row of LLaVA's descriptions and reasoning.

    {"id": "000000442786", "image": "000000442786.jpg",
     "conversations": [{"from": "human", "value": "<image>\nQuestion"}, {"from": "gpt", "value": "Answer"}, ...]}

Ids are not unique, neither inside a file nor across the two. The placeholder stands before or after the question.
"""

from collections.abc import Iterator
from typing import Any

from scripts.adapters.base import Dropped, RowError, convert_rows, field, safe_path, text
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import Note, RawFiles, RawRow
from scripts.common.records import Record, Round

FILES = ("llava/detail_23k.json", "llava/complex_reasoning_77k.json")
_SPEAKERS = ("human", "gpt")
_FOLDER = "coco/train2017/"


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """The conversations of both files."""
    for path in FILES:
        # The file name makes ids unique across the two files: detail_23k-000000442786.
        stem = path.rsplit("/", 1)[1].removesuffix(".json")

        def convert(row: RawRow, stem: str = stem) -> Iterator[Record]:
            turns = conversation(row.value)
            if len(turns) < 2:
                raise RowError("bad_row", "no answer")
            question, answer = text(turns[0], "the question"), text(turns[1], "the answer")
            image = images.find("coco", image_path(row.value))
            yield Record(f"{stem}-{row_id(row)}", (image,), (Round((question,), (answer,), (0,)),))

        yield from convert_rows(raw.rows(path), convert, path)


def conversation(row: Any) -> list[Any]:
    """The texts of a row in LLaVA's format, questions and answers in turn.

    Raises:
        RowError: bad_row (no conversation, or speakers that do not alternate).
    """
    turns = field(row, "conversations", list)
    for number, turn in enumerate(turns):
        speaker = field(turn, "from", str)
        if speaker != _SPEAKERS[number % 2]:
            raise RowError("bad_row", f"turn {number} is of {speaker!r}, not of {_SPEAKERS[number % 2]!r}")
    return [field(turn, "value", str) for turn in turns]


def image_path(row: Any) -> str:
    """The path of a row's image below the data path; some copies of the files include the folder, most do not."""
    return _FOLDER + safe_path(field(row, "image", str)).removeprefix(_FOLDER)


def row_id(row: RawRow) -> str:
    """The id of a row, or its number where it has none."""
    value = row.value.get("id", row.id)
    return text(str(value), "'id'")
