"""Small sets of own data hold out one conversation with its images, and nothing else changes."""

import pytest

from scripts.blending.small_sets import SMALLEST
from tests.scripts.blending.plan_fixtures import PlanWorkspace, llava, record, turn


def own(number, images, dataset="own"):
    shown = list(range(len(images)))
    return record(f"{dataset}:{number}", images, [turn(f"What is {number}?", f"It is {number}.", shown)])


def parts(workspace, *datasets, **settings):
    """The uids that are trained on, and those that are evaluated."""
    entries = {name: {} for name in datasets}
    settings = {"own": datasets} | settings
    trained = {uid for row in workspace.plan(entries, **settings) for uid in row["uids"]}
    return trained, {uid for row in workspace.plan(entries, None, **settings) for uid in row["uids"]}


@pytest.mark.parametrize("mixed", ["evaluate", "drop"])
@pytest.mark.parametrize("images", [[], ["i{}"], ["i{}", "j{}"]])
def test_one_conversation_is_held_out(tmp_path, images, mixed):
    rows = [own(number, [image.format(number) for image in images]) for number in range(SMALLEST)]
    workspace = PlanWorkspace(tmp_path, rows)
    trained, evaluated = parts(workspace, "own", mixed=mixed)
    assert len(evaluated) == 1 and trained == {row["uid"] for row in rows} - evaluated
    assert parts(workspace, "own", own=()) == ({row["uid"] for row in rows}, set())


def test_fewer_than_that_hold_out_nothing(tmp_path):
    workspace = PlanWorkspace(tmp_path, [own(number, []) for number in range(SMALLEST - 1)])
    assert parts(workspace, "own")[1] == set()


def test_its_images_are_held_out_with_it(tmp_path):
    workspace = PlanWorkspace(tmp_path, [own(number, [f"i{number // 3}"]) for number in range(30)])
    trained, evaluated = parts(workspace, "own")
    images = {workspace.records[uid]["images"][0]["key"] for uid in evaluated}
    assert len(images) == 1 and len(evaluated) == 3 and len(trained) == 27


def test_half_of_a_set_remains_for_training(tmp_path):
    """All conversations but one show the same image: only the other one can be held out."""
    rows = [own(number, ["i0"]) for number in range(19)] + [own(19, ["i1"])]
    assert parts(PlanWorkspace(tmp_path / "one", rows), "own")[1] == {"own:19"}
    assert parts(PlanWorkspace(tmp_path / "all", rows[:-1]), "own")[1] == set()


def test_other_datasets_and_what_is_held_out_anyway_change_nothing(tmp_path):
    rows = [own(number, [f"i{number}"]) for number in range(20)]
    alone = parts(PlanWorkspace(tmp_path / "alone", rows), "own")
    others = [own(number, [], "more") for number in range(20)] + [llava(number, f"l{number}") for number in range(20)]
    workspace = PlanWorkspace(tmp_path / "mixed", rows + others)
    _, evaluated = parts(workspace, "own", "more", "llava", own=("more", "own"))
    assert {uid for uid in evaluated if uid.startswith("own:")} == alone[1]
    assert {uid.partition(":")[0] for uid in evaluated} == {"own", "more"}, "a published dataset keeps its share"
    workspace.hold_out(["i4"])
    assert parts(workspace, "own")[1] == {"own:4"}
