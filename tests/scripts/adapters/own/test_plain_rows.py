"""Plain rows: what they give is what the reader of all rows gives."""

from itertools import product
from random import Random

import pytest

from scripts.adapters.base import RowError
from scripts.adapters.custom import rounds_of
from scripts.adapters.own.conversation_reader import RowReader
from scripts.adapters.own.plain_rows import PlainRows
from scripts.config.custom import OwnRowsConfig

TEXTS = (
    "Is it red?",
    " <image>\nIs it red? ",
    "Compare\n<image>",
    "<image>",
    "<image> <image>",
    "<video> now",
    "[1, 2]",
    "a < b",
    "¿Es rojo? 犬",
    "caf\udce9",
    "<|image:0|>",
    "   ",
    "",
    None,
    7,
)
ROLES = (
    ("from", "value", "human", "gpt"),
    ("role", "content", "user", "assistant"),
    ("value", "from", "USER", "model"),
)
IMAGES = (
    "a.jpg",
    ["a.jpg"],
    ["a.jpg", "b.jpg"],
    [],
    "",
    None,
    " ",
    "[x",
    '["a.jpg", "b.jpg"]',
    3,
    {"bytes": b"123", "path": None},
    {"bytes": None, "path": "a"},
)
IDS = ("1", " 1 ", "", None, 5, True, 0.5, "<|image:1|>", "é")
MEMBERS = ("image", "images", "img_path", "image_url", "photo", "file_name", "image_1")


def by_all(row, reader):
    """Images, rounds, id, and whether there is more to a row; or the reason why it is refused."""
    try:
        conversation = reader.read(row)
    except RowError as error:
        return error.reason
    images, rounds = rounds_of(conversation)
    more = bool(conversation.notes or conversation.split or conversation.turns[0].role == "system")
    return tuple(images), rounds, conversation.id, more


def by_plain(row, reader):
    try:
        plain = reader.read(row)
    except RowError as error:
        return error.reason
    return None if plain is None else (*plain, False)


def random_row(random):
    """A row of one of many shapes, most of them near the plain ones."""
    row = {}
    if random.random() < 0.8:
        row[random.choice(MEMBERS)] = random.choice(IMAGES[: random.choice((2, len(IMAGES)))])
    if random.random() < 0.5:
        row["id"] = random.choice(IDS[: random.choice((1, len(IDS)))])
    texts = TEXTS[: random.choice((2, 3, len(TEXTS)))]
    if random.random() < 0.3:
        pairs = [("question", "answer"), ("query", "response"), ("instruction", "output"), ("prompt", "response")]
        question, answer = random.choice(pairs)
        row |= {question: random.choice(texts), answer: random.choice(texts[:1] * 3 + texts)}
    else:
        role, content, user, assistant = random.choice(ROLES)
        turns = []
        for number in range(random.choice((0, 1, 2, 2, 2, 3, 4))):
            word = (user, assistant)[number % 2] if random.random() < 0.95 else random.choice(("system", user, "tool"))
            text = random.choice(texts if number == 0 else texts[:1] * 3 + texts)
            turns.append({role: word, content: text} | ({"loss": 0} if random.random() < 0.03 else {}))
        row[random.choice(("conversations", "messages", "dialogue"))] = turns
    if random.random() < 0.05:
        row[random.choice(("system", "label", "note", "videos", "__split__"))] = random.choice(("", "test", False))
    return dict(random.sample(sorted(row.items(), key=lambda item: item[0]), len(row)))


def test_plain_rows_give_what_all_rows_give():
    own, random = OwnRowsConfig(), Random(1)
    plain_rows, reader = PlainRows(own), RowReader(own)
    plain, refused = 0, set()
    for _ in range(6000):
        row = random_row(random)
        found, expected = by_plain(row, plain_rows), by_all(row, reader)
        assert found is None or found == expected, row
        plain += isinstance(found, tuple)
        refused |= {expected} if isinstance(expected, str) else set()
    assert plain > 300
    assert len(refused) > 8


@pytest.mark.parametrize(("role", "content", "user", "assistant"), ROLES[:2])
@pytest.mark.parametrize("image", IMAGES[:2])
def test_the_usual_forms_are_plain(role, content, user, assistant, image):
    turns = [{role: user, content: "<image>\nIs it red?"}, {role: assistant, content: "Yes."}]
    for member, name in product(("conversations", "messages"), ("image", "images")):
        row = {"id": "1", name: image, member: turns}
        assert by_plain(row, PlainRows(OwnRowsConfig())) == by_all(row, RowReader(OwnRowsConfig())) is not None


@pytest.mark.parametrize("settings", [{"columns": {"image_tag": "<img>"}}, {"split": {"column": "id"}}])
def test_rows_of_a_dataset_with_settings_are_not_plain(settings):
    row = {"id": "1", "image": "a.jpg", "question": "Is it red?", "answer": "Yes."}
    assert by_plain(row, PlainRows(OwnRowsConfig())) is not None
    assert by_plain(row, PlainRows(OwnRowsConfig.model_validate(settings))) is None
