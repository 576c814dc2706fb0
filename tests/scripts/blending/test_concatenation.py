"""Concatenation loses nothing, whatever the numbers."""

import numpy as np
import pytest

from scripts.blending.conversations import group_records
from scripts.blending.randomness import Draws
from tests.scripts.blending.plan_fixtures import PlanWorkspace, llava, llava_dial


@pytest.mark.parametrize("n", range(1, 11))
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_every_record_is_in_exactly_one_group(n, limit):
    for seed in range(20):
        order, sizes = group_records(Draws(seed, 0), "d", [b"d:%d" % i for i in range(n)], np.zeros(n, np.int64), limit)
        assert sorted(order.tolist()) == list(range(n))
        assert sizes.sum() == n
        assert sizes.min() >= 1 and sizes.max() <= limit


def test_all_sizes_occur_and_the_first_record_is_in_every_kind_of_group():
    first_sizes, all_sizes = set(), set()
    for seed in range(30):
        order, sizes = group_records(Draws(seed, 0), "d", [b"d:%d" % i for i in range(10)], np.zeros(10, np.int64), 3)
        all_sizes |= set(sizes.tolist())
        ends = np.cumsum(sizes)
        first_sizes.add(int(sizes[np.searchsorted(ends, order.tolist().index(0), side="right")]))
    assert all_sizes == first_sizes == {1, 2, 3}


def test_a_group_never_holds_two_copies_of_a_record():
    uids = [b"d:0", b"d:1", b"d:2"] * 4
    copies = np.repeat(np.arange(4), 3)
    order, sizes = group_records(Draws(0, 0), "d", uids, copies, 3)
    for group in np.split(order, np.cumsum(sizes)[:-1]):
        assert len(set(copies[group])) == 1
        assert len({uids[place] for place in group}) == len(group)


def test_a_plan_shows_every_record_once_with_rising_image_numbers(tmp_path):
    workspace = PlanWorkspace(tmp_path, [llava(number, f"i{number}") for number in range(30)] + [llava_dial(0, "i0")])
    rows = workspace.plan({"llava": {"concat": 3}, "llava_dial": {"concat": 3}})
    assert sorted(uid for row in rows for uid in row["uids"]) == sorted(workspace.records)
    for row in rows:
        assert row["form"] == ("concat" if len(row["uids"]) > 1 else "single")
        assert row["offsets"] == list(range(len(row["uids"])))
        assert row["images"] == [workspace.records[uid]["images"][0] for uid in row["uids"]]
    assert {len(row["uids"]) for row in rows} == {1, 2, 3}
