"""What rows of own data mean: each form, roles, systems, loss switches, members that are ignored or refused."""

import copy
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation_reader import RowReader, read_row
from scripts.adapters.own.forms import FORMS
from scripts.adapters.raw import HugeNumber
from scripts.config.custom import OwnRowsConfig
from tests.scripts.adapters.own.written import chat, dropped, listed, notes, read

CONVERSATIONS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
NAN = float("nan")
ONE = ["U Who?", "A Me."]
PAIR = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]

FORMS_OF_ROWS = [
    ({"id": "1", "image": "a.jpg", "conversations": CONVERSATIONS}, ["U {}\nWhat?", "A A cat."], ["{a.jpg}"]),
    (chat("Which, <image> or <image>?", "This.", images=["a", "b"]), ["U Which, {} or {}?", "A This."], ["{a}", "{b}"]),
    (chat("Who?", "Me.", images=["a", "b"]), ONE, ["{a}", "{b}"]),
    ({"conversation": [{"human": "Who?", "assistant": "Me."}], "system": "S"}, ["S S", *ONE], []),
    ({"conversation": [{"assistant": "Me.", "user": "Who?"}]}, ONE, []),
    ({"conversation": [{"human": "Who?"}, {"assistant": "Me."}]}, ONE, []),
    (
        {"texts": [{"user": "Who?", "assistant": "Me.", "source": "x"}], "images": [{"bytes": b"xy"}]},
        ONE,
        ["{2 bytes}"],
    ),
    ({"qa": [["Who?", "Me."], ["a", "b"]]}, [*ONE, "U a", "A b"], []),
    ({"qa_pairs": [{"question": "Who?", "answer": "Me."}]}, ONE, []),
    ({"data": ["Who?", "Me.", "a", "b"]}, [*ONE, "U a", "A b"], []),
    ({"dialog": ["Who?", "Me."]}, ONE, []),
    ({"contents": [{"role": "user", "parts": [{"text": "Who?"}]}, {"role": "model", "parts": ["Me."]}]}, ONE, []),
    ({"instruction": "Who?", "input": "", "output": "Me."}, ONE, []),
    ({"instruction": "Add", "input": "1 2", "output": "3"}, ["U Add\n1 2", "A 3"], []),
    (
        {"instruction": "c", "output": "d", "history": [["a", "b"]], "system": "S"},
        ["S S", "U a", "A b", "U c", "A d"],
        [],
    ),
    ({"instruction": "Sum up", "context": "Long.", "response": "L.", "category": "x"}, ["U Sum up\nLong.", "A L."], []),
    ({"query": "<image> Who?", "response": "Me.", "images": "a"}, ["U {} Who?", "A Me."], ["{a}"]),
    ({"query": "c", "response": "d", "history": [["a", "b"]]}, ["U a", "A b", "U c", "A d"], []),
    ({"prompt": "Who?", "completion": " Me."}, ONE, []),
    ({"prompt": PAIR[:1], "completion": PAIR[1:], "images": ["a"]}, ONE, ["{a}"]),
    ({"question": "How many?", "answer": 3, "image": "a"}, ["U How many?", "A 3"], ["{a}"]),
    ({"question": "Who?", "answers": ["b", "Me.", "Me."]}, ONE, []),
    ({"question": "Who?", "answers": [{"answer": "Me.", "answer_id": 1}, {"answer": "b", "answer_id": 2}]}, ONE, []),
    ({"question": "Who?", "answers": {"text": ["Me."], "answer_start": [3]}}, ONE, []),
    ({"question": "Who?", "multiple_choice_answer": "Me.", "answers": ["a"]}, ONE, []),
    ({"questions": ["Who?", "a"], "answers": ["Me.", "b"]}, [*ONE, "U a", "A b"], []),
    ({"url": "http://x/a.jpg", "caption": "A cat."}, ["U Describe the image.", "A A cat."], ["{http://x/a.jpg}"]),
    ({"prefix": "Who?", "suffix": "Me.", "image": "a"}, ONE, ["{a}"]),
    ({"problem": "Who?", "solution": "Me."}, ONE, []),
    ({"question": "Which?", "options": ["x", "y"], "answer": "B"}, ["U Which?\nA. x\nB. y", "A B"], []),
    ({"question": "Which?", "choices": ["x", "y"], "answer": 0}, ["U Which?\nA. x\nB. y", "A A"], []),
    ({"question": "Which?", "options": "['x', 'y']", "answer": "x"}, ["U Which?\nA. x\nB. y", "A x"], []),
    ({"question": "Which?", "A": "x", "B": 2, "C": None, "answer": "B"}, ["U Which?\nA. x\nB. 2", "A B"], []),
    ({"question": "Which?", "option_a": "x", "option_b": "y", "answer": "B"}, ["U Which?\nA. x\nB. y", "A B"], []),
    ({"image": "a", "caption": "A cat."}, ["U Describe the image.", "A A cat."], ["{a}"]),
    ({"file_name": "a.jpg", "text": "A cat."}, ["U Describe the image.", "A A cat."], ["{a.jpg}"]),
    (
        {"__key__": "k", "__url__": "u", "jpg": b"xyz", "txt": "A cat."},
        ["U Describe the image.", "A A cat."],
        ["{3 bytes}"],
    ),
    ({"image": "a", "text": "Cat.", "caption": "Cat."}, ["U Describe the image.", "A Cat."], ["{a}"]),
    (PAIR, ONE, []),
]


