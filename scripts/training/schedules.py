"""Learning rates as a function of the step number: a linear rise, then one of several ways to fall.

To add a schedule, write its function below, register it, and add its name to `RunConfig.schedule`.
"""

import math
from collections.abc import Callable

from scripts.config.run import RunConfig

Fall = Callable[[float], float]

SCHEDULES: dict[str, Fall] = {}
"""By name: how much of its fall the rate has done after a share of the steps behind the warm-up, both in [0, 1]."""


def register(name: str) -> Callable[[Fall], Fall]:
    """Register the function of the schedule `name`."""

    def add(fall: Fall) -> Fall:
        SCHEDULES[name] = fall
        return fall

    return add


@register("constant")
def _constant(progress: float) -> float:
    return 0.0


@register("linear")
def _linear(progress: float) -> float:
    return progress


@register("cosine")
def _cosine(progress: float) -> float:
    """Half a period of the cosine (arXiv 1608.03983, without restarts)."""
    return (1 - math.cos(math.pi * progress)) / 2


def rate_factor(settings: RunConfig, step: int, steps: int) -> float:
    """The learning rate of the 0-based `step` of `steps`, as a share of the peak rate."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - 1 - settings.warmup_steps)
    return 1 - (1 - settings.final_learning_rate) * SCHEDULES[settings.schedule](progress)
