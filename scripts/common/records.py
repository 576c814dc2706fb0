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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import attrgetter
from typing import Any, NamedTuple

import pyarrow as pa

SLOT_PREFIX = "<|image:"
HELD_OUT = "heldout"
"""The split of rows of own data that are kept for evaluation, whatever their images."""
SPLITS = ("train", "val", "test")
"""The splits of published datasets."""
_ALL_SPLITS = (*SPLITS, HELD_OUT)
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


class Round(NamedTuple):
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
    if record.split not in _ALL_SPLITS:
        _require(False, record, f"has the split {record.split!r}")
    appeared: list[int] = []
    shows = False
    for round_ in record.rounds:
        appeared += round_.images
        _check_texts(record, round_.question, round_.question_group)
        _check_texts(record, round_.answer, round_.answer_group)
        for question in round_.question:
            if SLOT_PREFIX in question:
                shows |= _check_shown_slots(record, round_, question)
        for answer in round_.answer:
            if SLOT_PREFIX in answer:
                _require(not SHOWN_SLOT.search(answer), record, "shows an image in an answer")
    _require(appeared == list(range(len(record.images))), record, "must show its images once, in their order")
    if record.system:
        clean = record.system == record.system.strip() and not SHOWN_SLOT.search(record.system)
        _require(clean, record, "has a bad system text")
    if record.groups:
        orders = [group for group in record.groups if group.kind == "permute"]
        _require(len(orders) <= 1, record, "has two orders")
        _require(all(1 < g.size == len(record.rounds) <= MAX_PERMUTED for g in orders), record, "has a bad order")
        _require(not (orders and shows), record, "has an order of rounds, whose images have no places in questions")


def _check_texts(record: Record, texts: tuple[str, ...], group: int) -> None:
    """Check the wordings of a question or an answer, and their choice group."""
    for text in texts:
        if not text or text != text.strip() or ("<" in text and "<image>" in text):
            _require(False, record, "has a bad text")
    if group >= 0 or len(texts) != 1:
        _require(texts, record, "has a bad text")
        _require(group >= 0 and len(texts) > 1, record, "needs a group exactly where there are alternatives")
        _require(group < len(record.groups), record, "refers to a group that it lacks")
        _require(record.groups[group][1:] == ("pick", len(texts)), record, "has a group of another size")


def _check_shown_slots(record: Record, round_: Round, question: str) -> bool:
    """Whether a wording of a question shows images; they must be the last of its round, each once, in their order."""
    shown = [int(slot) for slot in SHOWN_SLOT.findall(question)]
    last = list(round_.images[len(round_.images) - len(shown) :])
    _require(
        len(shown) <= len(round_.images) and shown == last,
        record,
        "shows other images than its round, or in another order",
    )
    return bool(shown)


def _require(condition: object, record: Record, problem: str) -> None:
    if not condition:
        raise ValueError(f"record {record.id!r} {problem}")


def to_batch(rows: Iterable[tuple[str, Record]], licence: str) -> pa.RecordBatch:
    """Pairs of uid and record as rows with the schema `RECORD_SCHEMA`."""
    pairs = list(rows)
    records = [record for _, record in pairs]
    given = {"uid": [uid for uid, _ in pairs], "licence": [licence] * len(pairs)}
    columns = [
        _column(given.get(field.name) or list(map(attrgetter(field.name), records)), field.type)
        for field in RECORD_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RECORD_SCHEMA)


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Values as a column of type `kind`; those of a struct have its fields as attributes. None of them is null."""
    if pa.types.is_struct(kind):
        parts = [_column(list(map(attrgetter(field.name), values)), field.type) for field in kind]
        return pa.StructArray.from_arrays(parts, fields=list(kind))
    if pa.types.is_list(kind):
        offsets = pa.array(list(accumulate(map(len, values), initial=0)), pa.int32())
        elements = _column(list(chain.from_iterable(values)), kind.value_type)
        return pa.ListArray.from_arrays(offsets, elements, type=kind)
    return pa.array(values, kind)