@pytest.mark.parametrize(("row", "turns", "images"), FORMS_OF_ROWS, ids=lambda value: f"{value!s:.50}")
def test_the_forms(row, turns, images):
    assert read(row) == turns and listed(row) == images


def test_the_table_names_a_page_or_a_purpose_for_every_form():
    names = [form.name for form in FORMS.forms]
    assert len(set(names)) == len(names) and all(form.about for form in FORMS.forms)


def test_minicpm_shows_images_by_their_markers():
    row = chat("<image_01> after <image_00>?", "No.", image={"<image_00>": "a", "<image_01>": "b", "<image_02>": None})
    assert read(row) == ["U {b} after {a}?", "A No."] and listed(row) == []
    assert dropped(chat("<image_00>?", "No.", image={"<image_00>": "a", "<image_01>": "b"}))[0] == "image_count"
    assert dropped(chat("<image_00> <image_03>?", "No.", image={"<image_00>": "a"}))[0] == "unsupported_media"


def test_values_decide_and_not_the_presence_of_keys():
    row = chat("<image> Who?", "Me.", image=None, images=["a"], conversations=None, query="", history=[], objects={})
    assert read(row) == ["U {} Who?", "A Me."] and listed(row) == ["{a}"] and notes(row) == {}
    row = {"from": None, "value": None, "role": "user", "content": "Who?"}
    assert read({"messages": [row, {"from": "gpt", "value": "Me.", "role": None, "content": None}]}) == ONE
    assert read({"instruction": "Who?", "input": NAN, "output": "Me.", "system": NAN}) == ONE


def test_missing_images_in_lists_are_no_images():
    missing = {"bytes": None, "path": None}
    assert listed(chat("<image> Who?", "Me.", images=["a", None, "", {}, missing])) == ["{a}"]
    assert read(chat("Who?", "Me.", image=missing)) == ONE and listed(chat("Who?", "Me.", image=missing)) == []
    assert dropped({"image": missing, "caption": "A cat."})[0] == "unknown_form"
    assert dropped(chat("<image> Who?", "Me.", images=[None]))[0] == "image_count"


