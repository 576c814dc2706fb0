"""The plan is pure, removing a dataset disturbs no other, and nothing held out trains."""

import pytest

from scripts.blending.permutation import rank_permutation
from scripts.blending.plan_summary import describe
from scripts.blending.render import messages
from scripts.common.errors import UserError
from scripts.plan import _warn
from tests.scripts.blending.plan_fixtures import ALL, PlanWorkspace, caption, llava, mixed_records, pair, record, turn

DRAWN = ("uids", "copies", "choices", "rounds", "offsets", "named", "images", "n_tokens")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return PlanWorkspace(tmp_path_factory.mktemp("planning"), mixed_records(), held_out=["i03", "i08"])


def drawn(rows):
    """Everything of the rows but their place."""
    return [{name: row[name] for name in DRAWN} for row in rows]


def of(rows, *datasets):
    return [row for row in rows if row["dataset"] in datasets]


def test_equal_inputs_give_equal_bytes(workspace, tmp_path):
    entries = {name: {"repeat": 2} for name in ALL}
    first = workspace.plan_file(entries, name="first", global_batch=8)
    again = PlanWorkspace(tmp_path, mixed_records(), held_out=["i03", "i08"])
    second = again.plan_file(dict(reversed(entries.items())), name="first", global_batch=8)
    assert first == second
    assert workspace.path("first").read_bytes() == again.path("first").read_bytes()


def test_records_in_another_order_give_the_same_choices(workspace, tmp_path):
    """Only the last tie-break may depend on a record's place in its table."""
    turned = PlanWorkspace(tmp_path, reversed(mixed_records()), held_out=["i03", "i08"])
    assert drawn(turned.plan(ALL)) == drawn(workspace.plan(ALL))


@pytest.mark.parametrize("removed", sorted(ALL))
def test_removing_a_dataset_leaves_the_others_as_they_were(workspace, removed):
    entries = {name: {"samples": 0.7, "repeat": 2} for name in ALL}
    entries["llava"]["concat"] = 3
    rest = {name: entry for name, entry in entries.items() if name != removed}
    assert drawn(workspace.plan(rest)) == drawn(of(workspace.plan(entries), *rest))


def test_changing_a_dataset_leaves_the_others_as_they_were(workspace):
    other = {**ALL, "llava": {"samples": 4, "repeat": 3, "concat": 2}}
    rest = set(ALL) - {"llava"}
    assert drawn(of(workspace.plan(other), *rest)) == drawn(of(workspace.plan(ALL), *rest))


def test_another_seed_or_epoch_draws_anew_and_changes_nothing_else(workspace):
    entries = {name: {"samples": 0.6} for name in ALL}
    base = workspace.plan(entries)
    counts = {name: account["realised"] for name, account in workspace.manifest["datasets"].items()}
    for rows in (workspace.plan(entries, seed=1), workspace.plan(entries, epoch=1)):
        assert {name: account["realised"] for name, account in workspace.manifest["datasets"].items()} == counts
        assert [row["uids"] for row in rows] != [row["uids"] for row in base]
        assert {str(row["uids"]) for row in of(rows, "llava")} != {str(row["uids"]) for row in of(base, "llava")}
    assert {row["epoch"] for row in workspace.plan(entries, epoch=1)} == {1}
    choices = {row["uids"][0]: row["choices"] for row in of(workspace.plan(ALL), "coco_caption")}
    changed = {row["uids"][0]: row["choices"] for row in of(workspace.plan(ALL, seed=9), "coco_caption")}
    assert choices.keys() == changed.keys()
    assert choices != changed


def test_every_copy_chooses_for_itself(workspace):
    rows = of(workspace.plan({"coco_caption": {"repeat": 8}}), "coco_caption")
    by_uid = {}
    for row in rows:
        by_uid.setdefault(row["uids"][0], {})[row["copies"][0]] = tuple(row["choices"][0])
    assert {len(copies) for copies in by_uid.values()} == {8}
    assert all(len(set(copies.values())) > 2 for copies in by_uid.values())
    pairs = {pair for copies in by_uid.values() for pair in copies.values()}
    assert all(0 <= prompt < 7 and 0 <= text < 5 for prompt, text in pairs)
    # Of 35 pairs; groups that shared a draw could reach 11 of them.
    assert len(pairs) > 20


def test_rounds_follow_the_rank_that_the_row_stores(workspace):
    rows = of(workspace.plan({"otter_mimicit_cgd": {"repeat": 6}}), "otter_mimicit_cgd")
    orders = {tuple(row["rounds"][0]) for row in rows if len(row["rounds"][0]) == 3}
    assert len(orders) > 3
    assert all(row["choices"][0] == [rank_permutation(row["rounds"][0])] for row in rows if len(row["rounds"][0]) > 1)


