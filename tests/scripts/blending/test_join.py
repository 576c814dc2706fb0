"""The join: conversations about single images, then about both, then follow-ups that name their image."""

from math import factorial

import pytest

from scripts.blending.permutation import unrank_permutation
from scripts.blending.render import messages
from scripts.common.errors import UserError
from tests.scripts.blending.plan_fixtures import (
    PlanWorkspace,
    caption,
    llava,
    llava_dial,
    mixed_records,
    pair,
    record,
    turn,
)

JOIN = {"llava_otter_blend": {"conversations": 2, "rounds": 2, "followups": 3}}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return PlanWorkspace(tmp_path_factory.mktemp("join"), mixed_records())


@pytest.fixture(scope="module")
def rows(workspace):
    # Many copies show many draws.
    options = JOIN["llava_otter_blend"] | {"repeat": 30}
    return workspace.plan({"llava_otter_blend": options}, sequence=100_000)


def _parts(row):
    """Pieces (uid, rounds, offset) before the comparison, the comparison, and the follow-ups."""
    pieces = list(zip(row["uids"], row["rounds"], row["offsets"], row["named"], strict=True))
    middle = next(place for place, piece in enumerate(pieces) if piece[0].startswith("otter"))
    return pieces[:middle], pieces[middle], pieces[middle + 1 :]


def test_every_pair_is_joined_as_often_as_asked(workspace, rows):
    assert len(rows) == 12 * 30
    assert {row["form"] for row in rows} == {"join"}
    assert {row["dataset"] for row in rows} == {"llava_otter_blend"}
    assert workspace.manifest["datasets"]["llava_otter_blend"]["realised"] == 360


def test_every_image_but_the_last_has_a_conversation_and_the_images_are_in_order(workspace, rows):
    last_counts = set()
    for row in rows:
        talk, comparison, _ = _parts(row)
        images = [image["key"] for image in workspace.records[comparison[0]]["images"]]
        assert [image["key"] for image in row["images"]] == images
        offsets = [offset for _, _, offset, _ in talk]
        assert offsets == sorted(offsets)
        assert 1 <= offsets.count(0) <= 2
        last_counts.add(offsets.count(1))
        for uid, _, offset, named in talk:
            assert workspace.records[uid]["images"][0]["key"] == images[offset]
            assert not named
    assert last_counts == {0, 1, 2}


def test_talk_shows_the_first_rounds_of_a_conversation(workspace, rows):
    lengths = set()
    for row in rows:
        for uid, rounds, _, _ in _parts(row)[0]:
            assert rounds == list(range(len(rounds)))
            assert 1 <= len(rounds) <= min(2, len(workspace.records[uid]["rounds"]))
            lengths.add(len(rounds))
    assert lengths == {1, 2}


def test_at_least_one_comparison_in_the_drawn_order(workspace, rows):
    counts, ranks = set(), set()
    for row in rows:
        _, (uid, rounds, offset, named), _ = _parts(row)
        size = len(workspace.records[uid]["rounds"])
        assert offset == 0 and not named
        assert 1 <= len(rounds) <= size
        if size > 1:
            (rank,) = row["choices"][row["uids"].index(uid)]
            assert 0 <= rank < factorial(size)
            assert rounds == unrank_permutation(rank, size)[: len(rounds)]
            ranks.add((size, rank))
        counts.add((size, len(rounds)))
    assert counts == {(size, count) for size in range(1, 5) for count in range(1, size + 1)}
    assert {rank for size, rank in ranks if size == 3} == set(range(6))


