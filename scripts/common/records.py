"""Records: the conversations of every dataset in one form, before any choice is made.

An adapter turns a raw row into a `Record`; `convert` writes them to `records/<dataset>.parquet`; the plan reads that
table. Nothing in a record is drawn. What may vary stays data: a round holds all wordings of its question and
its answer, and a *choice group* says which wordings are chosen together. The plan stores one integer per group.

    pick      choice in [0, size): the alternative that every member of the group takes
    permute   choice in [0, size!): the rank of the order of the rounds; all images come with the first displayed round

Text refers to an image by a slot, because the final number of an image is known only when conversations are
concatenated or joined. `<|image:I|>`, with I the image's index in the record, *names* the image. `<|image:I:shown|>`
*shows* it at this place of a question; with a template that puts images before questions it becomes the image's name.
Images of a round that its question does not show by a slot are shown before the question.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

SLOT_PREFIX = "<|image:"
HELD_OUT = "heldout"
"""The split of rows of own data that are kept for evaluation, whatever their images."""
SPLITS = ("train", "val", "test")
"""The splits of published datasets."""
SHOWN_SLOT = re.compile(r"<\|image:(\d+):shown\|>")
MAX_PERMUTED = 20
"""Largest number of rounds that may be permuted: 20! is the last factorial that an int64 holds."""

RECORD_SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("images", pa.list_(pa.struct([("source", pa.string()), ("key", pa.string())]))),
        (
            "rounds",
            pa.list_(
                pa.struct(
                    [
                        ("images", pa.list_(pa.int32())),
                        ("question", pa.list_(pa.string())),
                        ("question_group", pa.int32()),
                        ("answer", pa.list_(pa.string())),
                        ("answer_group", pa.int32()),
                        ("supervised", pa.bool_()),
                    ]
                )
            ),
        ),
        ("system", pa.string()),
        ("groups", pa.list_(pa.struct([("name", pa.string()), ("kind", pa.string()), ("size", pa.int32())]))),
        ("licence", pa.string()),
        ("split", pa.string()),
    ]
)


def named_slot(index: int) -> str:
    """The slot that names a record's image."""
    return f"{SLOT_PREFIX}{index}|>"


def shown_slot(index: int) -> str:
    """The slot that shows a record's image at its place in a question."""
    return f"{SLOT_PREFIX}{index}:shown|>"


class ImageRef(NamedTuple):
    """An image of a media store."""

    source: str
    key: str


class ChoiceGroup(NamedTuple):
    """One choice that the plan makes for a record; `kind` is "pick" or "permute"."""

    name: str
    kind: str
    size: int


@dataclass(frozen=True)
class Round:
    """A question and its answer, each with at least one wording, and the record's images that first appear here.

    `images` are indices into the record's images. A group of -1 means that there is nothing to choose. An answer that
    is not `supervised` is shown, but not trained on.
    """

    question: tuple[str, ...]
    answer: tuple[str, ...]
    images: tuple[int, ...] = ()
    question_group: int = -1
    answer_group: int = -1
    supervised: bool = True


@dataclass(frozen=True)
class Record:
    """One conversation.

    `id` is that of the raw file; `raw_rows` counts the raw rows merged into it; `system` is a system text
    that replaces the template's, or "".
    """

    id: str
    images: tuple[ImageRef, ...]
    rounds: tuple[Round, ...]
    groups: tuple[ChoiceGroup, ...] = ()
    split: str = "train"
    raw_rows: int = 1
    system: str = ""


def check(record: Record) -> None:
    """Check what the later stages rely on.

    Raises:
        ValueError: the adapter that built the record has a bug (bad data is a dropped row instead).
    """
    _require(record.rounds, record, "has no rounds")
    _require(record.split in (*SPLITS, HELD_OUT), record, f"has the split {record.split!r}")
    shown = [index for round_ in record.rounds for index in round_.images]
    _require(shown == list(range(len(record.images))), record, "must show its images once, in their order")
    for round_ in record.rounds:
        for texts, group in ((round_.question, round_.question_group), (round_.answer, round_.answer_group)):
            clean = texts and all(text and text == text.strip() and "<image>" not in text for text in texts)
            _require(clean, record, "has a bad text")
            _require((group < 0) == (len(texts) == 1), record, "needs a group exactly where there are alternatives")
            _require(group < len(record.groups), record, "refers to a group that it lacks")
            if group >= 0:
                _require(record.groups[group][1:] == ("pick", len(texts)), record, "has a group of another size")
        _check_shown_slots(record, round_)
    clean = record.system == record.system.strip() and not SHOWN_SLOT.search(record.system)
    _require(clean, record, "has a bad system text")
    orders = [group for group in record.groups if group.kind == "permute"]
    _require(len(orders) <= 1, record, "has two orders")
    _require(all(1 < g.size == len(record.rounds) <= MAX_PERMUTED for g in orders), record, "has a bad order")
    questions = [question for round_ in record.rounds for question in round_.question]
    shows = any(SHOWN_SLOT.search(question) for question in questions)
    _require(not (orders and shows), record, "has an order of rounds, whose images have no places in questions")


def _check_shown_slots(record: Record, round_: Round) -> None:
    """Check that the shown slots of every wording are the last images of the round, each once, in their order."""
    for question in round_.question:
        shown = [int(slot) for slot in SHOWN_SLOT.findall(question)]
        last = list(round_.images[len(round_.images) - len(shown) :])
        _require(
            len(shown) <= len(round_.images) and shown == last,
            record,
            "shows other images than its round, or in another order",
        )
    _require(not any(map(SHOWN_SLOT.search, round_.answer)), record, "shows an image in an answer")


def _require(condition: object, record: Record, problem: str) -> None:
    if not condition:
        raise ValueError(f"record {record.id!r} {problem}")


def to_batch(rows: Iterable[tuple[str, Record]], licence: str) -> pa.RecordBatch:
    """Pairs of uid and record as rows with the schema `RECORD_SCHEMA`."""
    return pa.RecordBatch.from_pylist([_row(uid, record, licence) for uid, record in rows], RECORD_SCHEMA)


def _row(uid: str, record: Record, licence: str) -> dict[str, Any]:
    return {
        "uid": uid,
        "images": [image._asdict() for image in record.images],
        "rounds": [vars(round_) for round_ in record.rounds],
        "system": record.system,
        "groups": [group._asdict() for group in record.groups],
        "licence": licence,
        "split": record.split,
    }
