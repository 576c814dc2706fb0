"""Packs: within their limits, nothing lost, nearly full; in a plan shuffled, balanced and starting when they may."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.blending import packing
from scripts.blending.packing import WINDOW, pack
from scripts.blending.plan_summary import padding
from tests.scripts.blending.plan_fixtures import ALL, PlanWorkspace, caption, llava, mixed_records

PACKED = {"packing": True, "sequence": 200, "max_images_per_pack": 8, "global_batch": 4}


def lengths(n, seed=0):
    draw = np.random.default_rng(seed)
    return np.minimum(draw.lognormal(5.5, 0.8, n), 2048).astype(np.int64) + 1, draw.integers(0, 4, n)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3 * WINDOW), st.integers(0, 99), st.integers(3, 12))
def test_every_conversation_is_in_one_pack_within_both_limits(n, seed, most):
    tokens, images = lengths(n, seed)
    packs = pack(tokens, images, 2049, most)
    assert sorted(packs.values.tolist()) == list(range(n))
    assert packs.lengths.min(initial=1) >= 1
    assert np.bincount(packs.rows, tokens[packs.values]).max(initial=0) <= 2049
    assert np.bincount(packs.rows, images[packs.values]).max(initial=0) <= most
    assert all((np.diff(packs.values[packs.rows == row]) > 0).all() for row in range(0, len(packs), 37))


def test_packs_are_nearly_full():
    tokens, images = lengths(40 * WINDOW)
    packs = pack(tokens, images, 4096, 64)
    assert tokens.sum() / (len(packs) * 4096) > 0.985


def test_images_limit_packs_where_they_are_what_is_scarce():
    images = np.full(WINDOW, 2)
    packs = pack(np.ones(WINDOW, int), images, 4096, 6)
    assert packs.lengths.tolist() == [3] * (WINDOW // 3) + [1]


def test_packs_are_as_mixed_as_the_order_they_are_made_from():
    kinds = np.random.default_rng(0).integers(0, 2, 8 * WINDOW)
    packs = pack(58 + 8 * kinds + np.arange(len(kinds)) % 3, np.zeros(len(kinds), int), 512, 64)
    of_one_kind = np.bincount(packs.rows, kinds[packs.values])
    spread = of_one_kind.std() / np.sqrt(packs.lengths.mean() / 4)
    assert 0.8 < spread < 1.2, "as many of a kind in each as chance puts there"


def members(packs):
    return [part.tolist() for part in np.split(packs.values, packs.starts[1:-1])]


def test_each_conversation_goes_into_the_fullest_pack_with_room_long_ones_first():
    assert members(pack(np.array([3, 6, 4, 7, 2, 5]), np.zeros(6, int), 10, 1)) == [[0, 3], [1, 2], [4, 5]]
    assert members(pack(np.array([3, 4, 5]), np.zeros(3, int), 10, 1)) == [[0, 1], [2]]
    # Up to half of a row is short: short ones come last, in their own order, and the fuller pack takes the first.
    assert members(pack(np.array([9, 80, 10, 85]), np.zeros(4, int), 100, 1)) == [[0, 3], [1, 2]]
    assert members(pack(np.array([10, 80, 9, 85]), np.zeros(4, int), 100, 1)) == [[0, 3], [1, 2]]


def test_windows_are_packed_apart():
    tokens, images = lengths(2 * WINDOW + 5)
    packs = pack(tokens, images, 4096, 64)
    window = packs.values // WINDOW
    assert all(len(set(window[packs.rows == row])) == 1 for row in range(len(packs)))


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_however_many_windows_are_packed_at_once_the_packs_are_the_same(monkeypatch, at_once):
    tokens, images = lengths(4 * WINDOW + 5)
    expected = members(pack(tokens, images, 4096, 64))
    monkeypatch.setattr(packing, "_WINDOWS_AT_ONCE", at_once)
    assert sorted(members(pack(tokens, images, 4096, 64))) == sorted(expected)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return PlanWorkspace(tmp_path_factory.mktemp("packs"), mixed_records())


def test_a_packed_plan_holds_the_conversations_of_the_unpacked_one(workspace):
    entries = {name: {"repeat": 3} for name in ALL}
    plain = workspace.plan(entries, sequence=200)
    packed = workspace.plan(entries, **PACKED)
    apart = ("position", "pack")
    output = [sorted(str({k: v for k, v in row.items() if k not in apart}) for row in rows) for rows in (plain, packed)]
    assert output[0] == output[1]
    assert workspace.manifest["units"] < workspace.manifest["conversations"] == len(plain)


def test_units_are_numbered_in_order_and_within_the_limits(workspace):
    rows = workspace.plan({name: {"repeat": 3} for name in ALL}, **PACKED)
    numbers = [row["pack"] for row in rows]
    assert numbers == sorted(numbers) and set(numbers) == set(range(workspace.manifest["units"]))
    tokens, images = (np.bincount(numbers, [row[name] for row in rows]) for name in ("n_tokens", "n_images"))
    assert tokens.max() <= 200 and images.max() <= 8
    assert workspace.manifest["global_batches"] == -(-len(tokens) // 4)
    for start in range(0, len(tokens), 4):
        assert (np.diff(tokens[start : start + 4]) <= 0).all(), "longest first, so that ranks are balanced"


def test_any_number_of_ranks_gets_about_the_same(tmp_path):
    workspace = PlanWorkspace(
        tmp_path, [llava(i, f"i{i % 12}") for i in range(600)] + [caption(i, f"i{i % 12}") for i in range(600)]
    )
    rows = workspace.plan(
        {"llava": {"concat": 3}, "coco_caption": {}}, **PACKED | {"sequence": 400, "global_batch": 32}
    )
    cost = np.bincount([row["pack"] for row in rows], [row["n_tokens"] for row in rows])
    for ranks in (2, 4, 8):
        shares = np.array(
            [[cost[s : s + 32][r::ranks].sum() for r in range(ranks)] for s in range(0, len(cost) - 31, 32)]
        )
        assert (shares.max(1) / shares.min(1)).max() < 1.15


def test_packs_are_shuffled_and_their_contents_come_from_all_datasets(tmp_path):
    rows = [llava(i, f"i{i % 12}") for i in range(1500)] + [caption(i, f"i{i % 12}") for i in range(1500)]
    workspace = PlanWorkspace(tmp_path, rows)
    plan = workspace.plan(
        {"llava": {}, "coco_caption": {}}, **PACKED | {"sequence": 1600, "max_images_per_pack": 64, "global_batch": 1}
    )
    by_key = {row["uids"][0]: place for place, row in enumerate(workspace.plan({"llava": {}, "coco_caption": {}}))}
    place = np.array([by_key[row["uids"][0]] for row in plan])
    first = place[np.unique([row["pack"] for row in plan], return_index=True)[1]]
    assert abs(np.corrcoef(first, np.arange(len(first)))[0, 1]) < 0.2, "packs of one window lie all over the epoch"
    mixed = [len({row["dataset"] for row in plan if row["pack"] == pack}) for pack in range(100)]
    assert np.mean([count == 2 for count in mixed]) > 0.95


def test_a_late_dataset_is_packed_apart_and_not_before_its_moment(workspace):
    entries = {"llava": {"repeat": 8}, "coco_caption": {"repeat": 8, "after": 0.5}}
    rows = workspace.plan(entries, **PACKED)
    late = {row["pack"] for row in rows if row["dataset"] == "coco_caption"}
    assert min(late) >= 0.5 * workspace.manifest["units"]
    assert not late & {row["pack"] for row in rows if row["dataset"] == "llava"}


def test_the_heldout_part_is_packed_too_and_may_be_empty(tmp_path):
    workspace = PlanWorkspace(tmp_path, mixed_records(), held_out=["i00", "i01", "i02", "i03"])
    rows = workspace.plan(ALL, None, **PACKED)
    assert len({row["pack"] for row in rows}) == workspace.manifest["units"] < len(rows)
    workspace.hold_out([])
    assert workspace.plan(ALL, None, **PACKED) == [] and workspace.manifest["units"] == 0


def test_packing_saves_padding(workspace):
    entries = {name: {"repeat": 3} for name in ALL}
    shares = []
    for options in ({"sequence": 200, "global_batch": 8}, PACKED | {"global_batch": 8}):
        rows = workspace.plan(entries, **options)
        cost = np.bincount([row["pack"] for row in rows], [row["n_tokens"] for row in rows]).astype(int)
        padded, places = padding(cost, 8)
        shares.append(padded / places)
    assert shares[1] < shares[0]
