"""The learning rate as a function of the step."""

from itertools import pairwise
from typing import get_args

import pytest

from scripts.config.run import RunConfig
from scripts.training.schedules import SCHEDULES, rate_factor


def run(**changes) -> RunConfig:
    return RunConfig(**{"model": "m", "blend": "b"} | changes)


def test_the_rate_rises_and_falls_as_the_settings_say():
    cosine = [rate_factor(run(warmup_steps=4), step, 104) for step in range(104)]
    assert cosine[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert cosine[53] == pytest.approx(0.5, abs=0.01) and cosine[-1] == pytest.approx(0.0)
    assert all(a >= b for a, b in pairwise(cosine[3:]))
    linear = run(schedule="linear", final_learning_rate=0.1)
    assert [rate_factor(linear, step, 11) for step in (0, 5, 10)] == pytest.approx([1.0, 0.55, 0.1])
    assert rate_factor(run(schedule="constant"), 10, 11) == 1.0
    assert rate_factor(run(), 0, 1) == 1.0


def test_every_schedule_can_be_configured_and_ends_in_range():
    assert set(get_args(RunConfig.model_fields["schedule"].annotation)) == set(SCHEDULES)
    for fall in SCHEDULES.values():
        assert fall(0.0) == 0.0 and all(0 <= fall(step / 10) <= 1 for step in range(11))
