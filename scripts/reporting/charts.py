"""The report's pictures of numbers: curves of training, accuracy bars and accuracy curves as SVG, without a plotting
library and without scripts.

A chart is an SVG that stretches to its box, with labels laid over it as ordinary text: so lines and letters keep their
size on a telephone and on a wide screen. Colours are the style sheet's, which knows light and dark.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from markupsafe import Markup

from scripts.reporting.means import Mean, mean

Point = tuple[float, float]
_LINE = Markup('<path class="line run-{}" d="{}" vector-effect="non-scaling-stroke"/>')
_DOTS = Markup('<path class="dots run-{}" d="{}" vector-effect="non-scaling-stroke"><title>{}</title></path>')
_BAND = Markup('<path class="band run-{}" d="{}Z"/>')
_GRID = Markup('<path class="grid" d="{}" vector-effect="non-scaling-stroke"/>')
_LABEL = Markup('<span class="tick {}" style="{}:{}%">{}</span>')


@dataclass(frozen=True)
class Curve:
    """One run's values by step: those of every step, drawn as a line of means, and measurements, drawn as dots."""

    name: str
    colour: int
    steps: Sequence[Point]
    measured: Sequence[Point] = ()


def binned(points: Sequence[Point], confidence: float, bins: int = 60) -> list[tuple[float, Mean]]:
    """Means over neighbouring points, in at most `bins` bins of equal count, with the intervals of the means.

    Smooths a noisy curve and bounds its size; the last bin may hold fewer points.
    """
    size = max(1, math.ceil(len(points) / bins))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in group), mean([y for _, y in group], confidence)) for group in groups]


def step_chart(title: str, curves: Sequence[Curve], confidence: float, logarithmic: bool = False) -> Markup:
    """Values against step, all curves in one chart, each with a band for the intervals of its means; empty without a
    single usable point."""
    usable = _positive if logarithmic else _finite
    lines = [binned(usable(curve.steps), confidence) for curve in curves]
    dots = [usable(curve.measured) for curve in curves]
    values = [value.value for line in lines for _, value in line] + [y for points in dots for _, y in points]
    if not values:
        return Markup("")
    last = max([x for line in lines for x, _ in line] + [x for points in dots for x, _ in points] + [1])
    low, high = _log_range(values) if logarithmic else _range(values)
    scale = math.log if logarithmic else float

    def height(y: float) -> float:
        inside = min(max(y, low), high)
        return 100 * (1 - (scale(inside) - scale(low)) / (scale(high) - scale(low)))

    ticks = _log_ticks(low, high) if logarithmic else [low + tick for tick in _linear_ticks(high - low)]
    rows = [(height(tick), _number(tick)) for tick in ticks]
    columns = [(100 * tick / last, _number(tick)) for tick in _linear_ticks(last)]
    drawn = [_GRID.format(" ".join(f"M0 {y:.2f}H100" for y, _ in rows))]
    for curve, line, points in zip(curves, lines, dots, strict=True):
        edges = [(100 * x / last, height(v.low), height(v.high)) for x, v in line if v.low is not None]
        if len(edges) > 1:
            around = [(x, top) for x, _, top in edges] + [(x, bottom) for x, bottom, _ in reversed(edges)]
            drawn.append(_BAND.format(curve.colour, _path(around)))
        drawn.append(_LINE.format(curve.colour, _path([(100 * x / last, height(v.value)) for x, v in line])))
        if points:
            # A line of no length with round ends is a dot, and unlike a circle it stays round in a stretched box.
            told = " ".join(f"M{100 * x / last:.2f} {height(y):.2f}h0" for x, y in points)
            drawn.append(_DOTS.format(curve.colour, told, f"{curve.name}, held out"))
    return _framed(f"{title} by step of {', '.join(curve.name for curve in curves)}", drawn, rows, columns, "step")


@dataclass(frozen=True)
class Line:
    """Accuracies by x: points (x, mean), where a mean has value, low and high, the latter None without an interval."""

    name: str
    colour: int
    points: Sequence[tuple[float, Any]]


