"""The report's picture of the graph: every rule that ran as a box with its jobs, below the rules that it depends on.

Reads `graph.json`, which holds Snakemake's own graph. Graphviz places boxes and lines; its nodes have fixed sizes and
no labels, so that the diagram does not depend on fonts. Colours come from the style sheet of the page.
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
"""Pixels: width of a character, height of a box, gap between rows, and gap between boxes of a row."""
_INCH = 72
"""Graphviz takes sizes in inches and returns positions in points, of which we make pixels."""
_STAGES = ("sources", "media", "records", "blends", "models", "train", "evaluate", "report")
"""The files of `rules/`, in the order of the stages; each has a colour."""

Reads = Mapping[str, Sequence[str]]
Point = tuple[float, float]
"""Pixels from the left and from the top."""


@dataclass(frozen=True)
class Layout:
    """The centre of every box, and every line as a first point and three more points per Bezier curve."""

    width: float
    height: float
    boxes: Mapping[str, Point]
    lines: Sequence[Sequence[Point]]


def graph(path: Path | None) -> dict[str, Any] | None:
    """The data of the section: diagram, steps from top to bottom, command; `None` without the file."""
    if path is None or not path.is_file():
        return None
    recorded = read_json(path)
    rules = recorded["rules"]
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
        "command": recorded["command"],
        "snakemake": recorded["snakemake"],
    }


def _step(name: str, rule: Mapping[str, Any]) -> dict[str, Any]:
    # "Converting {wildcards.dataset} to records": wildcards are set in italics.
    parts = re.split(r"\{wildcards\.(\w+)\}", rule["message"])
    message = [(text, number % 2 == 1) for number, text in enumerate(parts) if text]
    return {"name": name, "jobs": rule["jobs"], "message": message, "stage": _stage(rule)}


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
    """Positions from Graphviz: every rule below those that it depends on, with short lines and few crossings."""
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
        # The y axis of Graphviz points upwards.
        return [(float(x), height - float(y)) for x, y in (point.split(",") for point in text.split())]

    boxes = {str(node): points(node.attr["pos"])[0] for node in drawing.nodes()}
    return Layout(width, height, boxes, [points(line.attr["pos"]) for line in drawing.edges()])


def picture(layout: Layout, order: Sequence[str], rules: Mapping[str, Mapping[str, Any]]) -> Markup:
    """The graph as an SVG, its boxes in the given order."""
    shapes = [_line(points) for points in layout.lines]
    shapes += [_box(name, rules[name], *layout.boxes[name]) for name in order]
    return Markup('<svg class="steps" viewBox="-1 -1 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        layout.width + 2,
        layout.height + 2,
        f"Rules and their dependencies: {', '.join(order)}",
        Markup("").join(shapes),
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
