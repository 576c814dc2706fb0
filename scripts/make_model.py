"""Build a model from a vision encoder, a language model and a new projector.

    reads   the folders of the bases (or their names on the hub)
    writes  <out>/: config.json, processor and tokenizer, projector.safetensors, and manifest.json last

The weights of the bases are referred to by path and hash, not copied.
"""

from pathlib import Path

from scripts.common.cli import load_settings, parser
from scripts.common.errors import run_program
from scripts.config.model import ModelConfig
from scripts.config.tokens import CompleteTokensConfig


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--settings", required=True, help="section `models.<name>` as JSON, or @file")
    arguments.add_argument("--tokens", required=True, help="the section of `tokens` that it names, as JSON, or @file")
    for kind, text in (("vision", "vision encoder"), ("language", "language model"), ("tokenizer", "tokenizer")):
        arguments.add_argument(f"--{kind}", required=True, help=f"folder or hub name of the {text}")
    arguments.add_argument(
        "--root", required=True, type=Path, help="results root; paths of bases below it are stored relative to it"
    )
    arguments.add_argument("--out", required=True, type=Path, help="folder to write: models/<model>")
    args = arguments.parse_args()
    settings, tokens = load_settings(ModelConfig, args.settings), load_settings(CompleteTokensConfig, args.tokens)
    # Imported late, so that --help and errors in settings appear at once.
    from transformers.utils import logging

    from scripts.inference.model_assembly import make_model

    logging.disable_progress_bar()
    bases = {"vision": args.vision, "language": args.language, "tokenizer": args.tokenizer}
    make_model(settings, tokens, bases, args.root, args.out)


if __name__ == "__main__":
    run_program(main)