def test_follow_ups_name_their_image_and_repeat_nothing(workspace, rows):
    counts = set()
    for row in rows:
        talk, comparison, followups = _parts(row)
        counts.add(len(followups))
        shown = [(uid, index) for uid, rounds, _, _ in [*talk, comparison, *followups] for index in rounds]
        assert len(shown) == len(set(shown))
        text = messages(row, workspace.records)
        questions = [message["content"][-1]["text"] for message in text[::2]]
        for place, (uid, rounds, offset, named) in enumerate(followups, start=len(questions) - len(followups)):
            assert named
            assert len(rounds) == 1
            original = workspace.records[uid]["rounds"][rounds[0]]["question"][0]
            assert questions[place] == f"In image {offset + 1}, {original[0].lower()}{original[1:]}"
        assert not any(question.startswith("In image") for question in questions[: len(questions) - len(followups)])
    assert counts == {0, 1, 2, 3}


def test_a_follow_up_continues_where_the_conversation_stopped(rows):
    for row in rows:
        talk, _, followups = _parts(row)
        used = {uid: len(rounds) for uid, rounds, _, _ in talk}
        assert all(rounds == [used.get(uid, 0)] for uid, rounds, _, _ in followups)


def test_images_are_shown_once_where_they_are_first_needed(workspace, rows):
    for row in rows:
        talk, _, _ = _parts(row)
        turns = messages(row, workspace.records)[::2]
        shown = [[part["index"] for part in turn["content"] if part["type"] == "image"] for turn in turns]
        assert [index for images in shown for index in images] == [0, 1]
        assert shown[0][0] == 0
        rounds_on_first = sum(len(rounds) for _, rounds, offset, _ in talk if offset == 0)
        assert 1 in shown[rounds_on_first]


def test_follow_ups_can_be_switched_off(workspace):
    rows = workspace.plan({"llava_otter_blend": {"followup": False, "repeat": 5}})
    assert len(rows) == 60
    assert not any(any(row["named"]) for row in rows)


def test_a_pair_without_talk_about_its_first_image_or_with_one_image_twice_is_not_joined(tmp_path):
    records = [llava(0, "a"), llava_dial(0, "a"), pair(0, "a", "b"), pair(1, "b", "a"), pair(2, "a", "a")]
    records.append(record("otter_mimicit_cgd:3", [], [turn("Without an image?", "Yes.")]))
    workspace = PlanWorkspace(tmp_path, records)
    rows = workspace.plan({"llava_otter_blend": {"repeat": 3}})
    assert {uid for row in rows for uid in row["uids"] if uid.startswith("otter")} == {"otter_mimicit_cgd:0"}
    account = workspace.manifest["datasets"]["llava_otter_blend"]
    assert account["dropped"] == {"no_conversation_on_image": 2, "repeats_an_image": 1}


def test_talk_of_official_splits_is_not_shown(tmp_path):
    """Neither in training nor, where it is a test split, in evaluation."""
    test_split = {**llava(0, "a"), "split": "test"}
    workspace = PlanWorkspace(tmp_path, [test_split, llava(1, "b"), llava_dial(0, "a"), pair(0, "a", "b")])
    for epoch, held_out in ((0, []), (None, ["b"])):
        workspace.hold_out(held_out)
        rows = workspace.plan({"llava_otter_blend": {"repeat": 20}}, epoch)
        assert rows
        assert not any("llava:0" in row["uids"] for row in rows)


def test_samples_count_pairs(workspace):
    rows = workspace.plan({"llava_otter_blend": {"samples": 5}})
    assert len({uid for row in rows for uid in row["uids"] if uid.startswith("otter")}) == len(rows) == 5


def test_the_join_draws_apart_from_the_dataset_that_it_joins(workspace):
    """The same pairs come elsewhere, in other orders, in the dataset's own entry."""
    rows = workspace.plan({"llava_otter_blend": {}, "otter_mimicit_cgd": {}})
    joined = [next(uid for uid in row["uids"] if uid.startswith("otter")) for row in rows if row["form"] == "join"]
    alone = [row["uids"][0] for row in rows if row["form"] == "single"]
    assert sorted(joined) == sorted(alone)
    assert joined != alone
    some = workspace.plan({"llava_otter_blend": {"samples": 5}, "otter_mimicit_cgd": {"samples": 5}})
    chosen = [{uid for row in some if row["form"] == form for uid in row["uids"]} for form in ("join", "single")]
    pairs = [{uid for uid in uids if uid.startswith("otter")} for uids in chosen]
    assert len(pairs[0]) == len(pairs[1]) == 5 and pairs[0] != pairs[1], "each chooses its own samples"


