"""TokenCounts are exact to the token, and over-long conversations lose whole rounds."""

import pytest
from transformers import AutoTokenizer

from model.template import Template, encode
from scripts.blending.plan_summary import describe
from scripts.blending.render import messages
from scripts.blending.tokens_identity import template_of
from scripts.common.errors import UserError
from scripts.common.records import named_slot, shown_slot
from scripts.config.tokens import TemplateTexts
from tests.model.chat_families import FAMILIES, tokenizer_of
from tests.scripts.blending.plan_fixtures import (
    ALL,
    TOKENS,
    PlanWorkspace,
    llava,
    llava_dial,
    mixed_records,
    pair,
    record,
    turn,
)

TEMPLATE = Template()
INLINE = TOKENS.model_copy(update={"template": TemplateTexts(images="inline", image_header="({number}) ")})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return PlanWorkspace(tmp_path_factory.mktemp("lengths"), mixed_records(), held_out=["i03"])


@pytest.fixture(scope="module")
def tokenizer(workspace):
    return AutoTokenizer.from_pretrained(workspace.tokenizer)


def assert_exact(rows, records, tokenizer, template=TEMPLATE):
    for row in rows:
        conversation = messages(row, records)
        encoded = encode(conversation, tokenizer, template, TOKENS.image_tokens)
        assert len(encoded) == row["n_tokens"]
        assert sum(label >= 0 for label in encoded.labels) == row["n_labels"]
        assert encoded.image_indices == list(range(row["n_images"]))
        turns = [message for message in conversation if message["role"] != "system"]
        assert len(turns) == 2 * sum(len(rounds) for rounds in row["rounds"])


@pytest.mark.parametrize("sequence", [150, 250, 10_000])
@pytest.mark.parametrize("epoch", [0, None])
def test_every_row_has_exactly_its_planned_length(workspace, tokenizer, sequence, epoch):
    entries = {name: {"repeat": 3, "concat": 1 if "otter" in name else 3} for name in ALL}
    rows = workspace.plan(entries, epoch, sequence=sequence)
    assert len(rows) >= 5
    assert_exact(rows, workspace.records, tokenizer)
    assert max(row["n_tokens"] for row in rows) <= sequence
    totals = [sum(row[column] for row in rows) for column in ("n_tokens", "n_labels", "n_images")]
    assert totals == [workspace.manifest[name] for name in ("tokens", "labels", "images")]


def test_numbers_of_two_digits_are_counted_as_such(tmp_path, tokenizer):
    """'image 9' and 'image 10' differ in tokens; so do their headers."""
    round_ = turn("See <|image:0|>, <|image:1:LETTER|>?", "<|image:1:ordinal|>", [0, 1])
    workspace = PlanWorkspace(tmp_path, [record(f"many:{number}", ["a", "b"], [round_]) for number in range(8)])
    for name in workspace.datasets:
        workspace.count(name, TOKENS.model_copy(update={"max_images": 16}))
    plan = workspace.plan({"many": {"concat": 8}}, max_images=16)
    assert max(row["n_images"] for row in plan) > 10
    assert_exact(plan, workspace.records, tokenizer)


def test_text_alone_is_a_conversation(tmp_path, tokenizer):
    workspace = PlanWorkspace(tmp_path, [record("own:1", [], [turn("Hello?", "Hi.")]), llava(0, "a"), llava(1, "b")])
    rows = workspace.plan({"own": {}, "llava": {"concat": 2}})
    assert [row["n_images"] for row in rows if row["dataset"] == "own"] == [0]
    assert_exact(rows, workspace.records, tokenizer)


def test_a_system_text_of_a_records_own_replaces_the_templates(tmp_path, tokenizer):
    own = [
        record(f"own:{n}", [], [turn("Hello?", "Hi.")], system=text) for n, text in enumerate(("", "Be very brief."))
    ]
    workspace = PlanWorkspace(tmp_path, own)
    rows = workspace.plan({"own": {}})
    assert_exact(rows, workspace.records, tokenizer)
    assert len({row["n_tokens"] for row in rows}) == 2
    roles = {row["uids"][0]: messages(row, workspace.records)[0]["role"] for row in rows}
    assert roles == {"own:0": "user", "own:1": "system"}
    (both,) = [row for row in workspace.plan({"own": {"concat": 2}}, seed=4) if len(row["uids"]) == 2] or [None]
    assert both is not None
    assert_exact([both], workspace.records, tokenizer)


