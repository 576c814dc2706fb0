"""Compare what a trained model says to text with what it said before training.

    reads   models/<model>, the exported model, and the held-out part of its blend
    writes  <out>: prompts with the answers before and after training, their likelihoods under both models, and the
            drift (KL divergence per token) on these answers and on the text of held-out conversations

The answers before training are kept in --cache, so that they are computed once for all runs of a model.
"""

import argparse
import sys
from pathlib import Path

from scripts.common.cli import parser
from scripts.common.errors import run_program
from scripts.common.files import write_json
from scripts.inference.blend_reader import BlendReader

ANSWERS = ".text_answers"
"""Folder of the answers after training, beside the result."""


def main() -> None:
    """Run the program."""
    args = arguments().parse_args()
    blend = BlendReader(args.heldout, args.root) if args.heldout else None
    # Imported late, so that --help and errors in the input need not wait for torch.
    from scripts.evaluation.forgetting import Forgetting
    from scripts.evaluation.forgetting_summary import summary_line

    forgetting = Forgetting(
        args.model,
        args.exported,
        args.root,
        cache=args.cache,
        answers_after=args.out.parent / ANSWERS,
        device=args.device,
        threads=args.threads,
        confidence=args.confidence,
    )
    result = forgetting.compare(args.name, blend, args.without, args.max_new_tokens)
    write_json(args.out, result)
    print(summary_line(result), file=sys.stderr)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    result = parser(__doc__)
    add = result.add_argument
    add("--name", required=True, help="name of the run")
    add("--model", required=True, type=Path, metavar="FOLDER", help="models/MODEL, before training")
    add("--exported", required=True, type=Path, metavar="FOLDER", help="exported/RUN/final, after training")
    add("--heldout", type=Path, metavar="FOLDER", help="held-out part of a blend, whose texts are read")
    help_without = "datasets of the blend that are not read: those of replay, which are the model's own words"
    add("--without", nargs="*", default=[], metavar="DATASET", help=help_without)
    add("--root", required=True, type=Path, metavar="FOLDER", help="results root")
    add("--cache", required=True, type=Path, metavar="FOLDER", help="folder of the answers before training")
    add("--max-new-tokens", type=int, default=96, help="most tokens of an answer (default: %(default)s)")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: the first GPU if there is one")
    add("--threads", type=int, default=1, help="CPU threads (default: 1)")
    add("--confidence", type=float, default=0.95, help="of intervals (default: %(default)s)")
    add("--out", required=True, type=Path, metavar="FILE", help="evaluate/RUN/forgetting.json")
    return result


if __name__ == "__main__":
    run_program(main)