ANY = {"talk_and_captions": {"join": {"over": "llava_dial", "talk": ["coco_caption"]}, "rounds": 1}}


def test_any_two_datasets_can_be_joined_on_their_images(workspace):
    """Captions of an image, then a dialogue about it: every image has one of each."""
    rows = workspace.plan({"talk_and_captions": ANY["talk_and_captions"] | {"followup": False, "repeat": 5}})
    assert len(rows) == 60 and {row["dataset"] for row in rows} == {"talk_and_captions"}
    chosen = set()
    for row in rows:
        assert [uid.split(":")[0] for uid in row["uids"]] == ["coco_caption", "llava_dial"]
        assert row["uids"][0].split(":")[1] == row["uids"][1].split(":")[1] and row["form"] == "join"
        assert len(row["images"]) == 1 and row["offsets"] == [0, 0]
        chosen.add(tuple(row["choices"][0]))
    assert len(chosen) > 20, "every copy chooses its prompt and caption"
    account = workspace.manifest["datasets"]["talk_and_captions"]
    assert account["joins"] == ["llava_dial", "coco_caption"] and account["usable"] == 12


def test_only_records_about_one_image_are_talk_and_a_single_image_must_have_some(tmp_path):
    workspace = PlanWorkspace(tmp_path, [llava_dial(0, "a"), llava_dial(1, "b"), caption(1, "b"), pair(0, "a", "b")])
    join = {"over": "llava_dial", "talk": ["coco_caption", "otter_mimicit_cgd"]}
    rows = workspace.plan({"mine": {"join": join, "followup": False, "repeat": 5}})
    assert {uid for row in rows for uid in row["uids"]} == {"llava_dial:1", "coco_caption:1"}
    assert workspace.manifest["datasets"]["mine"]["dropped"] == {"no_conversation_on_image": 1}


def test_two_joins_draw_apart_and_leave_each_other_alone(workspace):
    def drawn(rows, name):
        return [
            {k: v for k, v in row.items() if k not in ("position", "pack")} for row in rows if row["dataset"] == name
        ]

    other = {"second": {"join": {"over": "otter_mimicit_cgd", "talk": ["llava", "llava_dial"]}, "followup": False}}
    both = workspace.plan({"llava_otter_blend": {"followup": False}} | other)
    assert drawn(both, "second") == drawn(workspace.plan(other), "second")
    talk = [[(row["uids"], row["rounds"]) for row in drawn(both, name)] for name in ("llava_otter_blend", "second")]
    assert sorted(map(str, talk[0])) != sorted(map(str, talk[1])), "another name draws anew"


def test_talk_whose_rounds_come_in_a_drawn_order_follows_it(tmp_path):
    one = dict(pair(0, "a", "b", 4), uid="own:0", images=[{"source": "coco", "key": "a"}])
    one["rounds"] = [dict(each, images=[0] * (place == 0)) for place, each in enumerate(one["rounds"])]
    for each in one["rounds"]:
        each["question"], each["answer"] = ["Why?"], ["Because."]
    workspace = PlanWorkspace(tmp_path, [one, pair(1, "a", "b")])
    entry = {"join": {"over": "otter_mimicit_cgd", "talk": ["own"]}, "followup": False, "rounds": 4, "repeat": 40}
    shown = set()
    for row in workspace.plan({"mine": entry}):
        order = unrank_permutation(row["choices"][0][0], 4)
        assert row["rounds"][0] == order[: len(row["rounds"][0])]
        shown.add(tuple(order))
    assert len(shown) > 10


def test_follow_ups_must_have_been_counted(workspace):
    with pytest.raises(
        UserError, match=r"coco_caption.json counts no follow-ups.*run count_tokens for coco_caption again"
    ):
        workspace.plan(ANY)