def test_cutting_takes_whole_rounds_from_the_end_and_counts_them(tmp_path, tokenizer):
    workspace = PlanWorkspace(tmp_path, [llava_dial(0, "a", 4)])
    (whole,) = workspace.plan({"llava_dial": {}}, sequence=10_000)
    assert workspace.manifest["datasets"]["llava_dial"]["cut"] == {"conversations": 0, "rounds": 0, "records": 0}
    (cut,) = workspace.plan({"llava_dial": {}}, sequence=whole["n_tokens"] - 1)
    assert whole["rounds"] == [[0, 1, 2, 3]]
    assert cut["rounds"] == [[0, 1, 2]]
    assert workspace.manifest["datasets"]["llava_dial"]["cut"] == {"conversations": 1, "rounds": 1, "records": 0}
    (same,) = workspace.plan({"llava_dial": {}}, sequence=cut["n_tokens"])
    assert same == cut
    assert_exact([whole, cut], workspace.records, tokenizer)


def test_a_record_that_is_cut_off_wholly_leaves_no_trace_in_the_row(tmp_path, tokenizer):
    workspace = PlanWorkspace(tmp_path, [llava_dial(number, f"i{number}", 2) for number in range(6)])
    longest = max(workspace.plan({"llava_dial": {}}, sequence=10_000), key=lambda row: row["n_tokens"])["n_tokens"]
    rows = workspace.plan({"llava_dial": {"concat": 3}}, sequence=longest)
    assert_exact(rows, workspace.records, tokenizer)
    account = workspace.manifest["datasets"]["llava_dial"]
    assert account["cut"]["records"] == 6 - sum(len(row["uids"]) for row in rows) > 0
    assert all(len(rounds) > 0 for row in rows for rounds in row["rounds"])
    assert {row["form"] for row in rows if len(row["uids"]) == 1} == {"single"}


def test_too_many_images_cut_like_too_many_tokens(tmp_path, tokenizer):
    workspace = PlanWorkspace(tmp_path, [llava(number, f"i{number}") for number in range(12)])
    rows = workspace.plan({"llava": {"concat": 12}}, max_images=2, seed=1)
    assert max(row["n_images"] for row in rows) == 2
    assert workspace.manifest["datasets"]["llava"]["cut"]["records"] > 0
    assert_exact(rows, workspace.records, tokenizer)


def test_a_conversation_that_fits_not_even_once_is_dropped_and_counted(tmp_path):
    long = record("llava:9", ["a"], [turn("Why? " * 40, "Because. " * 40, [0])])
    workspace = PlanWorkspace(tmp_path, [llava(0, "a"), long])
    rows = workspace.plan({"llava": {}}, sequence=200)
    assert [row["uids"] for row in rows] == [["llava:0"]]
    dropped = workspace.manifest["datasets"]["llava"]["dropped_conversations"]
    assert list(dropped) == ["too_many_tokens"] and dropped["too_many_tokens"]["count"] == 1
    (example,) = dropped["too_many_tokens"]["examples"]
    assert example["uids"] == ["llava:9"] and example["tokens"] > 200 == example["limit"]


def test_a_join_that_would_lose_its_comparison_is_dropped(tmp_path):
    workspace = PlanWorkspace(tmp_path, [llava_dial(0, "a"), llava(0, "b"), pair(0, "a", "b")])
    copies = {"llava_otter_blend": {"repeat": 40}}
    whole = workspace.plan(copies, sequence=10_000)
    limit = sorted(row["n_tokens"] for row in whole)[10]
    rows = workspace.plan(copies, sequence=limit)
    account = workspace.manifest["datasets"]["llava_otter_blend"]
    assert account["dropped_conversations"]["too_many_tokens"]["count"] == 40 - len(rows) > 0
    assert len(account["dropped_conversations"]["too_many_tokens"]["examples"]) <= 20
    assert account["cut"]["conversations"] > 0
    assert all(any(uid.startswith("otter") for uid in row["uids"]) for row in rows)


