"""The report's picture of the graph: every rule that ran as a box, its jobs, and what it waits for, from top to bottom.

Reads `graph.json`, which tells Snakemake's own graph. The picture is a layered drawing after Sugiyama, Tagawa and Toda
(1981): edges that follow from others are left out, a rule stands above what waits for it, long edges pass through
places of their own, a few sweeps of averages reduce crossings, and a few more pull edges straight.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from scripts.common.files import read_json
from scripts.workflow.graph import ancestors, break_cycles

_LETTER, _HEIGHT, _PITCH, _GAP = 6.6, 34, 54, 12
"""Pixels: a letter of a box's name, a box, from row to row, and between boxes."""
_SWEEPS = 8
_STAGES = ("sources", "media", "records", "blends", "models", "train", "evaluate", "report")
"""The files of `rules/`, in the order of the work; each has a colour."""

Reads = Mapping[str, Sequence[str]]
Place = tuple[str, int]
"""A rule's name and its row; or the name of an edge, "from>to", and a row that it passes through."""


def graph(path: Path | None) -> dict[str, Any] | None:
    """What the page shows of the graph: picture, steps in the order of the work, the command; None without the file."""
    if path is None or not path.is_file():
        return None
    told = read_json(path)
    rules = told["rules"]
    reads, left_out = break_cycles(rules)
    needed = reduced(reads)
    rows = layers(needed)
    used = {_stage(rule) for rule in rules.values()}
    return {
        "picture": picture(rows, needed, rules),
        "steps": [_step(name, rules[name]) for row in rows for name, _ in row if name in rules],
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


def layers(reads: Reads) -> list[list[Place]]:
    """The rows of the picture, top to bottom, each from left to right."""
    level = _levels(reads)
    rows: list[list[Place]] = [[] for _ in range(1 + max(level.values(), default=-1))]
    above: dict[Place, list[Place]] = {}
    below: dict[Place, list[Place]] = {}
    for name in sorted(reads):
        rows[level[name]].append((name, level[name]))
        for read in reads[name]:
            way = route(read, name, level)
            for place in way[1:-1]:
                rows[place[1]].append(place)
            for upper, lower in pairwise(way):
                above.setdefault(lower, []).append(upper)
                below.setdefault(upper, []).append(lower)
    for sweep in range(_SWEEPS):
        near, order = (above, rows) if sweep % 2 == 0 else (below, rows[::-1])
        for row in order:
            where = {place: (number + 0.5) / len(row) for row in rows for number, place in enumerate(row)}
            row.sort(key=lambda place: fmean(where[other] for other in near.get(place, [place])))
    return rows


def _levels(reads: Reads) -> dict[str, int]:
    """The row of every name: right above the first thing that needs it, or else right below the last that it needs."""
    level: dict[str, int] = {}

    def place(name: str) -> int:
        if name not in level:
            level[name] = 1 + max(map(place, reads[name]), default=-1)
        return level[name]

    for name in sorted(reads, key=place, reverse=True):
        level[name] = min((level[other] - 1 for other in reads if name in reads[other]), default=level[name])
    return level


def route(read: str, name: str, level: Mapping[str, int]) -> list[Place]:
    """An edge from its upper end through every row between to its lower end."""
    passages = [(f"{read}>{name}", row) for row in range(level[read] + 1, level[name])]
    return [(read, level[read]), *passages, (name, level[name])]


def picture(rows: Sequence[Sequence[Place]], reads: Reads, rules: Mapping[str, Mapping[str, Any]]) -> Markup:
    """The rows as an SVG."""
    level = {name: row for places in rows for name, row in places if name in rules}
    ways = [route(read, name, level) for name in level for read in reads[name]]
    centre = _centres(rows, ways)
    left = min((x - _breadth(place) / 2 for place, x in centre.items()), default=0) - 1
    width = max((x + _breadth(place) / 2 for place, x in centre.items()), default=0) + 1 - left
    drawn = [_edge(way, centre) for way in ways]
    drawn += [_box(name, rules[name], centre[name, row], row * _PITCH) for name, row in level.items()]
    return Markup('<svg class="steps" viewBox="{:.0f} -1 {:.0f} {}" role="img" aria-label="{}">{}</svg>').format(
        *(left, width, _PITCH * len(rows) - _PITCH + _HEIGHT + 2),
        f"What waits for what: {', '.join(level)}",
        Markup("").join(drawn),
    )


def _centres(rows: Sequence[Sequence[Place]], ways: Sequence[Sequence[Place]]) -> dict[Place, float]:
    """Where places have their middle, in pixels: near the middles of what they are joined with, in order, apart."""
    joined: dict[Place, list[Place]] = {}
    for way in ways:
        for upper, lower in pairwise(way):
            joined.setdefault(upper, []).append(lower)
            joined.setdefault(lower, []).append(upper)
    centre = {place: 0.0 for row in rows for place in row}
    for sweep in range(4 * _SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            wanted = [fmean(centre[other] for other in joined.get(place, [place])) for place in row]
            centre |= zip(row, _apart(wanted, [_breadth(place) for place in row]), strict=True)
    return centre


def _apart(wanted: Sequence[float], breadths: Sequence[float]) -> list[float]:
    """Middles nearest to the wanted ones, in this order and without overlap: least squares by pooling neighbours."""
    offsets = [0.0]
    for before, after in pairwise(breadths):
        offsets.append(offsets[-1] + (before + after) / 2 + _GAP)
    pools: list[list[float]] = []
    for value, offset in zip(wanted, offsets, strict=True):
        pools.append([value - offset])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return [fmean(pool) + offset for pool, offset in zip((p for p in pools for _ in p), offsets, strict=True)]


def _breadth(place: Place) -> float:
    return 2.0 if ">" in place[0] else max(74, _LETTER * len(place[0]) + 14)


def _edge(way: Sequence[Place], centre: Mapping[Place, float]) -> Markup:
    """From the foot of a box, straight through the rows that it passes, to the head of another."""
    path = ""
    for (upper, row), (lower, next_row) in pairwise(way):
        x, x_next = centre[upper, row], centre[lower, next_row]
        foot, head = row * _PITCH + _HEIGHT, next_row * _PITCH
        path += f"V{foot}" if path else f"M{x:.0f} {foot}"
        path += f"C{x:.0f} {(foot + head) / 2:.0f} {x_next:.0f} {(foot + head) / 2:.0f} {x_next:.0f} {head}"
    return Markup('<path d="{}"/>').format(path)


def _box(name: str, rule: Mapping[str, Any], centre: float, top: int) -> Markup:
    jobs = f"{rule['jobs']:,} job{'s' if rule['jobs'] > 1 else ''}"
    breadth = _breadth((name, 0))
    return Markup(
        '<g class="stage-{}"><rect x="{:.0f}" y="{}" width="{}" height="{}" rx="6"/>'
        '<text x="{:.0f}" y="{}">{}</text><text class="jobs" x="{:.0f}" y="{}">{}</text></g>'
    ).format(
        *(_stage(rule), centre - breadth / 2, top, round(breadth), _HEIGHT),
        *(centre, top + 15, name.replace("_", " "), centre, top + 28, jobs),
    )
