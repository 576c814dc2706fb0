"""Evaluate a trained model on held-out images and on suites.

Reads   exported checkpoints, a held-out blend, kinds of questions, suites (dialogues of the original, task files)
Writes  OUT/heldout/<checkpoint>.{jsonl,csv,json}   every held-out question with its answer, and the numbers
        OUT/<suite>/<checkpoint>.{jsonl,csv,json}   every turn of a suite, and its metrics
        OUT/metrics.json                            all numbers and the comparison of checkpoints, written last

Held-out conversations give the loss per supervised token and the accuracy (exact match) per kind of question with its
interval, the chance level (always the most frequent answer) and the accuracy with blanked images. Answers of datasets
without kinds, such as your own, are also scored as free text: token F1, ROUGE-L, chrF. An evaluation that was
interrupted continues where it stopped: answers are cached in OUT/.answer_cache.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.common.cli import load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import write_json
from scripts.config.evaluate import EvaluationConfig
from scripts.evaluation.question_kinds import read_kinds
from scripts.evaluation.results import METRICS_FILE
from scripts.evaluation.scoring import MetricSpec, compare
from scripts.evaluation.suite_reader import read_suite
from scripts.evaluation.suites import suite_paths
from scripts.evaluation.text_summary import result_lines
from scripts.evaluation.turns import Turn
from scripts.inference.blend_reader import BlendReader


def main() -> None:
    """Run the program."""
    args = arguments().parse_args()
    settings = load_settings(EvaluationConfig, args.settings)
    models = checkpoints_of(args.model, settings.checkpoints)
    # All inputs of the user are read before the model is loaded.
    allow_code = args.allow_code or settings.allow_code
    suites = {
        name: read_suite(path, args.image_root, args.allow_outside, allow_code)
        for name, path in suite_paths(args.suite).items()
    }
    kinds = read_kinds(args.kinds) if args.kinds else []
    blend = BlendReader(args.heldout, args.root) if args.heldout else None
    if blend is not None and not len(blend):
        print("the held-out blend is empty: only suites are evaluated", file=sys.stderr)

    # Imported late, so that --help and errors in the input need not wait for torch.
    from scripts.evaluation.checkpoint_evaluation import CheckpointEvaluation, versions

    checkpoints: dict[str, dict[str, Any]] = {}
    turns: dict[str, dict[str, list[Turn]]] = {name: {} for name in suites}
    for name, folder in models.items():
        evaluation = CheckpointEvaluation(name, folder, settings, args.out)
        heldout = evaluation.heldout(blend, kinds, args.without_kinds, args.loss_only)
        scores = {}
        for suite, content in suites.items():
            scores[suite], turns[suite][name] = evaluation.suite(suite, content)
        checkpoints[name] = {"checkpoint": evaluation.sha256, "heldout": heldout, "suites": scores}
        evaluation.answer_cache.prune()
    metrics = {
        "v": 1,
        "run": args.name,
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
        "inputs": {
            "heldout_plan": blend.plan if blend else None,
            "suites": {name: dict(suite.files) for name, suite in suites.items()},
        },
        "checkpoints": checkpoints,
        "compared": {
            name: compare_checkpoints(content.metrics, turns[name], settings.confidence)
            for name, content in suites.items()
        },
    }
    write_json(args.out / METRICS_FILE, metrics)
    print("\n".join(result_lines(metrics)), file=sys.stderr)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    result = parser(__doc__)
    add = result.add_argument
    add("--name", required=True, help="name of the run")
    add("--settings", default="{}", metavar="JSON", help="section `evaluate` (JSON, or @file)")
    help_model = "exported/RUN, or the folder of a model; repeatable, then each needs a NAME"
    add("--model", action="append", required=True, metavar="[NAME=]FOLDER", help=help_model)
    add("--heldout", type=Path, metavar="FOLDER", help="held-out part of a blend")
    add("--root", type=Path, metavar="FOLDER", help="results root, which image references are relative to")
    add("--kinds", type=Path, metavar="FILE", help="kinds of questions (default: every dataset is a kind)")
    add("--suite", action="append", default=[], metavar="NAME=FILE", help="suite, repeatable")
    help_without = "datasets that the kinds are not about: each is a kind, and its answers are scored as free text"
    add("--without-kinds", nargs="*", action="extend", default=[], metavar="DATASET", help=help_without)
    help_loss = "datasets of which only the loss is measured: those of replay, whose answers are the model's own"
    add("--loss-only", nargs="*", action="extend", default=[], metavar="DATASET", help=help_loss)
    help_images = "folder that image paths of suites are relative to (default: that of the suite)"
    add("--image-root", type=Path, metavar="FOLDER", help=help_images)
    add("--allow-outside", action="store_true", help="suites may name images outside of that folder")
    add("--allow-code", action="store_true", help="task files may run the Python functions they name")
    add("--out", type=Path, metavar="FOLDER", required=True, help="evaluate/RUN")
    return result


def checkpoints_of(values: Sequence[str], names: Iterable[str]) -> dict[str, Path]:
    """The folders of the models to evaluate, by checkpoint name.

    Args:
        values: the values of --model: the export of a run, one model (which is called "final"), or several NAME=FOLDER.
        names: the checkpoints to take of an export.

    Raises:
        UserError: one of several folders has no name, or a name is given twice or not a valid file name.
    """
    folders: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        folder = Path(value)
        if len(values) == 1 and (not equals or folder.is_dir()):  # a folder may have a "=" in its own name
            is_model = (folder / "config.json").is_file()
            return {"final": folder} if is_model else {name: folder / name for name in names}
        if not path or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name in folders:
            raise UserError(f"--model {value}: several models need unique names: NAME=FOLDER")
        folders[name] = Path(path)
    return folders


def compare_checkpoints(
    specs: Sequence[MetricSpec], turns: Mapping[str, Sequence[Turn]], confidence: float
) -> dict[str, dict[str, Any]]:
    """Compare every later checkpoint with the first one: {"later - first": result of `scoring.compare`}."""
    first, *others = turns
    return {f"{other} - {first}": compare(turns[other], turns[first], specs, confidence) for other in others}


if __name__ == "__main__":
    run_program(main)
