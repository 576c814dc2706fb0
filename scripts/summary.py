"""Say how it went: the report, the held-out scores beside chance, and how to talk with the model just trained.

Reads what the workflow left below the results root; prints nothing but these lines.
"""

import shlex
import sys
from pathlib import Path

from scripts.common.errors import UserError, run_program
from scripts.common.files import read_json
from scripts.common.program import parser
from scripts.evaluation.results import METRICS
from scripts.evaluation.summary import result_lines


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--root", type=Path, default=Path("results"), metavar="FOLDER", help="results root")
    root = arguments.parse_args().root
    print("\n".join(summary_lines(root)))


def summary_lines(root: Path) -> list[str]:
    """The lines to print.

    Raises:
        UserError: no run has been evaluated below `root`.
    """
    paths = sorted((root / "evaluate").glob(f"*/{METRICS}"))
    if not paths:
        raise UserError(f"nothing has been evaluated in {root} yet: run snakemake first")
    lines = ["", "Exact answers about images that no training conversation shows"]
    for path in paths:
        lines += [f"  {line}" for line in result_lines(read_json(path))]
    if (root / "report.html").is_file():
        lines += ["", "Look at the report", f"  {root / 'report.html'}"]
    for path in paths:
        model = root / "exported" / path.parent.name / "final"
        if (model / "config.json").is_file():
            lines += ["", f"Talk with {path.parent.name}", f"  {_chat(model, root)}"]
    return lines


def _chat(model: Path, root: Path) -> str:
    """The command that starts a chat, with an image to begin with where the miniature has drawn some."""
    drawn = sorted((root / "raw/miniature/dialogues/images").glob("*"))
    image = ["--image", str(drawn[0])] if drawn else []
    return shlex.join([sys.executable, "-m", "scripts.chat", "--model", str(model), *image])


if __name__ == "__main__":
    run_program(main)
