"""Print the results of a workflow: held-out scores with the chance level, the report, and the commands to chat.

Reads the files below the results root.
"""

import shlex
import sys
from pathlib import Path

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import read_json
from scripts.evaluation.results import METRICS_FILE
from scripts.evaluation.text_summary import result_lines

DEFAULT = "config.yaml"


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--root", type=Path, default=Path("results"), metavar="FOLDER", help="results root")
    arguments.add_argument("--config", default=DEFAULT, metavar="FILE", help="the configuration of the root")
    args = arguments.parse_args()
    print("\n".join(summary_lines(args.root, args.config)))


def summary_lines(root: Path, config: str = DEFAULT) -> list[str]:
    """The lines to print.

    Raises:
        UserError: no run has been evaluated below `root`.
    """
    paths = sorted((root / "evaluate").glob(f"*/{METRICS_FILE}"))
    if not paths:
        raise UserError(f"nothing has been evaluated in {root} yet: run snakemake first")
    lines = ["", "Scores on conversations that were held out from training"]
    for path in paths:
        lines += [f"  {line}" for line in result_lines(read_json(path))]
    if (root / "report.html").is_file():
        lines += ["", "Look at the report", f"  {root / 'report.html'}"]
    models = [root / "exported" / path.parent.name / "final" for path in paths]
    models = [model for model in models if (model / "config.json").is_file()]
    for model in models:
        lines += ["", f"Chat with {model.parent.name} in the terminal", f"  {_chat(model, root)}"]
    if models:
        # Last, because it is the recommended next step.
        lines += ["", "Chat in the browser", f"  {_serve(config)}"]
    return lines


def _serve(config: str) -> str:
    """The command that starts the chat page with the model exported last."""
    return "make chat" if config == DEFAULT else shlex.join(["make", "chat", f"CONFIG={config}"])


def _chat(model: Path, root: Path) -> str:
    """The command that starts a chat, with a first image if the root has images of the miniature."""
    images = sorted((root / "raw/miniature/dialogues/images").glob("*"))
    image = ["--image", str(images[0])] if images else []
    return shlex.join([sys.executable, "-m", "scripts.chat", "--model", str(model), *image])


if __name__ == "__main__":
    run_program(main)