def test_lists_in_tables_without_lists():
    assert read({"messages": json.dumps(PAIR)}) == ONE
    assert read({"messages": repr(PAIR)}) == ONE
    assert read({"messages": {"role": ["user", "assistant"], "content": ["Who?", "Me."]}}) == ONE
    assert listed(chat("Who?", "Me.", images='["a", "b"]')) == ["{a}", "{b}"]
    assert listed(chat("Who?", "Me.", images={"bytes": [b"x", None], "path": [None, "b"]})) == ["{1 bytes}", "{b}"]


def test_two_forms_in_a_row_must_give_the_same_texts():
    same = chat("Who?", "Me.", prompt="Who?", completion="Me.", id="1")
    assert read(same) == ONE and notes(same) == {}
    reason, detail = dropped(chat("Who?", "Me.", prompt="Where?", completion="Here."))
    assert reason == "ambiguous_form" and "prompt" in detail and "columns" in detail
    assert dropped(chat("Who?", "Me.", conversations=[*CONVERSATIONS[:1], {"from": "gpt", "value": "x"}]))[0] in (
        "ambiguous_form",
        "image_count",
    )
    both = chat("Who?", "Me.", query="Where?", response="Here.")
    assert read(both, messages="messages") == ONE
    assert read(both, question="query") == ["U Where?", "A Here."]


def test_a_text_of_the_conversation_is_not_left_over():
    assert dropped({"question": "a", "answer": "b", "context": "c"})[0] == "ambiguous_form"
    assert dropped({"problem": "a", "solution": "b", "answer": "c"})[0] == "ambiguous_form"
    assert dropped({"image": "a", "caption": "b", "question": "c"})[0] == "ambiguous_form"
    assert dropped(chat("Who?", "Me.", history=[["a", "b"]]))[0] == "ambiguous_form"
    assert read({"question": "a", "answer": "b", "context": "c"}, context="context") == ["U a\nc", "A b"]
    assert read({"question": "a", "answer": "b", "context": "c"}, ignore=["context"]) == ["U a", "A b"]
    # The prompt of a preference set repeats the first turn.
    assert notes(chat("Who?", "Me.", prompt="Who?")) == {"ignored:prompt": 1}


def test_an_unknown_form_names_the_members():
    reason, detail = dropped({"foo": 1, "text": "plain text", "empty": ""})
    assert reason == "unknown_form" and "foo, text" in detail and "empty" not in detail and "columns" in detail
    assert dropped({})[0] == "unknown_form"
    reason, detail = dropped({"messages": "text"})
    assert reason == "bad_row" and "'text'" in detail
    assert dropped({"texts": ["An interleaved", "document."], "images": ["a", "b"]})[0] == "bad_row"
    for row in (None, 5, True, "text", [], [5], ["text"], b"x"):
        assert dropped(row)[0] == "bad_row"


def test_columns_name_other_members():
    row = {"frage": "Wer?", "antwort": "Ich.", "bild": "a", "nr": 7}
    assert read(row, question="frage", answer="antwort", images="bild") == ["U Wer?", "A Ich."]
    assert listed(row, question="frage", answer="antwort", images="bild") == ["{a}"]
    own = OwnRowsConfig.model_validate(
        {"columns": {"question": "frage", "answer": "antwort", "id": "nr", "ignore": ["bild"]}}
    )
    assert read_row(row, own).id == "7" and read_row(row, own).notes == ()
    turns = [{"wer": "Kunde", "was": "Who?"}, {"wer": "Agent", "was": "Me."}]
    columns = {"messages": "faden", "role": "wer", "content": "was", "roles": {"kunde": "user", "AGENT": "assistant"}}
    assert read({"faden": turns}, **columns) == ONE
    reason, detail = dropped({"x": 1}, **columns)
    assert reason == "missing_member" and "faden" in detail and "x" in detail
    assert read({"image": "a", "alt": "A cat."}, prompt="What?", answer="alt") == ["U What?", "A A cat."]
    assert read({"image": "a", "caption": "A cat."}, prompt="<image>\nWhat?") == ["U {}\nWhat?", "A A cat."]
    assert read(chat("[IMG] Who?", "Me.", images="a"), image_tag="[IMG]") == ["U {} Who?", "A Me."]
    assert dropped(chat("<image> Who?", "Me.", images="a"), image_tag="[IMG]")[0] == "unsupported_media"
    assert read({"instruction": "a", "input": "b", "output": "c"}, question="instruction", answer="output") == [
        "U a\nb",
        "A c",
    ]
    assert read({"faden": [{"kunde": "Who?", "agent": "Me."}]}, messages="faden", roles={"kunde": "user"}) == ONE


