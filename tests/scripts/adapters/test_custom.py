"""own: the user's conversations in every form that such files come in."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from scripts.adapters.conversion import Conversion
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import RawFiles
from scripts.common.errors import UserError
from scripts.common.records import shown_slot
from scripts.config.custom import CustomDatasetConfig
from scripts.config.registry import custom_dataset, custom_source
from scripts.fetch import fetch

NAMES = ("a.jpg", "b.jpg", "sub/c.png")
SYSTEM = {"role": "system", "content": "Be brief."}
A, B, C = (shown_slot(index) for index in range(3))


def convert(tmp_path, rows, file="chats.json", images="pictures/", **settings):
    """Records and reasons of `rows` (a value, or the file's text)."""
    records, conversion = converted(tmp_path, rows, file, images, **settings)
    counts = {reason: entry["count"] for reason, entry in conversion.dropped.as_dict().items()}
    return records, counts, {reason: entry["count"] for reason, entry in conversion.noted.as_dict().items()}


def converted(tmp_path, rows, file="chats.json", images="pictures/", **settings):
    """Records of `rows`, and the conversion that made them."""
    folder = tmp_path / "mine"
    for name in NAMES:
        (folder / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / "pictures" / name)
    (folder / file).write_bytes(rows if isinstance(rows, bytes) else json.dumps(rows).encode())
    own = CustomDatasetConfig(folder=str(folder), files=(file,), images=images, **settings)
    fetch(custom_source("pets", own), folder, tmp_path / "raw", dataset=custom_dataset("pets", own))
    raw = RawFiles({"pets": tmp_path / "raw"})
    conversion = Conversion("pets", raw, ImageLookup.from_listing(raw, ["pets"]))
    return list(conversion), conversion


def llava(*turns, **row):
    messages = [{"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(turns)]
    return {"conversations": messages} | row


def chat(*turns, **row):
    messages = [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(turns)]
    return {"messages": messages} | row


def shown(record):
    return [(round_.question[0], round_.images) for round_ in record.rounds]


@pytest.mark.parametrize(
    ("row", "images", "questions"),
    [
        (llava("<image>\nWhat?", "A cat.", image="a.jpg"), ["a"], [(f"{A}\nWhat?", (0,))]),
        (
            llava(" What?\n<image>\n", "A cat.", "And?", "No.", image="a.jpg"),
            ["a"],
            [(f"What?\n{A}", (0,)), ("And?", ())],
        ),
        (chat("What?", "A cat.", images=["a.jpg", "b.jpg"]), ["a", "b"], [("What?", (0, 1))]),
        (
            chat("<image><image> Is <image> like these?", "No.", images=list(NAMES)),
            ["a", "b", "sub/c"],
            [(f"{A}{B} Is {C} like these?", (0, 1, 2))],
        ),
        (
            chat("<image> First.", "Yes.", "Now <image>.", "No.", images=["a.jpg", "b.jpg"]),
            ["a", "b"],
            [(f"{A} First.", (0,)), (f"Now {B}.", (1,))],
        ),
        (chat("Hello", "Hi."), [], [("Hello", ())]),
        (
            chat(
                [{"type": "image", "image": "b.jpg"}, {"type": "text", "text": "Who?"}],
                [{"type": "text", "text": "Me."}],
            ),
            ["b"],
            [(f"{A}Who?", (0,))],
        ),
        (
            chat(
                [{"type": "text", "text": "Who?"}, {"type": "image_url", "image_url": {"url": "file://b.jpg"}}], "Me."
            ),
            ["b"],
            [(f"Who?{A}", (0,))],
        ),
        (chat("Which?", "This.", images=[{"path": "./sub/c.png"}]), ["sub/c"], [("Which?", (0,))]),
        (
            llava("Twice <image> and <image>?", "Yes.", image=["a.jpg", "a.jpg"]),
            ["a", "a"],
            [(f"Twice {A} and {B}?", (0, 1))],
        ),
        (llava("<image>", "A cat.", image="a.jpg"), ["a"], [(A, (0,))]),
        (llava("", "Two cats.", image=["a.jpg", "b.jpg"]), ["a", "b"], [(A + B, (0, 1))]),
    ],
)
def test_the_forms_of_rows(tmp_path, row, images, questions):
    records, dropped, _ = convert(tmp_path, [row])
    assert dropped == {} and len(records) == 1
    stems = [image.key.removeprefix("pictures/").rsplit(".", 1)[0] for image in records[0].images]
    assert stems == images
    assert shown(records[0]) == questions


def test_a_system_turn_or_member_replaces_the_templates(tmp_path):
    turns = [{"role": "system", "content": " Be brief. "}, *chat("Hello", "Hi.")["messages"]]
    rows = [{"messages": turns}, chat("Hello", "Hi.", system="Be kind."), chat("Hello", "Hi.")]
    records, dropped, _ = convert(tmp_path, rows)
    assert dropped == {} and [record.system for record in records] == ["Be brief.", "Be kind.", ""]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (llava("<image> What?", "A cat."), "image_count"),
        (llava("<image> What?", "A cat.", image=["a.jpg", "b.jpg"]), "image_count"),
        (llava("What?", "A <image>.", image="a.jpg"), "image_in_answer"),
        (llava("What?", "A cat.", image="../../etc/passwd"), "unsafe_path"),
        (llava("What?", "A cat.", image="/etc/passwd"), "unsafe_path"),
        (llava("What?", "A cat.", image="C:\\x.jpg"), "unsafe_path"),
        (llava("What?", "A cat.", image="lost.jpg"), "missing_image"),
        (llava("What?", "A cat.", image=5), "bad_image"),
        (llava("What?", " "), "empty_text"),
        (llava("What?"), "no_answer"),
        (chat("Is it <|image:0|>?", "Yes."), "reserved_text"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}, "no_answer"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "unsupported_tool_calls"),
        ({"messages": [SYSTEM, *chat("Hello", "Hi.")["messages"]], "system": "Be kind."}, "two_systems"),
        (chat("Hello", "Hi.", system="Like <image>.", image="a.jpg"), "image_in_system"),
        (chat("Hello", "Hi.", images=["a.jpg"] * 65), "too_many_images"),
        ({"messages": "text"}, "bad_row"),
        (17, "bad_row"),
        (True, "bad_row"),
        (2.5, "bad_row"),
        ({"text": "no conversation"}, "unknown_form"),
        ("words", "bad_row"),
        (None, "bad_row"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, row, reason):
    records, dropped, _ = convert(tmp_path, [chat("Hello", "Hi."), row])
    assert len(records) == 1 and dropped == {reason: 1}


def test_a_last_question_without_an_answer_is_left_out(tmp_path):
    records, dropped, noted = convert(tmp_path, [chat("Hello", "Hi.", "And?")])
    assert len(records[0].rounds) == 1 and dropped == {} and noted == {"unanswered_question": 1}


def test_lines_of_json_lose_only_what_is_broken(tmp_path):
    good = json.dumps(chat("Hello", "Hi.")).encode()
    lines = [good, b"{broken", b"", good.replace(b"Hi.", b"H\xff."), b'{"a": 1, "a": 2, ' + good[1:]]
    records, dropped, noted = convert(tmp_path, b"\n".join(lines), "chats.jsonl")
    assert len(records) == 2 and dropped == {"invalid_json": 1, "invalid_utf8": 1}
    assert noted == {"duplicate_key": 1, "ignored:a": 1}


def test_rows_in_parquet_and_in_an_object(tmp_path):
    (tmp_path / "one/mine").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist([chat("Hello", "Hi.")]), tmp_path / "chats.parquet")
    table = (tmp_path / "chats.parquet").read_bytes()
    for number, (file, rows) in enumerate(
        (("x.parquet", table), ("x.json", {"meta": 1, "rows": [chat("Hello", "Hi.")]}))
    ):
        assert len(convert(tmp_path / str(number), rows, file)[0]) == 1


def test_text_alone_needs_no_folder_of_images(tmp_path):
    records, dropped, _ = convert(tmp_path, [chat("Hello", "Hi."), llava("<image>?", "x", image="a.jpg")], images=None)
    assert len(records) == 1 and dropped == {"missing_image": 1}


def test_images_in_an_archive(tmp_path):
    import zipfile

    (tmp_path / "mine").mkdir()
    with zipfile.ZipFile(tmp_path / "mine/pictures.zip", "w") as archive:
        archive.writestr("deep/inside/a.jpg", b"x")
    records, dropped, _ = convert(tmp_path, [llava("<image> Is it?", "Yes.", image="a.jpg")], images="pictures.zip")
    assert dropped == {} and [image.key for image in records[0].images] == ["pictures/a.jpg"]


def test_a_missing_file_names_the_configuration(tmp_path):
    own = CustomDatasetConfig(folder=str(tmp_path), files=("lost.json",))
    with pytest.raises(UserError, match=r"lost.json is not there .*custom.pets"):
        fetch(custom_source("pets", own), tmp_path, tmp_path / "raw")


def test_a_member_that_no_row_has_is_an_error(tmp_path):
    rows = [{"frage": "Wer?", "antwort": "Ich.", "bild": "a.jpg", "leer": None}]
    columns = {"question": "frage", "answer": "antwort", "images": "foto"}
    with pytest.raises(
        UserError, match=r"custom\.pets\.columns: .*`images: foto`; the rows have frage, antwort, bild\Z"
    ):
        convert(tmp_path, rows, columns=columns)
    records, dropped, noted = convert(tmp_path / "2", rows, columns=columns | {"images": "bild"})
    assert shown(records[0]) == [("Wer?", (0,))] and not dropped and not noted


def test_answers_that_are_not_trained_on_reach_the_record(tmp_path):
    row = chat("a", "b", "c", "d")
    row["messages"][1]["weight"] = 0
    records, _, noted = convert(tmp_path, [row])
    assert [round_.supervised for round_ in records[0].rounds] == [False, True] and noted == {"unsupervised_turn": 1}


def test_many_ignored_members_are_counted_together(tmp_path):
    rows = [chat("Hello", "Hi.") | {f"key {number}": 1} for number in range(150)]
    _, _, noted = convert(tmp_path, rows)
    assert len(noted) == 101 and noted["ignored:other members"] == 50 and noted["ignored:key 7"] == 1


def test_examples_are_one_line_and_name_the_row(tmp_path):
    rows = [GOOD, {"text": "x\n" * 900, "b" * 5000: 1, "\ud800": "\ud800"}, GOOD | {"\ud800" + "c" * 900: 1}]
    *_, conversion = converted(tmp_path, rows)
    (example,) = conversion.dropped.as_dict()["unknown_form"]["examples"]
    assert example.startswith("chats.json row 1: no question and answer: the row has the members text, bbb")
    assert len(example) <= 200 and "\n" not in example
    (name,) = conversion.noted.as_dict()
    assert len(name) < 100 and name.encode()


GOOD = chat("Who?", "Me.")
NUMBER = "HUGE"


@pytest.mark.parametrize("file", ["chats.json", "chats.jsonl"])
@pytest.mark.parametrize(
    "bad",
    [
        *(5, True, None, 1.5, "text", [], ["text"], [5], [[]], {}, float("nan"), float("inf"), NUMBER),
        *({"messages": value} for value in (5, True, None, "text", {}, [], [5, True], [None, []], [[], []])),
        *(GOOD | {"id": value} for value in (True, {"a": 1}, ["a"], float("-inf"), NUMBER)),
        *(GOOD | {"images": value} for value in (5, True, {"a": 1}, [5], [True], [[5]], [{"path": 5}], NUMBER)),
        *(
            {"messages": [{"role": "user", "content": content}, GOOD["messages"][1]]}
            for content in (5, True, None, {}, [5], [None], [[]], [{}], [{"type": 5}], [{"type": "text"}])
        ),
        *(
            {"messages": [{"role": "user", "content": [{"type": "image", "image": image}]}, GOOD["messages"][1]]}
            for image in (5, True, ["a.jpg"], {"url": 5}, {"url": []}, NUMBER)
        ),
    ],
    ids=lambda value: f"{value!r:.160}",
)
def test_a_row_of_any_type_costs_itself(tmp_path, bad, file):
    rows = [json.dumps(row).replace(f'"{NUMBER}"', "7" * 5000) for row in (GOOD, bad, GOOD)]
    text = "\n".join(rows) if file.endswith("l") else f"[{', '.join(rows)}]"
    records, dropped, _ = convert(tmp_path, text.encode(), file)
    assert len(records) == 2 and sum(dropped.values()) == 1, dropped


def test_numbers_that_nothing_reads_cost_nothing(tmp_path):
    text = json.dumps(
        [GOOD | {"size": "HUGE", "score": float("nan"), "id": 7}, GOOD | {"id": 1.5}, GOOD | {"id": None}]
    )
    records, dropped, _ = convert(tmp_path, text.replace('"HUGE"', "7" * 5000).encode())
    assert [record.id for record in records] == ["7", "1.5", "chats.json-2"] and not dropped
