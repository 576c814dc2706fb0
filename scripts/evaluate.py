"""Ask a trained model questions about images it has never seen, and count.

Reads   exported checkpoints, a held-out blend, kinds of questions, suites (dialogues of the original, task files)
Writes  OUT/heldout/<checkpoint>.{jsonl,csv,json}   every held-out question with its answer, and the numbers
        OUT/<suite>/<checkpoint>.{jsonl,csv,json}   every turn of a suite, and its metrics
        OUT/metrics.json                            all numbers, and checkpoints compared, written last

Held-out conversations give the loss per supervised token and the share of exactly right answers per kind of question,
each with an interval, beside chance (the commonest answer) and beside the same model with blanked images. An evaluation
that was stopped goes on where it was: answers are kept in OUT/.journal as they come.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

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
    args = arguments().parse_args()
    settings = load_settings(EvaluationConfig, args.settings)
    models = checkpoints_of(args.model, settings.checkpoints)
    # Everything that a person may have got wrong is read before the model is loaded.
    allowed = {"allow_outside": args.allow_outside, "allow_code": args.allow_code or settings.allow_code}
    suites = {name: read_suite(path, args.image_root, **allowed) for name, path in suite_paths(args.suite).items()}
    kinds = read_kinds(args.kinds) if args.kinds else []
    blend = BlendReader(args.heldout, args.root) if args.heldout else []
    if args.heldout and not len(blend):
        print("the held-out blend is empty: there will be suites, but no held-out scores", file=sys.stderr)

    # Late, so that --help and bad input answer at once.
    from scripts.evaluation.checkpoint_evaluation import CheckpointEvaluation, versions

    checkpoints: dict[str, dict] = {}
    turns: dict[str, dict] = {name: {} for name in suites}
    for name, folder in models.items():
        evaluation = CheckpointEvaluation(name, folder, settings, args.out)
        heldout = evaluation.heldout(blend, kinds)
        scores = {}
        for suite, content in suites.items():
            scores[suite], turns[suite][name] = evaluation.suite(suite, content)
        checkpoints[name] = {"checkpoint": evaluation.sha256, "heldout": heldout, "suites": scores}
        evaluation.journal.prune()
    metrics = {
        "v": 1,
        "run": args.name,
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
        "inputs": {
            "heldout_plan": blend.plan if len(blend) else None,
            "suites": {name: dict(suite.files) for name, suite in suites.items()},
        },
        "checkpoints": checkpoints,
        "compared": {
            name: compared(content.metrics, turns[name], settings.confidence) for name, content in suites.items()
        },
    }
    write_json(args.out / METRICS_FILE, metrics)
    print("\n".join(result_lines(metrics)), file=sys.stderr)


def arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument("--name", required=True, help="name of the run")
    result.add_argument("--settings", default="{}", metavar="JSON", help="section `evaluate` (JSON, or @file)")
    folder = {"type": Path, "metavar": "FOLDER"}
    models = {"action": "append", "required": True, "metavar": "[NAME=]FOLDER"}
    result.add_argument("--model", **models, help="exported/RUN, or a model's folder; several with a name each")
    result.add_argument("--heldout", **folder, help="held-out part of a blend")
    result.add_argument("--root", **folder, help="results root, where image references begin")
    result.add_argument("--kinds", type=Path, metavar="FILE", help="kinds of questions; else every dataset is a kind")
    result.add_argument("--suite", action="append", default=[], metavar="NAME=FILE", help="suite, repeatable")
    result.add_argument("--image-root", **folder, help="where image paths of suites begin (default: beside the suite)")
    result.add_argument("--allow-outside", action="store_true", help="suites may name images outside of that folder")
    result.add_argument("--allow-code", action="store_true", help="task files may run the Python functions they name")
    result.add_argument("--out", **folder, required=True, help="evaluate/RUN")
    return result


def checkpoints_of(values: Sequence[str], names: Iterable[str]) -> dict[str, Path]:
    """The models' folders by name: the wanted checkpoints of an export, or one folder that is a model and counts as
    final, or several with a name each.

    Raises:
        UserError: several folders of which one has no name, or a name that comes twice or is not fit for a file.
    """
    found: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals and len(values) == 1:
            folder = Path(value)
            is_model = (folder / "config.json").is_file()
            return {"final": folder} if is_model else {name: folder / name for name in names}
        if not path or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name in found:
            raise UserError(f"--model {value}: of several models, each needs a name of its own: NAME=FOLDER")
        found[name] = Path(path)
    return found


def compared(wanted: Sequence[MetricSpec], turns: Mapping[str, Sequence[Turn]], confidence: float) -> dict[str, dict]:
    """Every later checkpoint against the first one, "later - first", by metric."""
    first, *others = turns
    return {f"{other} - {first}": compare(turns[other], turns[first], wanted, confidence) for other in others}


if __name__ == "__main__":
    run_program(main)