def test_columns_reach_inside_of_objects():
    row = {"meta": {"text": {"alt": "A cat."}}, "file": {"img": "a"}, "other": 1}
    columns = {"answer": "meta.text.alt", "images": "file.img", "prompt": "What?"}
    assert read(row, **columns) == ["U What?", "A A cat."] and listed(row, **columns) == ["{a}"]
    assert notes(row, **columns) == {"ignored:other": 1}
    assert dropped({"meta": {"text": 5}}, **columns)[0] == "missing_member"


def test_preferences_are_refused_or_chosen():
    row = {"prompt": "Who?", "chosen": "Me.", "rejected": "You."}
    reason, detail = dropped(row)
    assert reason == "preference_pair" and "answer: chosen" in detail
    assert read(row, answer="chosen") == ONE and notes(row, answer="chosen") == {"ignored:rejected": 1}
    assert read({"chosen": PAIR, "rejected": PAIR}, messages="chosen") == ONE
    row = {"conversations": CONVERSATIONS[:1], "chosen": CONVERSATIONS[1], "rejected": CONVERSATIONS[1], "image": "a"}
    assert read(row, messages="conversations", answer="chosen") == ["U {}\nWhat?", "A A cat."]
    assert notes(chat("Who?", "Me.", rejected_response="You.")) == {"ignored:rejected_response": 1}
    assert dropped(chat("Who?", "Me.", label=False))[0] == "undesirable_answer"
    assert notes(chat("Who?", "Me.", label=True)) == {"ignored:label": 1}


@pytest.mark.parametrize(
    ("system", "turns"),
    [
        ({"system": "S"}, None),
        ({"system_prompt": " S "}, None),
        ({"system_message": "S"}, None),
        ({"systemInstruction": {"parts": [{"text": "S"}]}}, None),
        ({"sys_prompt": "S"}, None),
        ({}, [{"role": "system", "content": "S"}]),
        ({}, [{"role": "developer", "content": [{"type": "text", "text": "S"}]}]),
        ({"system": "S"}, [{"role": "system", "content": "S"}]),
        ({"system": None, "system_prompt": "S"}, [{"role": "system", "content": ""}]),
    ],
)
def test_systems(system, turns):
    assert read({"messages": [*(turns or []), *PAIR]} | system) == ["S S", *ONE]


def test_systems_that_are_refused():
    system = {"role": "system", "content": "S"}
    assert dropped({"messages": [*PAIR, system, *PAIR]})[0] == "misplaced_system"
    assert dropped({"messages": [system, {"role": "system", "content": "T"}, *PAIR]})[0] == "two_systems"
    assert dropped(chat("Who?", "Me.", system="S", system_prompt="T"))[0] == "two_systems"
    assert dropped({"messages": [system, *PAIR], "system": "T"})[0] == "two_systems"
    assert dropped(chat("Who?", "Me.", system=["S"]))[0] == "bad_system"
    assert dropped(chat("Who?", "Me.", system=5))[0] == "bad_system"
    assert dropped(chat("Who?", "Me.", system="Like <image>.", image="a"))[0] == "image_in_system"
    assert read(chat("Who?", "Me.", system=" ")) == ONE


