"""The report's charts, as SVG without a plotting library or scripts: training curves, accuracy bars and curves.

A chart is an SVG that stretches to its box, with labels laid over it as HTML text, so that lines and text keep their
size on any screen. Colours come from the style sheet, which has a light and a dark mode. Coordinates are percent of the
box: x to the right, y downwards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from scripts.reporting.means import Mean, mean_of

Point = tuple[float, float]
_LINE = Markup('<path class="line run-{}" d="{}" vector-effect="non-scaling-stroke"/>')
_DOTS = Markup('<path class="dots run-{}" d="{}" vector-effect="non-scaling-stroke"><title>{}</title></path>')
_BAND = Markup('<path class="band run-{}" d="{}Z"/>')
_GRID = Markup('<path class="grid" d="{}" vector-effect="non-scaling-stroke"/>')
_LABEL = Markup('<span class="tick {}" style="{}:{}%">{}</span>')


@dataclass(frozen=True)
class Curve:
    """One run in a chart: (step, value) of every step, drawn as a line of means, and of evaluations, drawn as dots."""

    name: str
    colour: int
    steps: Sequence[Point]
    evaluations: Sequence[Point] = ()


def binned(points: Sequence[Point], confidence: float, bins: int = 60) -> list[tuple[float, Mean]]:
    """(x, mean) of neighbouring points in at most `bins` bins of equal count, with intervals of the means.

    Smooths a noisy curve and bounds its size; the last bin may have fewer points.
    """
    size = max(1, math.ceil(len(points) / bins))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(fmean(x for x, _ in group), mean_of([y for _, y in group], confidence)) for group in groups]


def step_chart(title: str, curves: Sequence[Curve], confidence: float, logarithmic: bool = False) -> Markup:
    """Values against step, one line per curve with a band for the intervals of its means; empty without any points."""
    usable = _positive if logarithmic else _finite
    lines = [binned(usable(curve.steps), confidence) for curve in curves]
    dots = [usable(curve.evaluations) for curve in curves]
    values = [value.value for line in lines for _, value in line] + [y for points in dots for _, y in points]
    if not values:
        return Markup("")
    last = max([x for line in lines for x, _ in line] + [x for points in dots for x, _ in points] + [1])
    low, high = _log_range(values) if logarithmic else _range(values)
    scale = math.log if logarithmic else float

    def height(y: float) -> float:
        clipped = min(max(y, low), high)
        return 100 * (1 - (scale(clipped) - scale(low)) / (scale(high) - scale(low)))

    ticks = _log_ticks(low, high) if logarithmic else [low + tick for tick in _linear_ticks(high - low)]
    rows = [(height(tick), _number(tick)) for tick in ticks]
    columns = [(100 * tick / last, _number(tick)) for tick in _linear_ticks(last)]
    shapes = [_GRID.format(" ".join(f"M0 {y:.2f}H100" for y, _ in rows))]
    for curve, line, points in zip(curves, lines, dots, strict=True):
        with_interval = [(100 * x / last, value.interval) for x, value in line if value.interval]
        if len(with_interval) > 1:
            upper = [(x, height(bounds[1])) for x, bounds in with_interval]
            lower = [(x, height(bounds[0])) for x, bounds in reversed(with_interval)]
            shapes.append(_BAND.format(curve.colour, _path(upper + lower)))
        means = [(100 * x / last, height(value.value)) for x, value in line]
        shapes.append(_LINE.format(curve.colour, _path(means)))
        if points:
            positions = [(100 * x / last, height(y)) for x, y in points]
            shapes.append(_DOTS.format(curve.colour, _dots_path(positions), f"{curve.name}, held out"))
    names = ", ".join(curve.name for curve in curves)
    return _framed(f"{title} by step of {names}", shapes, rows, columns, "step")


@dataclass(frozen=True)
class AccuracyCurve:
    """Mean accuracies by x, as (x, mean)."""

    name: str
    colour: int
    points: Sequence[tuple[float, Mean]]


def accuracy_chart(title: str, axis: str, curves: Sequence[AccuracyCurve]) -> Markup:
    """Accuracy from 0 to 100 % against x, one line per curve, with error bars for the intervals."""
    last = max(x for curve in curves for x, _ in curve.points)

    def position(x: float, accuracy: float) -> Point:
        return 100 * x / last, 100 * (1 - min(max(accuracy, 0.0), 1.0))

    ticks = [(100 - percent, f"{percent} %") for percent in range(0, 101, 20)]
    columns = [(100 * tick / last, _number(tick)) for tick in _linear_ticks(last)]
    shapes = [_GRID.format(" ".join(f"M0 {y:.2f}H100" for y, _ in ticks))]
    for curve in curves:
        means = [position(x, value.value) for x, value in curve.points]
        shapes.append(_LINE.format(curve.colour, _path(means)))
        bounds = [(x, value.interval) for x, value in curve.points if value.interval]
        bars = [(position(x, low), position(x, high)) for x, (low, high) in bounds]
        bars_path = " ".join(f"M{x:.2f} {low:.2f}V{high:.2f}" for (x, low), (_, high) in bars)
        shapes.append(_LINE.format(curve.colour, bars_path))
        shapes.append(_DOTS.format(curve.colour, _dots_path(means), curve.name))
    return _framed(title, shapes, ticks, columns, axis)


def accuracy_bar(row: dict) -> Markup:
    """An accuracy as a bar from 0 to 1 with its interval; `row` is one of `statistics.summarise`.

    A tick marks the chance level, and a dot the accuracy with blanked images.
    """
    low, high = (100 * bound for bound in row["interval"])
    marks = [Markup('<i class="fill" style="width:{:.1f}%"></i>').format(100 * row["accuracy"])]
    marks.append(Markup('<i class="interval" style="left:{:.1f}%;width:{:.1f}%"></i>').format(low, high - low))
    if row.get("chance") is not None:
        marks.append(Markup('<i class="chance" style="left:{:.1f}%"></i>').format(100 * row["chance"]))
    if row.get("blanked"):
        marks.append(Markup('<i class="blanked" style="left:{:.1f}%"></i>').format(100 * row["blanked"]["accuracy"]))
    return Markup('<span class="bar" aria-hidden="true">{}</span>').format(Markup("").join(marks))


def _framed(
    title: str,
    shapes: Sequence[Markup],
    rows: Sequence[tuple[float, str]],
    columns: Sequence[tuple[float, str]],
    axis: str,
) -> Markup:
    """A chart of `shapes` with tick labels (position in percent, text) at the left (`rows`) and bottom (`columns`)."""
    return Markup(
        '<div class="chart"><svg viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
        '{}<span class="axis">{}</span></div>'
    ).format(
        title,
        Markup("").join(shapes),
        Markup("").join(
            [_LABEL.format("left", "top", f"{y:.2f}", text) for y, text in rows]
            + [_LABEL.format("bottom", "left", f"{x:.2f}", text) for x, text in columns]
        ),
        axis,
    )


def difference_bar(value: float, low: float, high: float) -> Markup:
    """A difference as a bar from -1 to 1 with zero in its middle, and its interval."""
    left, right = sorted((50 + 50 * value, 50.0))
    return Markup(
        '<span class="bar" aria-hidden="true">'
        '<i class="difference" style="left:{:.1f}%;width:{:.1f}%"></i><i class="zero"></i>'
        '<i class="interval" style="left:{:.1f}%;width:{:.1f}%"></i></span>'
    ).format(left, right - left, 50 + 50 * low, 50 * (high - low))


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in points if y is not None and math.isfinite(y)]


def _positive(points: Sequence[Point]) -> list[Point]:
    return [(x, y) for x, y in _finite(points) if y > 0]


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points) if points else ""


def _dots_path(points: Sequence[Point]) -> str:
    """Lines of length zero, whose round ends are dots; unlike circles they stay round in a stretched box."""
    return " ".join(f"M{x:.2f} {y:.2f}h0" for x, y in points)


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(0.0, *values), max(values)
    return low, high + 0.05 * (high - low) if high > low else low + 1


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    # A margin keeps the curves off the frame, and gives a constant curve a range.
    margin = max(math.log(high / low) * 0.05, 0.05)
    return low * math.exp(-margin), high * math.exp(margin)


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