def test_members_of_a_group_take_the_same_choice(tmp_path):
    styles = [f"picture {style}" for style in "abc"]
    rounds = [turn(styles, styles, [0], 0, 0), turn("And?", styles, [], -1, 0)]
    workspace = PlanWorkspace(
        tmp_path, [record(f"own:{i}", [f"i{i}"], rounds, [("style", "pick", 3)]) for i in range(8)]
    )
    chosen = set()
    for row in workspace.plan({"own": {}}):
        texts = [message["content"][-1]["text"] for message in messages(row, workspace.records)]
        assert texts[0] == texts[1] == texts[3] == styles[row["choices"][0][0]]
        chosen.add(texts[0])
    assert len(chosen) > 1


@pytest.mark.parametrize(("samples", "expected"), [("all", 10), (4, 4), (999, 10), (0.5, 5), (0.01, 1), (1.0, 10)])
def test_samples(workspace, samples, expected):
    rows = workspace.plan({"llava": {"samples": samples}})
    assert len({row["uids"][0] for row in rows}) == len(rows) == expected
    assert workspace.manifest["datasets"]["llava"]["asked"]["samples"] == samples


def test_drawn_samples_are_spread_over_the_epoch(tmp_path):
    """Sorting by the hash that also selects would put them all at the beginning."""
    images = [f"i{number}" for number in range(60)]
    workspace = PlanWorkspace(
        tmp_path, [make(number, image) for make in (llava, caption) for number, image in enumerate(images)]
    )
    rows = workspace.plan({"llava": {"samples": 20, "concat": 2}, "coco_caption": {}})
    places = [row["position"] / len(rows) for row in of(rows, "llava")]
    assert min(places) < 0.3 and max(places) > 0.7


def test_every_epoch_draws_other_samples_unless_the_blend_is_fixed(workspace):
    sets = [{row["uids"][0] for row in workspace.plan({"llava": {"samples": 5}}, epoch)} for epoch in range(3)]
    assert len({frozenset(drawn_set) for drawn_set in sets}) == 3


def held(rows, keys=("i03", "i08")):
    return [[image["key"] in keys for image in row["images"]] for row in rows]


def test_no_training_row_shows_a_held_out_image_and_all_heldout_rows_do(workspace):
    for epoch in range(2):
        assert not any(any(flags) for flags in held(workspace.plan({n: {"repeat": 2} for n in ALL}, epoch)))
    rows = workspace.plan({name: {"repeat": 2, "samples": 1, "concat": 1} for name in ALL}, None)
    assert all(any(flags) for flags in held(rows))
    # Each record once: 2 + 2 single-image records, 4 pairs that touch the two images, their joins, 2 captions.
    assert {name: len(of(rows, name)) for name in ALL} == {
        "llava": 2, "llava_dial": 2, "otter_mimicit_cgd": 4, "llava_otter_blend": 4, "coco_caption": 2,
    }  # fmt: skip
    assert workspace.manifest["epoch"] == "heldout"
    assert {row["form"] for row in rows} == {"single", "join"}


def test_partly_held_out_conversations_can_be_dropped_everywhere(tmp_path):
    workspace = PlanWorkspace(tmp_path, [pair(0, "a", "b"), pair(1, "a", "c"), pair(2, "b", "c")], held_out=["a", "b"])
    entries = {"otter_mimicit_cgd": {}}
    assert {row["uids"][0] for row in workspace.plan(entries, None)} == {f"otter_mimicit_cgd:{i}" for i in range(3)}
    assert [row["uids"] for row in workspace.plan(entries, None, mixed="drop")] == [["otter_mimicit_cgd:0"]]
    assert workspace.manifest["datasets"]["otter_mimicit_cgd"]["dropped"] == {"partly_held_out": 2}
    with pytest.raises(UserError, match="1 held_out, 2 partly_held_out"):
        workspace.plan(entries)


def test_official_splits_do_not_train_and_test_rows_are_used_nowhere(tmp_path):
    splits = ["train", "val", "test"] * 2
    images = ["a", "a", "a", "b", "b", "b"]
    workspace = PlanWorkspace(tmp_path, [caption(i, images[i], splits[i]) for i in range(6)], held_out=["b"])
    assert [row["uids"] for row in workspace.plan({"coco_caption": {}})] == [["coco_caption:0"]]
    assert workspace.manifest["datasets"]["coco_caption"]["dropped"] == {"held_out": 1, "official_split": 4}
    evaluated = {row["uids"][0] for row in workspace.plan({"coco_caption": {}}, None)}
    assert evaluated == {"coco_caption:3", "coco_caption:4"}
    trained = {row["uids"][0] for row in workspace.plan({"coco_caption": {}}, parity="original")}
    assert trained == {"coco_caption:0", "coco_caption:1", "coco_caption:2"}


def test_the_heldout_plan_is_the_same_for_every_epoch_and_may_be_empty(workspace, tmp_path):
    entries = {"llava": {"after": 2.5, "samples": 1}, "coco_caption": {}}
    assert len(of(workspace.plan(entries, None), "llava")) == 2
    empty = PlanWorkspace(tmp_path, [llava(0, "a")])
    assert empty.plan({"llava": {}}, None) == []


