"""Make the miniature's bases: a tokenizer, a vision encoder and a language model, as ordinary `transformers` folders.

Real models start from published bases; the miniature pretrains its own in a minute, so that the whole graph runs
without a download. Each base is a folder with a `manifest.json` that names the hash of every file.

    python -m scripts.pretrain tokenizer --world '{}' --settings '{}' --out bases/miniature/tokenizer
    python -m scripts.pretrain vision    --world '{}' --settings '{}' --split split --out bases/miniature/vision
    python -m scripts.pretrain language  --world '{}' --settings '{}' --tokenizer ... --out bases/miniature/language
"""

import argparse
import os
import sys
from pathlib import Path

from scripts.common.cli import load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import file_sha256, read_table, write_json
from scripts.config.base import Section
from scripts.config.miniature import MiniatureConfig
from scripts.config.pretrain import PretrainLanguageConfig, PretrainTokenizerConfig, PretrainVisionConfig

SECTIONS: dict[str, type[Section]] = {
    "tokenizer": PretrainTokenizerConfig,
    "vision": PretrainVisionConfig,
    "language": PretrainLanguageConfig,
}


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("part", choices=SECTIONS, help="which base to make")
    arguments.add_argument("--world", required=True, metavar="JSON", help="the miniature's settings")
    arguments.add_argument("--settings", required=True, metavar="JSON", help="the settings of this base")
    arguments.add_argument(
        "--split", type=Path, metavar="DIR", help="vision: folder with heldout.parquet, whose images are left out"
    )
    arguments.add_argument("--tokenizer", type=Path, metavar="DIR", help="language: folder of the tokenizer")
    arguments.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    options = arguments.parse_args()
    world = load_settings(MiniatureConfig, options.world)
    settings = load_settings(SECTIONS[options.part], options.settings)
    # One thread, set before torch is loaded: sums over another number of threads have other last digits.
    os.environ["OMP_NUM_THREADS"] = "1"
    options.out.mkdir(parents=True, exist_ok=True)
    facts = _make(settings, world, options)
    files = {path.name: file_sha256(path) for path in sorted(options.out.iterdir()) if _belongs(path)}
    write_json(options.out / "manifest.json", {"v": 1, "part": options.part, "files": files, "facts": facts})
    print(f"{options.part}: {', '.join(f'{key} {value}' for key, value in facts.items()) or 'made'}", file=sys.stderr)


def _make(settings: Section, world: MiniatureConfig, options: argparse.Namespace) -> dict[str, float]:
    """Make the base that `settings` are for; return what its manifest reports of it."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if isinstance(settings, PretrainTokenizerConfig):
        from scripts.pretraining.tokenizer import make_tokenizer

        make_tokenizer(settings, world, options.out)
        return {}
    if isinstance(settings, PretrainVisionConfig):
        from scripts.pretraining.vision import make_vision

        return make_vision(settings, world, _heldout(options.split), options.out)
    if options.tokenizer is None:
        raise UserError("pretrain language needs --tokenizer: the folder that `pretrain tokenizer` wrote")
    from scripts.pretraining.language import make_language

    if not isinstance(settings, PretrainLanguageConfig):
        raise TypeError(f"no base is made from {type(settings).__name__}")
    return make_language(settings, world, options.tokenizer, options.out)


def _heldout(split: Path | None) -> set[str]:
    """sha256 of the images that are kept for evaluation."""
    if split is None:
        raise UserError("pretrain vision needs --split: the folder that `holdout` wrote")
    return set(read_table(split / "heldout.parquet", columns=["sha256"])["sha256"].to_pylist())


def _belongs(path: Path) -> bool:
    return path.is_file() and path.name != "manifest.json" and not path.name.startswith(".")


if __name__ == "__main__":
    run_program(main)
