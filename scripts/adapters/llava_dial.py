"""llava_dial: every row of LLaVA's conversations with all its rounds.

The schema is that of `llava`; the image belongs to the first round. A last question without an answer is left out and
counted.
"""

from collections.abc import Iterator

from scripts.adapters.base import Dropped, RowError, convert_rows, text
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.llava import conversation, image_path, row_id
from scripts.adapters.raw import Note, RawFiles, RawRow
from scripts.common.records import Record, Round

FILE = "llava/conversation_58k.json"


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """The conversations of the file."""

    def convert(row: RawRow) -> Iterator[Record | Note]:
        turns = conversation(row.value)
        if len(turns) < 2:
            raise RowError("bad_row", "no answer")
        texts = [text(turn, f"turn {number}") for number, turn in enumerate(turns[: len(turns) // 2 * 2])]
        image = images.find("coco", image_path(row.value))
        if len(turns) % 2:
            yield Note("unanswered_question", f"{FILE} row {row.id}: the last of {len(turns)} turns is left out")
        rounds = [
            Round((texts[number],), (texts[number + 1],), (0,) if number == 0 else ())
            for number in range(0, len(texts), 2)
        ]
        yield Record(row_id(row), (image,), tuple(rounds))

    yield from convert_rows(raw.rows(FILE), convert, FILE)