def accuracy_chart(title: str, axis: str, lines: Sequence[Line]) -> Markup:
    """Accuracy from 0 to 100 % against x, one line each, with bars for the intervals."""
    last = max(x for line in lines for x, _ in line.points)

    def place(x: float, share: float) -> Point:
        return 100 * x / last, 100 * (1 - min(max(share, 0.0), 1.0))

    ticks = [(100 - percent, f"{percent} %") for percent in range(0, 101, 20)]
    columns = [(place(tick, 0)[0], _number(tick)) for tick in _linear_ticks(last)]
    drawn = [_GRID.format(" ".join(f"M0 {y:.2f}H100" for y, _ in ticks))]
    for line in lines:
        drawn.append(_LINE.format(line.colour, _path([place(x, mean.value) for x, mean in line.points])))
        bars = [(place(x, mean.low), place(x, mean.high)) for x, mean in line.points if mean.low is not None]
        bars_path = " ".join(f"M{x:.2f} {low:.2f}V{high:.2f}" for (x, low), (_, high) in bars)
        drawn.append(_LINE.format(line.colour, bars_path))
        dots = " ".join("M{:.2f} {:.2f}h0".format(*place(x, mean.value)) for x, mean in line.points)
        drawn.append(_DOTS.format(line.colour, dots, line.name))
    return _framed(title, drawn, ticks, columns, axis)


def accuracy_bar(row: dict) -> Markup:
    """An accuracy as a bar from 0 to 1 with its interval, chance (a tick) and the blanked model's accuracy (a dot)."""
    low, high = (100 * bound for bound in row["interval"])
    marks = [Markup('<i class="fill" style="width:{:.1f}%"></i>').format(100 * row["accuracy"])]
    marks.append(Markup('<i class="interval" style="left:{:.1f}%;width:{:.1f}%"></i>').format(low, high - low))
    if row.get("chance") is not None:
        marks.append(Markup('<i class="chance" style="left:{:.1f}%"></i>').format(100 * row["chance"]))
    if row.get("blanked"):
        marks.append(Markup('<i class="blanked" style="left:{:.1f}%"></i>').format(100 * row["blanked"]["accuracy"]))
    return Markup('<span class="bar" aria-hidden="true">{}</span>').format(Markup("").join(marks))


def _framed(title: str, drawn: Sequence[Markup], rows: Sequence[tuple], columns: Sequence[tuple], axis: str) -> Markup:
    """A chart of what was drawn, with labels (place in percent, text) at its rows and columns."""
    return Markup(
        '<div class="chart"><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
        '{}<span class="axis">{}</span></div>'
    ).format(
        title,
        Markup("").join(drawn),
        Markup("").join(
            [_LABEL.format("left", "top", f"{y:.2f}", text) for y, text in rows]
            + [_LABEL.format("bottom", "left", f"{x:.2f}", text) for x, text in columns]
        ),
        axis,
    )


def difference_bar(value: float, low: float, high: float) -> Markup:
    """A difference, as a share of the bar's reach from -1 to 1, whose middle is zero, with its interval."""
    left, right = sorted((50 + 50 * value, 50.0))
    marks = '<i class="difference" style="left:{:.1f}%;width:{:.1f}%"></i><i class="zero"></i>'
    marks += '<i class="interval" style="left:{:.1f}%;width:{:.1f}%"></i>'
    inner = Markup(marks).format(left, right - left, 50 + 50 * low, 50 * (high - low))
    return Markup('<span class="bar" aria-hidden="true">{}</span>').format(inner)


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]


def _positive(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in _finite(points) if y > 0]


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points) if points else ""


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values), max(values)
    return low, high + 0.05 * (high - low) if high > low else low + 1


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    # A tenth of the range on either side keeps the curves off the frame; a flat curve still needs a range.
    room = max(math.log(high / low) * 0.05, 0.05)
    return low * math.exp(-room), high * math.exp(room)


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(n / 10 for n in range(10, 100))):
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) >= 3:
            break
    return ticks[:: math.ceil(len(ticks) / 7)] if ticks else [math.sqrt(low * high)]


def _linear_ticks(last: float) -> list[float]:
    exact = last / 5
    power = 10 ** math.floor(math.log10(exact))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= exact)
    return [index * step for index in range(int(last / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