def test_the_order_of_turns():
    user, assistant = PAIR
    merged = {"messages": [user, {"role": "user", "content": "<image> Now?"}, assistant], "image": "a"}
    assert read(merged) == ["U Who?\n{} Now?", "A Me."] and notes(merged) == {"merged_turns": 1}
    assert dropped({"messages": [assistant, user, assistant]})[0] == "assistant_first"
    assert dropped({"messages": [user, assistant, assistant]})[0] == "two_answers"
    assert dropped({"messages": [user]})[0] == "no_answer"
    assert dropped({"messages": [user, user]})[0] == "no_answer"
    last = {"messages": [*PAIR, {"role": "user", "content": "<image>?"}], "images": ["a"]}
    assert read(last) == ONE and listed(last) == [] and notes(last) == {"unanswered_question": 1}


@pytest.mark.parametrize("word", ["human", "USER", "Customer", "User:", " user "])
def test_words_for_roles(word):
    assert read({"messages": [{"role": word, "content": "Who?"}, {"role": "Bot", "content": "Me."}]}) == ONE


def test_roles_that_are_refused():
    for role in ("tool", "function", "observation", "ipython"):
        assert dropped({"messages": [*PAIR, {"role": role, "content": "x"}]})[0] == "unsupported_tool_calls"
    assert dropped({"messages": [PAIR[0], {"role": "narrator", "content": "x"}]})[0] == "unknown_role"
    calls = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert dropped({"messages": [PAIR[0], calls]})[0] == "unsupported_tool_calls"
    assert read({"messages": [PAIR[0], {**calls, "content": "Me.", "tool_calls": []}]}) == ONE
    call = {"role": "assistant", "function_call": {"name": "x"}}
    assert dropped({"messages": [PAIR[0], call]})[0] == "unsupported_tool_calls"
    assert notes(chat("Who?", "Me.", tools=[{"type": "function"}])) == {"ignored:tools": 1}


@pytest.mark.parametrize("switch", [{"weight": 0}, {"loss": False}, {"loss": 0.0}, {"loss_mask": 0}, {"train": False}])
def test_answers_that_are_not_trained_on(switch):
    row = {"messages": [PAIR[0], PAIR[1] | switch, *PAIR]}
    assert read(row) == ["U Who?", "(A) Me.", *ONE] and notes(row) == {"unsupervised_turn": 1}
    assert dropped({"messages": [PAIR[0], PAIR[1] | switch]})[0] == "nothing_supervised"


def test_other_values_of_loss_switches():
    for switch in ({"weight": 1}, {"loss": True}, {"loss": None}, {"weight": 1.0}):
        row = {"messages": [PAIR[0], PAIR[1] | switch]}
        assert read(row) == ONE and notes(row) == {}
    assert notes({"messages": [PAIR[0], PAIR[1] | {"weight": 0.5}]}) == {"loss_weight": 1}
    assert dropped({"messages": [PAIR[0], PAIR[1] | {"loss": [0, 1]}]})[0] == "unsupported_loss"
    assert dropped(chat("Who?", "Me.", loss=0))[0] == "nothing_supervised"
    assert notes(chat("Who?", "Me.", weight=0.5)) == {"loss_weight": 1}
    assert read({"messages": [PAIR[0] | {"loss": False}, PAIR[1]]}) == ONE
    assert notes({"messages": [PAIR[0] | {"loss": True}, PAIR[1]]}) == {"unsupervised_question": 1}


def test_members_that_are_not_understood_are_counted():
    row = chat("Who?", "Me.", source="x", objects=[{"bbox": [1]}], id="1", ok=False, n=0)
    assert notes(row) == {"ignored:n": 1, "ignored:objects": 1, "ignored:ok": 1, "ignored:source": 1}
    assert notes(row, ignore=["source", "objects", "ok", "n"]) == {}
    row = {"messages": [PAIR[0] | {"name": "x"}, PAIR[1] | {"reasoning_content": "y", "refusal": None}]}
    assert notes(row) == {"ignored:messages.name": 1, "ignored:messages.reasoning_content": 1}
    assert notes(row, ignore=["messages.name", "reasoning_content"]) == {}


