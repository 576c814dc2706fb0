"""ocr_vqa: one of the questions about the cover of a book, with its answer.

    {"761183272": {"imageURL": "http://ecx.images-amazon.com/images/I/61Y5cOdHJbL.jpg",
                   "questions": ["Who wrote this book?", ...], "answers": ["The author", ...],
                   "title": ..., "authorName": ..., "genre": ..., "split": 1}, ...}

The image of a row is `OCR_VQA/images/<id>` with the extension of its address; collections in which all files were
renamed to .jpg or .png are found as well. Splits 1, 2 and 3 are train, val and test, and are kept.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from scripts.adapters.base import Dropped, RowError, convert_rows, field, file_stem, text
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import Note, RawFiles, RawRow
from scripts.common.records import SPLITS, ChoiceGroup, Record, Round

FILE = "OCR_VQA/dataset.json"
SOURCE = "ocr_vqa"
_EXTENSIONS = (".jpg", ".png", ".gif", ".jpeg")


def records(raw: RawFiles, images: ImageLookup) -> Iterator[Record | Dropped | Note]:
    """One conversation per cover: any of its questions."""

    def convert(row: RawRow) -> Iterator[Record | Note]:
        pairs, empty = _pairs(row)
        split = field(row.value, "split", int)
        if not 1 <= split <= len(SPLITS):
            raise RowError("bad_row", f"split {split} is not 1, 2 or 3")
        image = images.find(SOURCE, *_candidate_paths(row))
        if empty:
            yield Note("empty_answer", f"{FILE} row {row.id}: {empty} of {empty + len(pairs)} questions left out")
        group = 0 if len(pairs) > 1 else -1
        questions, answers = zip(*pairs, strict=True)
        groups = (ChoiceGroup("question", "pick", len(pairs)),) if len(pairs) > 1 else ()
        round_ = Round(questions, answers, (0,), group, group)
        yield Record(text(row.id, "the id"), (image,), (round_,), groups, SPLITS[split - 1])

    yield from convert_rows(raw.rows(FILE), convert, FILE)


def _pairs(row: RawRow) -> tuple[list[tuple[str, str]], int]:
    """Questions with their answers, and the number of those left out because one of the two is empty."""
    questions, answers = field(row.value, "questions", list), field(row.value, "answers", list)
    if len(questions) != len(answers):
        raise RowError("bad_row", f"{len(questions)} questions, but {len(answers)} answers")
    pairs = []
    for question, answer in zip(questions, answers, strict=True):
        try:
            pairs.append((text(question, "a question"), text(answer, "an answer")))
        except RowError as error:
            if error.reason != "empty_text":
                raise
    if not pairs:
        raise RowError("empty_text", "no question with an answer")
    return pairs, len(questions) - len(pairs)


def _candidate_paths(row: RawRow) -> list[str]:
    """The paths that the image may have; the one with the extension of its address comes first."""
    stem = f"OCR_VQA/images/{file_stem(row.id)}"
    try:
        extension = PurePosixPath(urlsplit(field(row.value, "imageURL", str)).path).suffix.lower()
    except ValueError:
        raise RowError("bad_row", "'imageURL' is not an address") from None
    first = [extension] if extension in _EXTENSIONS else []
    return [stem + each for each in dict.fromkeys([*first, *_EXTENSIONS])]