A, B = shown_slot(0), shown_slot(1)
WRITTEN = [
    turn(f"Which is newer, {A} or {B}?", f"Image {named_slot(1)}.", [0, 1]),
    turn(f"{A}: and this, like image{named_slot(0)}? {B}", "Yes.", [0, 1]),
    turn([f"{A}\nWhat is it?", f"What is {A}?", f"What is it? {A}", "What?"], "A dog.", [0], 0),
    turn(f"Before: {A}\nAfter: {B}", "Yes.", [0, 1]),
    turn(f"Compare it to{B}.", "Yes.", [0, 1]),
    turn(f"{B}, is it like the other?", "Yes.", [0, 1]),
    turn(f"{A}{B}", "Two.", [0, 1]),
    turn(f"{named_slot(0)}. {A}", "One.", [0]),
]


def interleaved_records():
    groups = [("question", "pick", 4)]
    return [
        record(f"own:{number}.{copy}", ["a", "b"][: len(round_["images"])], [round_], groups * (number == 2))
        for number, round_ in enumerate(WRITTEN)
        for copy in range(4)
    ]


@pytest.mark.parametrize("layout", ["before", "inline"])
def test_images_in_their_places_are_counted_exactly(tmp_path, tokenizer, layout):
    """In every layout, behind any number of earlier images, with numbers of one digit and of two."""
    workspace = PlanWorkspace(tmp_path, interleaved_records())
    settings = (INLINE if layout == "inline" else TOKENS).model_copy(update={"max_images": 24})
    manifest = workspace.count("own", settings)
    assert manifest["shows_images_in_questions"]
    template = template_of(settings, tokenizer)
    for seed in range(3):
        rows = workspace.plan({"own": {"concat": 12}}, max_images=24, seed=seed)
        assert_exact(rows, workspace.records, tokenizer, template)
        assert max(row["n_images"] for row in rows) > 10


def test_a_join_of_images_in_their_places(tmp_path, tokenizer):
    """What was shown before is named, which is exact where images come first; inline it is refused."""
    single = [
        record(f"llava:{n}", [image], [turn(f"{A}\nWhat is it?", "x", [0]), turn("And?", "y")])
        for n, image in enumerate("ab")
    ]
    pairs = [
        record(f"otter_mimicit_cgd:{n}", ["a", "b"], [turn(f"Is {A} like {B}?", "x", [0, 1]), turn("Why?", "z")])
        for n in range(3)
    ]
    workspace = PlanWorkspace(tmp_path, [*single, *pairs])
    joined = {"pairs": {"join": {"over": "otter_mimicit_cgd", "talk": ["llava"]}, "repeat": 10}}
    rows = workspace.plan(joined)
    assert_exact(rows, workspace.records, tokenizer)
    texts = {
        part["text"]
        for row in rows
        for message in messages(row, workspace.records)
        for part in message["content"]
        if part["type"] == "text"
    }
    assert {text for text in texts if "like" in text} == {"Is image 1 like image 2?"}
    for name in workspace.datasets:
        workspace.count(name, INLINE)
    with pytest.raises(UserError, match=r"a join of the blend shows llava, .*`images: before`"):
        workspace.plan(joined)
    rows = workspace.plan({"otter_mimicit_cgd": {"concat": 3}})
    assert_exact(rows, workspace.records, tokenizer, template_of(INLINE, tokenizer))


def test_rounds_that_are_not_supervised_are_shown_and_have_no_labels(tmp_path, tokenizer):
    rounds = [turn("One?", "It is 1.", supervised=False), turn("Two?", "2", [0]), turn("Three?", "3", supervised=False)]
    workspace = PlanWorkspace(tmp_path, [record("own:1", ["a"], rounds), llava(0, "a")])
    rows = workspace.plan({"own": {}, "llava": {}})
    assert_exact(rows, workspace.records, tokenizer)
    own = next(row for row in rows if row["dataset"] == "own")
    assert own["rounds"] == [[0, 1, 2]] and own["n_labels"] == 2
    assert workspace.manifest["datasets"]["own"]["labels"] == 2