@pytest.mark.parametrize("member", ["videos", "video", "audios", "audio", "mp4", "wav"])
def test_other_media_cost_the_row(member):
    assert dropped(chat("Who?", "Me.", **{member: ["x"]})) == (
        "unsupported_media",
        f"the row has {member!r}, which this model does not read",
    )
    assert read(chat("Who?", "Me.", **{member: []})) == ONE
    assert notes(chat("Who?", "Me.", **{member: ["x"]}), ignore=[member]) == {}


def test_a_member_that_seems_to_be_an_image_is_not_ignored():
    for value in ("a.jpg", b"x", {"bytes": b"x", "path": None}, ["a.PNG", "b.png"], "https://example.org/a.webp"):
        reason, detail = dropped(chat("Who?", "Me.", foto=value))
        assert reason == "unknown_image_member" and "images: foto" in detail
        assert notes(chat("Who?", "Me.", foto=value, image="a")) == {"ignored:foto": 1}
        assert notes(chat("Who?", "Me.", foto=value), ignore=["foto"]) == {}


def test_an_id_of_an_image_is_no_image():
    reason, detail = dropped({"question": "Who?", "answer": "Me.", "image_id": 5})
    assert reason == "unknown_image_member" and "image_id" in detail
    assert notes({"question": "Who?", "answer": "Me.", "image_id": 5, "image": "a"}) == {"ignored:image_id": 1}


@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}, math.inf, HugeNumber()])
def test_ids_are_texts_or_numbers(value):
    assert dropped(chat("Who?", "Me.", id=value))[0] == "bad_row"


def test_the_split_of_a_row_is_kept():
    own = OwnRowsConfig.model_validate({"split": {"column": "fold"}})
    assert (
        read_row(chat("a", "b", fold="Val"), own).split == "Val" and read_row(chat("a", "b", fold=3), own).split == "3"
    )
    assert read_row(chat("a", "b", fold="Val"), own).notes == () and read_row(chat("a", "b"), own).split == ""
    assert read_row(chat("a", "b", __split__="test"), OwnRowsConfig()).split == "test"


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.binary(max_size=4)
leaves |= st.sampled_from(
    ["<image>", "user", "assistant", "\ud800", "<|image:0|>", "[1]", "<img>a</img>", "text", "image"]
)
keys = st.sampled_from(
    [
        "messages",
        "conversations",
        "texts",
        "data",
        "role",
        "from",
        "content",
        "value",
        "type",
        "text",
        "image",
        "images",
        "question",
        "answer",
        "answers",
        "prompt",
        "completion",
        "options",
        "history",
        "system",
        "id",
        "loss",
        "caption",
        "image_1",
        "jpg",
        "index",
        "user",
        "assistant",
        "parts",
        "label",
        "input",
        "<image_00>",
        "x",
    ]
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5))


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(row=st.dictionaries(keys, values, max_size=5) | values)
def test_any_row_is_a_conversation_or_a_reason(row):
    reader = RowReader(OwnRowsConfig())
    try:
        conversation = reader.read(row)
    except RowError:
        return
    roles = [turn.role for turn in conversation.turns if turn.role != "system"]
    assert roles and roles == ["user", "assistant"] * (len(roles) // 2)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_changed_row_is_a_conversation_or_a_reason(data):
    row = copy.deepcopy(data.draw(st.sampled_from([row for row, _, _ in FORMS_OF_ROWS])))
    for _ in range(data.draw(st.integers(1, 3))):
        holder, places = row, []
        while isinstance(holder, list | dict) and holder and (not places or data.draw(st.booleans())):
            key = data.draw(st.sampled_from(list(holder) if isinstance(holder, dict) else range(len(holder))))
            places.append((holder, key))
            holder = holder[key]
        if places:
            places[-1][0][places[-1][1]] = data.draw(values)
    test_any_row_is_a_conversation_or_a_reason.hypothesis.inner_test(row)
