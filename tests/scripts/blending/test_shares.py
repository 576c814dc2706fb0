"""Shares of an epoch of a given size: counted exactly, small datasets repeated, others left as they were."""

from collections import Counter

import pytest
from pydantic import ValidationError

from scripts.config.blend import BlendConfig
from tests.scripts.blending.plan_fixtures import PlanWorkspace, caption, llava


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    rows = [llava(i, f"i{i}") for i in range(10)] + [caption(i, f"i{i}") for i in range(40)]
    return PlanWorkspace(tmp_path_factory.mktemp("shares"), rows)


def shown(rows, dataset):
    return Counter(row["uids"][0] for row in rows if row["dataset"] == dataset)


def test_every_dataset_gives_its_share_and_a_small_one_repeats(workspace):
    rows = workspace.plan({"llava": {"proportion": 0.75}, "coco_caption": {"proportion": 0.25}}, epoch_size=100)
    few, many = shown(rows, "llava"), shown(rows, "coco_caption")
    assert few.total() == 75 and many.total() == 25
    assert set(few.values()) == {7, 8} and len(few) == 10, "75 of 10: everything seven times, half of it once more"
    assert set(many.values()) == {1}
    for uid, times in few.items():
        copies = [row["copies"][0] for row in rows if row["uids"] == [uid]]
        assert sorted(copies) == list(range(times)), "each copy makes its own choices"
    account = workspace.manifest["datasets"]["llava"]
    assert (account["wanted"], account["drawn"], account["realised"]) == (75, 75, 75)
    assert account["asked"]["proportion"] == 0.75 and workspace.manifest["epoch_size"] == 100


def test_other_epochs_give_others_and_another_share_keeps_those_of_the_others(workspace):
    entries = {"llava": {"proportion": 0.5}, "coco_caption": {"proportion": 0.25}}
    first, second = (set(shown(workspace.plan(entries, epoch, epoch_size=40), "coco_caption")) for epoch in (0, 1))
    assert len(first) == len(second) == 10 and first != second
    more = workspace.plan(entries | {"coco_caption": {"proportion": 0.5}}, epoch_size=40)
    base = workspace.plan(entries, epoch_size=40)
    drawn = [[row for row in rows if row["dataset"] == "llava"] for rows in (base, more)]
    for rows in drawn:
        for row in rows:
            row["position"] = row["pack"] = 0
    assert drawn[0] == drawn[1]
    assert first < set(shown(more, "coco_caption"))


def test_the_smallest_share_is_one_conversation(workspace):
    rows = workspace.plan({"llava": {"proportion": 0.001}, "coco_caption": {"proportion": 0.999}}, epoch_size=100)
    assert (len(of_llava := shown(rows, "llava")), of_llava.total(), len(rows)) == (1, 1, 101)


def test_a_share_counts_before_concatenation(workspace):
    rows = workspace.plan({"coco_caption": {"proportion": 0.5, "concat": 3}}, epoch_size=60)
    assert sum(len(row["uids"]) for row in rows) == 30 > len(rows)


def test_the_heldout_part_holds_everything_once(tmp_path):
    workspace = PlanWorkspace(tmp_path, [llava(i, f"i{i}") for i in range(4)], held_out=["i1", "i2"])
    assert len(workspace.plan({"llava": {"proportion": 1.0}}, None, epoch_size=1000)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"datasets": {"a": {"proportion": 0.5}}}, "datasets.a.proportion: needs epoch_size"),
        ({"datasets": {"a": {"proportion": 0.5, "samples": 3}}, "epoch_size": 9}, "replaces samples"),
        ({"datasets": {"a": {"proportion": 0.5, "repeat": 3}}, "epoch_size": 9}, "replaces samples"),
        ({"datasets": {"a": {"proportion": 0.7}, "b": {"proportion": 0.4}}, "epoch_size": 9}, "add up to 1.1"),
        ({"datasets": {"a": {}}, "epoch_size": 9}, "no dataset has a proportion"),
        (
            {"datasets": {"a": {}}, "packing": True, "max_images_per_pack": 3},
            "max_images_per_pack: is below max_images",
        ),
        ({"datasets": {"a": {"join": {"over": "b", "talk": ["b"]}}}}, "b cannot be joined with itself"),
        ({"datasets": {"a": {"join": {"over": "b", "talk": []}}}}, "datasets.a.join.talk"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(settings, message):
    with pytest.raises(ValidationError) as error:
        BlendConfig.model_validate({"tokens": "t"} | settings)
    assert message in str(error.value)


def test_shares_that_add_up_to_one_are_accepted_whatever_their_rounding():
    shares = {f"d{i}": {"proportion": 0.1} for i in range(10)}
    assert len(BlendConfig.model_validate({"tokens": "t", "datasets": shares, "epoch_size": 7}).datasets) == 10