def test_a_dataset_starts_in_its_epoch_and_not_before_its_moment(workspace):
    entries = {**ALL, "llava": {"after": 1.25}}
    assert of(workspace.plan(entries, 0), "llava") == []
    assert workspace.manifest["datasets"]["llava"] == {
        "asked": {"samples": "all", "repeat": 1, "proportion": None, "concat": 1, "after": 1.25},
        "starts_in_epoch": 1,
        "realised": 0,
    }
    for batch in (1, 4):
        rows = workspace.plan(entries, 1, global_batch=batch)
        late = [row["position"] for row in of(rows, "llava")]
        assert len(late) == 10
        assert min(late) >= 0.25 * len(rows)
    early = [row["position"] for row in of(workspace.plan(entries, 2), "llava")]
    assert min(early) < 0.25 * len(rows)


def test_a_late_dataset_leaves_the_order_of_the_others(workspace):
    late = workspace.plan({**ALL, "llava": {"after": 0.4}})
    rest = set(ALL) - {"llava"}
    assert drawn(of(late, *rest)) == drawn(of(workspace.plan(ALL), *rest))


def test_a_moment_that_the_others_cannot_fill_is_refused(workspace):
    with pytest.raises(UserError, match=r"coco_caption starts at 0.6 .*, after 12 conversations.* have only 10"):
        workspace.plan({"llava": {}, "coco_caption": {"after": 0.6}})


def test_an_epoch_without_any_dataset_is_refused(workspace):
    with pytest.raises(UserError, match=r"no dataset of the blend .* by the end of epoch 0"):
        workspace.plan({"llava": {"after": 1}})


def test_an_empty_epoch_is_an_error_with_the_reason(tmp_path):
    workspace = PlanWorkspace(tmp_path, [llava(0, "a"), caption(0, "b")], held_out=["a"])
    expected = (
        r"1 usable; llava: 1 records, 0 usable, 1 held_out; "
        r"1 conversations dropped: too many tokens, such as coco_caption:0: \d+ tokens, limit 10\)"
    )
    with pytest.raises(UserError, match=expected):
        workspace.plan({"llava": {}, "coco_caption": {}}, sequence=10)


def text_only(number, split="train"):
    return record(f"own:{number}", [], [turn(f"What is {number}?", f"It is {number}.")], split=split)


def about(number, image, split="train"):
    return record(f"own:{number}", [image], [turn(f"Who is {number}?", f"It is {number}.", [0])], split=split)


@pytest.mark.parametrize("mixed", ["evaluate", "drop"])
@pytest.mark.parametrize("parity", [None, "original"])
def test_a_row_kept_for_evaluation_is_evaluated_and_never_trained_on(tmp_path, mixed, parity):
    rows = [about(0, "a", "heldout"), text_only(1, "heldout"), about(2, "b"), text_only(3), about(4, "c")]
    rows += [pair(0, "b", "c") | {"split": "heldout"}, pair(1, "a", "b")]
    workspace = PlanWorkspace(tmp_path, rows, held_out=["c"])
    entries, settings = {"own": {"concat": 3}, "otter_mimicit_cgd": {}}, {"mixed": mixed, "parity": parity}
    trained = {uid for row in workspace.plan(entries, **settings) for uid in row["uids"]}
    assert trained == {"own:2", "own:3", "otter_mimicit_cgd:1"}
    assert workspace.manifest["datasets"]["own"]["dropped"] == {"held_out": 1, "kept_for_evaluation": 2}
    evaluated = {uid for row in workspace.plan(entries, None, **settings) for uid in row["uids"]}
    assert evaluated == {"own:0", "own:1", "own:4", "otter_mimicit_cgd:0"}


def test_conversations_that_show_an_image_of_a_held_out_row_are_counted(tmp_path, capsys):
    """Also a copy of that image under another name; an image of the hold-out is not trained on anyway."""
    rows = [about(0, "a", "heldout"), about(1, "a"), about(2, "copy=a"), about(3, "b"), text_only(4)]
    rows += [about(5, "c", "heldout"), about(6, "c"), llava(0, "a"), llava(1, "b")]
    workspace = PlanWorkspace(tmp_path, rows, held_out=["c"])
    entries = {"own": {}, "llava": {}}
    assert len(workspace.plan(entries)) == 6
    accounts = workspace.manifest["datasets"]
    assert accounts["own"]["overlap"] == 2 and accounts["llava"]["overlap"] == 1
    _warn(workspace.manifest, ["own"])
    assert "NOTE: own: 2 conversations that may be trained on show an image" in capsys.readouterr().err
    assert "2 conversations that may be trained on show" in describe(workspace.table(), workspace.manifest)
    workspace.plan(entries, None)
    assert "overlap" not in workspace.manifest["datasets"]["own"]


def test_what_is_not_evaluated_is_printed_before_training(tmp_path, capsys):
    workspace = PlanWorkspace(tmp_path, [about(0, "a"), llava(0, "b")])
    workspace.plan({"own": {}, "llava": {}}, None)
    _warn(workspace.manifest, ["own"])
    assert "NOTE: the blend blend holds out no conversation" in capsys.readouterr().err
    workspace.hold_out(["b"])
    workspace.plan({"own": {}, "llava": {}}, None)
    _warn(workspace.manifest, ["own"])
    assert capsys.readouterr().err == "NOTE: own gives no conversation to heldout\n"
