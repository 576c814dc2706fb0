"""TokenCounts are exact to the token, and over-long conversations lose whole rounds."""

import pytest
from transformers import AutoTokenizer

from model.template import Template, encode
from scripts.blending.render import messages
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


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return PlanWorkspace(tmp_path_factory.mktemp("lengths"), mixed_records(), held_out=["i03"])


@pytest.fixture(scope="module")
def tokenizer(workspace):
    return AutoTokenizer.from_pretrained(workspace.tokenizer)


def assert_exact(rows, records, tokenizer):
    for row in rows:
        conversation = messages(row, records)
        encoded = encode(conversation, tokenizer, Template(), TOKENS.image_tokens)
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
