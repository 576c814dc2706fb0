"""The report's picture of the graph: every rule that ran as a box, its jobs, and what it waits for, from top to bottom.

Reads `graph.json`, which holds Snakemake's own graph. Graphviz places the boxes and the lines between them; what it is
given has no text to measure, so that the picture does not depend on the fonts of the machine. The colours are those of
the page.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from pygraphviz import AGraph

from scripts.common.files import read_json
from scripts.workflow.graph import ancestors, break_cycles

_LETTER, _HEIGHT, _ROW_GAP, _GAP = 6.6, 34, 20, 12
"""Pixels: a letter of a box's name, a box, between rows, and between boxes of a row."""
_INCH = 72
"""Graphviz takes sizes in inches and returns positions in points, which are our pixels."""
_STAGES = ("sources", "media", "records", "blends", "models", "train", "evaluate", "report")
"""The files of `rules/`, in the order of the work; each has a colour."""

Reads = Mapping[str, Sequence[str]]
Point = tuple[float, float]
"""Pixels from the left and from the top."""


@dataclass(frozen=True)
class Layout:
    """Where everything lies: the middle of each box, and each line as a first point and three more a Bezier curve."""

    width: float
    height: float
    boxes: Mapping[str, Point]
    lines: Sequence[Sequence[Point]]


def graph(path: Path | None) -> dict[str, Any] | None:
    """What the page shows of the graph: picture, steps in the order of the work, the command; None without the file."""
    if path is None or not path.is_file():
        return None
    told = read_json(path)
    rules = told["rules"]
    reads, left_out = break_cycles(rules)
    layout = laid_out(reduced(reads))
    order = sorted(layout.boxes, key=lambda name: layout.boxes[name][::-1])
    used = {_stage(rule) for rule in rules.values()}
    return {
        "picture": picture(layout, order, rules),
        "steps": [_step(name, rules[name]) for name in order],
        "stages": [(number, name) for number, name in enumerate(_STAGES) if number in used],
        "left_out": left_out,
        "jobs": sum(rule["jobs"] for rule in rules.values()),
        "command": told["command"],
        "snakemake": told["snakemake"],
    }


def _step(name: str, rule: Mapping[str, Any]) -> dict[str, Any]:
    # "Turning {wildcards.dataset} into records": what stands for many is set apart.
    parts = re.split(r"\{wildcards\.(\w+)\}", rule["message"])
    said = [(text, place % 2 == 1) for place, text in enumerate(parts) if text]
    return {"name": name, "jobs": rule["jobs"], "said": said, "stage": _stage(rule)}


def _stage(rule: Mapping[str, Any]) -> int:
    return _STAGES.index(rule["stage"]) if rule["stage"] in _STAGES else len(_STAGES) - 1


def reduced(reads: Reads) -> dict[str, list[str]]:
    """The same graph without edges that follow from others."""
    above = {name: ancestors(reads, name) for name in reads}
    return {
        name: [read for read in names if not any(read in above[other] for other in names)]
        for name, names in reads.items()
    }


def laid_out(reads: Reads) -> Layout:
    """Positions from Graphviz: every rule below what it waits for, lines short and with few crossings."""
    drawing = AGraph(directed=True, ranksep=_ROW_GAP / _INCH, nodesep=_GAP / _INCH)
    drawing.node_attr.update(shape="box", label="", fixedsize=True, height=_HEIGHT / _INCH)
    drawing.edge_attr.update(arrowhead="none")
    for name in sorted(reads):
        drawing.add_node(name, width=_width(name) / _INCH)
    for name in sorted(reads):
        drawing.add_edges_from((read, name) for read in reads[name])
    drawing.layout("dot")
    *_, width, height = map(float, drawing.graph_attr["bb"].split(","))

    def points(text: str) -> list[Point]:
        # Graphviz counts upwards from the bottom.
        return [(float(x), height - float(y)) for x, y in (point.split(",") for point in text.split())]

    boxes = {str(node): points(node.attr["pos"])[0] for node in drawing.nodes()}
    return Layout(width, height, boxes, [points(line.attr["pos"]) for line in drawing.edges()])


def picture(layout: Layout, order: Sequence[str], rules: Mapping[str, Mapping[str, Any]]) -> Markup:
    """The graph as an SVG; boxes come in the given order."""
    drawn = [_line(points) for points in layout.lines]
    drawn += [_box(name, rules[name], *layout.boxes[name]) for name in order]
    return Markup('<svg class="steps" viewBox="-1 -1 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        layout.width + 2, layout.height + 2, f"What waits for what: {', '.join(order)}", Markup("").join(drawn)
    )


def _width(name: str) -> float:
    return max(74, _LETTER * len(name) + 14)


def _line(points: Sequence[Point]) -> Markup:
    first, *others = (f"{x:.1f} {y:.1f}" for x, y in points)
    return Markup('<path d="M{}C{}"/>').format(first, " ".join(others))


def _box(name: str, rule: Mapping[str, Any], x: float, y: float) -> Markup:
    jobs = f"{rule['jobs']:,} job{'s' if rule['jobs'] > 1 else ''}"
    width, top = _width(name), y - _HEIGHT / 2
    return Markup(
        '<g class="stage-{}"><rect x="{:.0f}" y="{:.0f}" width="{:.0f}" height="{}" rx="6"/>'
        '<text x="{:.0f}" y="{:.0f}">{}</text><text class="jobs" x="{:.0f}" y="{:.0f}">{}</text></g>'
    ).format(
        *(_stage(rule), x - width / 2, top, width, _HEIGHT),
        *(x, top + 15, name.replace("_", " "), x, top + 28, jobs),
    )
