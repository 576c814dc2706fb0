"""Write the report: data, blends, loss curves, scores with chance levels, and dialogues with their images.

One self-contained HTML file, which loads nothing and can be mailed and archived. Every input is optional; a section
without inputs is left out.
"""

import argparse
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scripts.common.cli import parser
from scripts.common.errors import run_program
from scripts.common.files import atomic, read_json
from scripts.evaluation.suites import suite_paths
from scripts.reporting import (
    answers,
    cards,
    data,
    heldout_answers,
    provenance,
    rule_graph,
    run_comparison,
    scores,
    text_answers,
)
from scripts.reporting.efficiency import studies
from scripts.reporting.report_images import ReportImages

_TEMPLATES = Path(__file__).parent / "reporting"
_ANCHORS = (
    ("studies", "efficiency", "Data efficiency"),
    ("columns", "scores", "Scores"),
    ("columns", "comparison", "Comparison"),
    ("chart", "curves", "Curves"),
    ("heldout_datasets", "heldout", "Held-out answers"),
    ("text_answers", "text", "Text answers"),
    ("suites", "dialogues", "Dialogues"),
    ("kinds", "mistakes", "Incorrect answers"),
    ("datasets", "data", "Data"),
    ("cards", "cards", "Datasets"),
    ("sources", "images", "Images"),
    ("blends", "blends", "Blends"),
    ("graph", "graph", "Graph"),
    ("provenance", "provenance", "Provenance"),
)


def main() -> None:
    """Run the program."""
    args = arguments().parse_args()
    text = page(args)
    with atomic(args.out, "w") as file:
        file.write(text)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    result = parser(__doc__)
    inputs = {
        "records": "records/DATASET.report.json; samples are read from the table in the same folder",
        "validated": "validated/DATASET.json",
        "media": "media/SOURCE/manifest.json; images are read from the shards in the same folder",
        "plans": "plan/BLEND/PART.json",
        "finished": "train/RUN/finished.json",
        "metrics": "evaluate/RUN/metrics.json",
        "forgetting": "evaluate/RUN/forgetting.json",
        "locks": "train/RUN/lock.json",
    }
    for name, files in inputs.items():
        result.add_argument(f"--{name}", nargs="*", type=Path, default=[], metavar="FILE", help=files)
    result.add_argument("--suite", action="append", default=[], metavar="NAME=FILE", help="a suite's file, repeatable")
    result.add_argument("--graph", type=Path, metavar="FILE", help="graph.json; may be missing")
    result.add_argument(
        "--image-root",
        type=Path,
        metavar="FOLDER",
        help="folder that image paths of suites are relative to, as for evaluate",
    )
    result.add_argument("--title", default="VisualChat", help="heading of the page")
    result.add_argument("--out", type=Path, required=True, metavar="FILE", help="report.html")
    return result


def page(args: argparse.Namespace) -> str:
    """The report as HTML.

    Raises:
        UserError: an input is missing or malformed.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        # Always on: Jinja's default depends on the suffix, and the template's name does not end in .html.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(page=contents(args))


def contents(args: argparse.Namespace) -> dict[str, Any]:
    """The data of the template."""
    colours = scores.run_colours(args.metrics, args.finished)
    columns = scores.columns(args.metrics, colours)
    report_images = ReportImages(
        media={read_json(path)["source"]: path.parent for path in args.media},
        suite_folders={name: args.image_root or path.parent for name, path in suite_paths(args.suite).items()},
    )
    confidence = read_json(args.metrics[0])["settings"]["confidence"] if args.metrics else 0.95
    chart, run_details = scores.curves(args.finished, colours, confidence)
    parts = {
        "studies": studies(columns, args.finished, args.plans, confidence),
        "columns": columns,
        "kinds": scores.comparison(columns),
        "differences": run_comparison.differences(columns, confidence),
        "settings": run_comparison.settings(args.finished, colours),
        "losses": scores.losses(columns),
        "chart": chart,
        "run_details": run_details,
        "heldout_datasets": heldout_answers.heldout_datasets(columns, report_images),
        "text_answers": text_answers.text_answers(args.forgetting, colours),
        "suites": answers.suites(columns, report_images),
        "mistakes": answers.mistakes(columns, report_images),
        "datasets": data.dataset_rows(args.records, args.validated),
        "cards": cards.cards(args.records, args.validated, args.plans, report_images),
        "sources": data.source_rows(args.media),
        "blends": data.blend_tables(args.plans),
        "graph": rule_graph.graph(args.graph),
        "provenance": provenance.provenance(args.finished, args.metrics, args.locks, colours),
    }
    return parts | {
        "title": args.title,
        "lead": _lead(parts),
        "anchors": [(anchor, label) for part, anchor, label in _ANCHORS if parts[part]],
        "expanded": answers.EXPANDED,
        "confidence": f"{confidence:.0%}",
        "bar_key": scores.bar_key(confidence, columns),
    }


def _lead(parts: dict[str, Any]) -> str:
    """The names of runs and datasets in one line."""
    names = [column.run for column in parts["columns"]] + [run["name"] for run in parts["run_details"]]
    runs = list(dict.fromkeys(names))
    sentences = [f"{'Run' if len(runs) == 1 else 'Runs'}: {', '.join(runs)}."] if runs else []
    if parts["datasets"]:
        sentences.append(f"Data: {', '.join(row['name'] for row in parts['datasets'])}.")
    return " ".join(sentences)


if __name__ == "__main__":
    run_program(main)
