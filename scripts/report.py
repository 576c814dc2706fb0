"""Write the page a person looks at: data, blends, loss curves, scores beside chance, dialogues beside their images.

One HTML file that holds everything it shows and loads nothing, so that it can be mailed, archived and opened years
later. Every input is optional; a part without its inputs is left out.
"""

import argparse
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scripts.common.cli import parser
from scripts.common.errors import run_program
from scripts.common.files import atomic, read_json
from scripts.evaluation.suites import suite_paths
from scripts.reporting import answers, cards, data, provenance, rule_graph, run_comparison, scores
from scripts.reporting.efficiency import studies
from scripts.reporting.report_images import ReportImages

_TEMPLATES = Path(__file__).parent / "reporting"
_ANCHORS = (
    ("studies", "efficiency", "Data efficiency"),
    ("columns", "scores", "Scores"),
    ("columns", "comparison", "Comparison"),
    ("chart", "curves", "Curves"),
    ("suites", "dialogues", "Dialogues"),
    ("columns", "mistakes", "Wrong answers"),
    ("datasets", "data", "Data"),
    ("cards", "cards", "Datasets"),
    ("sources", "images", "Images"),
    ("blends", "blends", "Blends"),
    ("graph", "graph", "Graph"),
    ("provenance", "provenance", "Provenance"),
)


def main() -> None:
    args = arguments().parse_args()
    text = page(args)
    with atomic(args.out, "w") as file:
        file.write(text)


def arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    inputs = {
        "records": "records/DATASET.report.json; samples are read from the table beside it",
        "validated": "validated/DATASET.json",
        "media": "media/SOURCE/manifest.json; images are read from the shards beside it",
        "plans": "plan/BLEND/PART.json",
        "finished": "train/RUN/finished.json",
        "metrics": "evaluate/RUN/metrics.json",
        "locks": "train/RUN/lock.json",
    }
    for name, files in inputs.items():
        result.add_argument(f"--{name}", nargs="*", type=Path, default=[], metavar="FILE", help=files)
    result.add_argument("--suite", action="append", default=[], metavar="NAME=FILE", help="a suite's file, repeatable")
    result.add_argument("--graph", type=Path, metavar="FILE", help="graph.json; left out where it is absent")
    result.add_argument("--image-root", type=Path, metavar="FOLDER", help="as for evaluate")
    result.add_argument("--title", default="VisualChat", help="heading of the page")
    result.add_argument("--out", type=Path, required=True, metavar="FILE", help="report.html")
    return result


def page(args: argparse.Namespace) -> str:
    """The report as HTML.

    Raises:
        UserError: an input is absent or is not what it should be.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        # The template's name does not end in .html, so escaping is not left to the ending.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(page=contents(args))


def contents(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that the template shows."""
    colours = scores.run_colours(args.metrics, args.finished)
    columns = scores.columns(args.metrics, colours)
    pictures = ReportImages(
        media={read_json(path)["source"]: path.parent for path in args.media},
        suite_folders={name: args.image_root or path.parent for name, path in suite_paths(args.suite).items()},
    )
    confidence = read_json(args.metrics[0])["settings"]["confidence"] if args.metrics else 0.95
    chart, told = scores.curves(args.finished, colours, confidence)
    parts = {
        "studies": studies(columns, args.finished, args.plans, confidence),
        "columns": columns,
        "kinds": scores.comparison(columns),
        "differences": run_comparison.differences(columns, confidence),
        "settings": run_comparison.settings(args.finished, colours),
        "losses": scores.losses(columns),
        "chart": chart,
        "told": told,
        "suites": answers.suites(columns, pictures),
        "mistakes": answers.mistakes(columns, pictures),
        "datasets": data.dataset_rows(args.records, args.validated),
        "cards": cards.cards(args.records, args.validated, args.plans, pictures),
        "sources": data.source_rows(args.media),
        "blends": data.blend_tables(args.plans),
        "graph": rule_graph.graph(args.graph),
        "provenance": provenance.provenance(args.finished, args.metrics, args.locks, colours),
    }
    return parts | {
        "title": args.title,
        "lead": _lead(parts),
        "anchors": [(anchor, label) for part, anchor, label in _ANCHORS if parts[part]],
        "unfolded": answers.UNFOLDED,
        "confidence": f"{confidence:.0%}",
        "bar_key": scores.bar_key(confidence, columns),
    }


def _lead(parts: dict[str, Any]) -> str:
    """What the page is about, in one line."""
    runs = list(dict.fromkeys([column.run for column in parts["columns"]] + [run["name"] for run in parts["told"]]))
    words = [f"{'Run' if len(runs) == 1 else 'Runs'}: {', '.join(runs)}."] if runs else []
    if parts["datasets"]:
        words.append(f"Data: {', '.join(row['name'] for row in parts['datasets'])}.")
    return " ".join(words)


if __name__ == "__main__":
    run_program(main)
