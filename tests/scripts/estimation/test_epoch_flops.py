"""The size of an epoch: as planned if the plan is of these settings, and else a guess by the settings."""

import pytest

from scripts.config.blend import BlendConfig
from scripts.estimation.epoch_flops import epoch_totals
from tests.scripts.blending.plan_fixtures import PlanWorkspace, llava


def blend(**settings):
    return BlendConfig(**{"tokens": "tiny", "datasets": {"pets": {}}} | settings)


@pytest.mark.parametrize(
    ("dataset", "entry", "expected"),
    [
        ("pets", {}, 10_000),
        ("pets", {"samples": 120}, 120),
        ("pets", {"samples": 120, "repeat": 3}, 360),
        ("pets", {"samples": 120, "concat": 3}, 60),
        ("pets", {"samples": 0.25}, 2500),
        ("pets", {"proportion": 0.5}, 400),
        ("minigpt4", {}, 3439),
        ("minigpt4", {"samples": 1_000_000}, 3439),
    ],
)
def test_a_guess_counts_what_the_blend_asks_for(tmp_path, dataset, entry, expected):
    size = {"epoch_size": 800} if "proportion" in entry else {}
    found = epoch_totals(blend(datasets={dataset: entry}, **size), tmp_path, 4)
    assert not found.planned and found.conversations == pytest.approx(expected)


def test_a_plan_counts_only_for_the_settings_that_it_was_made_with(tmp_path):
    workspace = PlanWorkspace(tmp_path, [llava(number, f"i{number}") for number in range(8)])
    workspace.plan({"llava": {}}, name="mine")
    folder = tmp_path / "plan/mine"
    found = epoch_totals(blend(datasets={"llava": {}}, global_batch=1), folder, 4)
    assert found.planned and found.conversations == 8
    for changed in ({"datasets": {"llava": {"samples": 5}}}, {"datasets": {"llava": {}}, "sequence": 100}):
        assert not epoch_totals(blend(**{"global_batch": 1} | changed), folder, 4).planned
