"""Ask a trained model questions about images it has never seen, and count.

Reads   exported checkpoints, a held-out blend, kinds of questions, dialogue suites
Writes  OUT/heldout/<checkpoint>.{jsonl,csv,json}   every held-out question with its answer, and the numbers
        OUT/<suite>/<checkpoint>.{jsonl,csv,json}   every dialogue, generated round by round
        OUT/metrics.json                            all numbers, written last

Held-out conversations give the loss per supervised token and the share of exactly right answers per kind of question,
each with an interval, beside chance (the commonest answer) and beside the same model with blanked images.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from scripts.common.errors import run_program
from scripts.common.files import file_sha256, write_json
from scripts.common.program import load_settings, parser
from scripts.evaluation.kinds import read_kinds
from scripts.evaluation.results import METRICS
from scripts.evaluation.suites import read_suite, suite_paths
from scripts.evaluation.summary import result_lines
from scripts.sections.evaluate import Evaluate
from scripts.training.loader import BlendReader


def main() -> None:
    args = arguments().parse_args()
    settings = load_settings(Evaluate, args.settings)
    suites = suite_paths(args.suite)
    models = checkpoints_of(args.model, settings.checkpoints)
    # Everything that a person may have got wrong is read before the model is loaded.
    dialogues = {name: read_suite(path, args.image_root, args.allow_outside) for name, path in suites.items()}
    kinds = read_kinds(args.kinds) if args.kinds else []
    blend = BlendReader(args.heldout, args.root)
    if not len(blend):
        print("the held-out blend is empty: there will be dialogues, but no scores", file=sys.stderr)

    # Late, so that --help and bad input answer at once.
    from scripts.evaluation.evaluation import Evaluation, versions

    checkpoints = {}
    for name, folder in models.items():
        evaluation = Evaluation(name, folder, settings, args.out)
        checkpoints[name] = {
            "checkpoint": evaluation.sha256,
            "heldout": evaluation.heldout(blend, kinds),
            "suites": {suite: evaluation.suite(suite, tests) for suite, tests in dialogues.items()},
        }
    metrics = {
        "v": 1,
        "run": args.name,
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
        "inputs": {"heldout_plan": blend.plan, "suites": {name: file_sha256(path) for name, path in suites.items()}},
        "checkpoints": checkpoints,
    }
    write_json(args.out / METRICS, metrics)
    print("\n".join(result_lines(metrics)), file=sys.stderr)


def arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument("--name", required=True, help="name of the run")
    result.add_argument("--settings", default="{}", metavar="JSON", help="section `evaluate` (JSON, or @file)")
    folder = {"type": Path, "metavar": "FOLDER"}
    result.add_argument("--model", **folder, required=True, help="exported/RUN, or one model's folder")
    result.add_argument("--heldout", **folder, required=True, help="held-out part of a blend")
    result.add_argument("--root", **folder, required=True, help="results root, where image references begin")
    result.add_argument("--kinds", type=Path, metavar="FILE", help="kinds of questions; else every dataset is a kind")
    result.add_argument("--suite", action="append", default=[], metavar="NAME=FILE", help="dialogue suite, repeatable")
    result.add_argument("--image-root", **folder, help="where image paths of suites begin (default: beside the suite)")
    result.add_argument("--allow-outside", action="store_true", help="suites may name images outside of that folder")
    result.add_argument("--out", **folder, required=True, help="evaluate/RUN")
    return result


def checkpoints_of(folder: Path, names: Iterable[str]) -> dict[str, Path]:
    """The folders of the wanted checkpoints; a folder that is itself a model counts as its final checkpoint."""
    return {"final": folder} if (folder / "config.json").is_file() else {name: folder / name for name in names}


if __name__ == "__main__":
    run_program(main)