def test_a_conversation_without_a_supervised_round_is_dropped_by_its_name(tmp_path, tokenizer):
    """Also one that loses its supervised rounds by truncation."""
    silent = record("own:1", [], [turn("One?", "1", supervised=False)])
    cut = record("own:2", [], [turn("One?", "1", supervised=False), turn("Two? " * 90, "2")])
    workspace = PlanWorkspace(tmp_path, [silent, cut, record("own:3", [], [turn("One?", "1")])])
    rows = workspace.plan({"own": {}}, sequence=100)
    assert [row["uids"] for row in rows] == [["own:3"]]
    dropped = workspace.manifest["datasets"]["own"]["dropped_conversations"]
    examples = [{"uids": ["own:1"]}, {"uids": ["own:2"]}]
    assert dropped == {"no_supervised_round": {"count": 2, "examples": examples}}
    assert len(workspace.plan({"own": {}}, sequence=10_000)) == 2


def test_the_reason_names_the_limit_that_struck(tmp_path):
    many = [record(f"own:{n}", [f"i{k}" for k in range(n)], [turn("Which?", "x", list(range(n)))]) for n in (2, 9, 30)]
    long = record("own:long", ["i0"], [turn("Why? " * 90, "x", [0])])
    workspace = PlanWorkspace(tmp_path, [*many, long])
    table = workspace.plan({"own": {}}, sequence=300)
    assert [row["uids"] for row in table] == [["own:2"]]
    dropped = workspace.manifest["datasets"]["own"]["dropped_conversations"]
    assert list(dropped) == ["too_many_images", "too_many_tokens"]
    assert sorted(dropped["too_many_images"]["examples"], key=str) == [
        {"uids": ["own:30"], "images": 30, "limit": 8},
        {"uids": ["own:9"], "images": 9, "limit": 8},
    ]
    (example,) = dropped["too_many_tokens"]["examples"]
    assert example["uids"] == ["own:long"] and example["tokens"] > example["limit"] == 300
    text = describe(workspace.table(), workspace.manifest)
    assert "own: 2 conversations dropped: too many images" in text
    assert "own:30: 30 images, limit 8" in text or "own:9: 9 images, limit 8" in text
    assert f"own: 1 conversations dropped: too many tokens\n    such as own:long: {example['tokens']} tokens" in text


@pytest.mark.parametrize(
    ("family", "kind"),
    [("qwen 3", "qwen"), ("llama 2", "prepend"), ("gemma 3", "gemma"), ("vicuna", "metaspace first"), ("phi", "phi")],
)
def test_rows_of_a_chat_template_have_exactly_their_planned_length(tmp_path, family, kind):
    """Where the last answer has a header of its own, and where a system text is part of the first question."""
    rounds = [turn("Is it red?", "No."), turn("12 or 13?", "12."), turn(": why?\n- a", "Because.")]
    shown = [turn(f"Is {shown_slot(0)} older than {shown_slot(1)}", "Yes.", [0, 1]), turn("Why?", "It is.")]
    records = [
        record("own:0", [], rounds),
        record("own:1", [], rounds, system="Be very brief."),
        record("own:2", ["a"], [turn("What is it?", "A", [0]), *rounds]),
        record("own:3", ["a", "b"], shown, system="Look."),
        record("own:4", ["b"], [turn(f"{shown_slot(0)}\nWhat is it?", "B", [0])]),
    ]
    workspace = PlanWorkspace(tmp_path, records)
    tokenizer = tokenizer_of(kind, FAMILIES[family].jinja)
    workspace.tokenizer = tmp_path / "chat"
    tokenizer.save_pretrained(workspace.tokenizer)
    settings = TOKENS.model_copy(update={"template": "chat"})
    workspace.count("own", settings)
    template = template_of(settings, tokenizer)
    for concat, sequence in ((1, 10_000), (3, 10_000), (3, 90)):
        rows = workspace.plan({"own": {"concat": concat, "repeat": 4}}, sequence=sequence)
        assert len(rows) > 2
        assert_exact(rows, workspace.records, tokenizer, template)
