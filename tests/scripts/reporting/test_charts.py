"""Charts: smoothing, scales, and positions of points."""

import math
import re

import pytest

from scripts.reporting.charts import Curve, _linear_ticks, _log_ticks, accuracy_bar, binned, difference_bar, step_chart


def points(chart: str, kind: str) -> list[tuple[float, float]]:
    path = re.search(rf'class="{kind} run-\d" d="([^"]*)"', chart).group(1)
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)]


def loss_chart(curves: list[Curve]) -> str:
    return step_chart("Loss", curves, 0.95, logarithmic=True)


def test_bins_have_means_with_intervals():
    (x, first), (last, single) = binned([(1, 2.0), (2, 4.0), (3, 9.0)], 0.95, bins=2)
    assert (x, first.value, last, single.value, single.interval) == (1.5, 3.0, 3.0, 9.0, None)
    # Student's t with one degree of freedom, standard error 1.
    low, high = first.interval
    assert high - 3 == pytest.approx(12.7062, rel=1e-4) == 3 - low
    assert len(binned([(x, 1.0) for x in range(1001)], 0.95, bins=60)) <= 60
    assert binned([], 0.95) == []


def test_a_band_lies_around_its_line():
    noisy = [(step, 2.0 + (step % 2)) for step in range(1, 601)]
    chart = step_chart("Loss", [Curve("a", 0, noisy)], 0.95)
    band = points(chart, "band")
    line = points(chart, "line")
    assert len(band) == 2 * len(line) and chart.index("band") < chart.index("line")
    upper, lower = band[: len(line)], band[len(line) :][::-1]
    assert all(top <= y <= bottom for (_, top), (_, y), (_, bottom) in zip(upper, line, lower, strict=True))
    assert any(top < bottom for (_, top), (_, bottom) in zip(upper, lower, strict=True))


def test_a_chart_on_a_plain_scale_begins_at_zero():
    (x0, y0), (x1, y1) = points(step_chart("Norm", [Curve("a", 0, [(0, 0.0), (10, 2.0)])], 0.95), "line")
    assert (x0, y0, x1) == (0, 100, 100) and 0 < y1 < 10


def test_a_difference_grows_from_the_middle():
    assert 'class="difference" style="left:50.0%;width:20.0%"' in difference_bar(0.4, 0.1, 0.6)
    bar = difference_bar(-0.4, -0.6, -0.1)
    assert 'class="difference" style="left:30.0%;width:20.0%"' in bar
    assert 'class="interval" style="left:20.0%;width:25.0%"' in bar


def test_points_lie_where_their_values_say():
    chart = loss_chart([Curve("a", 3, [(0, 4.0), (50, 2.0), (100, 1.0)], [(100, 2.0)])])
    (x0, y0), (x1, y1), (x2, y2) = points(chart, "line")
    assert (x0, x1, x2) == (0, 50, 100)
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.02) and 0 < y0 < y1 < y2 < 100
    assert points(chart, "dots")[0] == (x2, y1)
    assert 'class="line run-3"' in chart


def test_a_chart_of_nothing_is_empty():
    assert loss_chart([]) == ""
    assert loss_chart([Curve("a", 0, [(1, math.nan)], [(1, math.inf)])]) == ""


@pytest.mark.parametrize("curve", [[(0, 1.0)], [(0, 1.0), (7, 1.0)], [(1, 5.0), (2, math.nan), (3, 4.0)]])
def test_flat_short_and_broken_curves_are_drawn(curve):
    assert all(0 <= value <= 100 for point in points(loss_chart([Curve("a", 0, curve, [])]), "line") for value in point)


def test_names_are_escaped():
    assert "<b>" not in loss_chart([Curve("<b>", 0, [(1, 1.0)], [])])


@pytest.mark.parametrize(("low", "high"), [(0.001, 9), (0.9, 1.1), (2.0, 2.2), (1e-6, 1e3), (1.0, 1.0001)])
def test_log_ticks_are_few_and_inside(low, high):
    ticks = _log_ticks(low, high)
    assert 1 <= len(ticks) <= 7
    assert all(low <= tick <= high for tick in ticks) and ticks == sorted(ticks)


@pytest.mark.parametrize(
    ("last", "ticks"), [(100, [0, 20, 40, 60, 80, 100]), (7, [0, 2, 4, 6]), (1, [0, 0.2, 0.4, 0.6, 0.8, 1])]
)
def test_linear_ticks(last, ticks):
    assert _linear_ticks(last) == pytest.approx(ticks)


def test_accuracy_bar_places_its_marks():
    bar = accuracy_bar({"accuracy": 0.5, "interval": [0.4, 0.65], "chance": 0.2, "blanked": {"accuracy": 0.1}})
    assert 'class="fill" style="width:50.0%"' in bar
    assert 'class="interval" style="left:40.0%;width:25.0%"' in bar
    assert 'class="chance" style="left:20.0%"' in bar and 'class="blanked" style="left:10.0%"' in bar
    assert "chance" not in accuracy_bar({"accuracy": 0.5, "interval": [0.4, 0.6], "chance": None})
