"""Look at your own data before anything is built from it: what is read, what would be lost, and a recipe to start with.

Reads the first thousand rows of PATH (a file of rows, a folder, an archive, or a pattern of files in quotes) and the
list of its images, with the code that converts them in the graph. Shows the recognised form and members, what would be
lost and how to mend it, the length of conversations, and ten of them as they are trained on.

Writes  NAME.yaml   a recipe that trains on the data; --recipe gives it another path
        --html      the same as a page, with the images
"""

import argparse
import shlex
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from model.template import Template
from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.config.custom import ColumnsConfig
from scripts.config.settings import load
from scripts.config.tokens import CHAT, TemplateTexts, TokensConfig
from scripts.inspection.inspecting import Limit, Reading, custom_section, dataset_name, inspect
from scripts.inspection.recipe import recipe, write_recipe
from scripts.inspection.terminal import as_text

_ROWS, _SHOWN = 1000, 10


def main() -> None:
    """Run the program."""
    args = _arguments().parse_args()
    name = args.name or dataset_name(args.path)
    more: dict[str, Any] = {}
    if args.columns:
        more["columns"] = _columns(args.columns)
    if args.entry:
        more["entry"] = args.entry
    config = custom_section(args.path, args.images, **more)
    survey = inspect(str(args.path), name, config, _reading(args), args.rows, args.conversations)
    path = args.recipe or Path(f"{name}.yaml")
    text = recipe(name, survey.config, str(path), survey.lost_share)
    usable = survey.lost < survey.rows
    if usable:
        write_recipe(path, text, args.force)
    if args.html:
        from scripts.inspection.page import write_page

        write_page(survey, text if usable else "", args.html)
    print(as_text(survey, args.conversations))
    print(f"\nwrote {args.html}" if args.html else "")
    if usable:
        print(f"wrote {path}. Next: snakemake --cores all data --configfile {shlex.quote(str(path))}")
    else:
        raise UserError("no row can be used, so no recipe was written; the reasons are above")


def _columns(text: str) -> ColumnsConfig:
    """`columns` as a configuration has them, as YAML or JSON, perhaps in the file after "@".

    Raises:
        UserError: it is not YAML, or not valid.
    """
    example = "expected, for example, --columns '{question: ask, answer: reply}'"
    try:
        given = yaml.safe_load(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except yaml.YAMLError as error:
        raise UserError(f"--columns is not valid YAML: {' '.join(str(error).split())}; {example}") from None
    if isinstance(given, dict) and list(given) == ["columns"]:
        given = given["columns"]
    try:
        return ColumnsConfig.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors())
        raise UserError(f"--columns: {problems}; {example}") from None


def _reading(args: argparse.Namespace) -> Reading:
    """How conversations become tokens, as the options and the recipe say."""
    settings = load({"custom": {"data": {"folder": "."}}})
    ((blend_name, blend),) = settings.blends.items()
    tokens = settings.tokens[blend.tokens]
    tokens = TokensConfig(
        tokenizer=args.tokenizer or tokens.tokenizer,
        image_tokens=args.image_tokens or tokens.image_tokens,
        template=args.template or tokens.template,
    )
    limits = (
        Limit(blend.sequence, "tokens", f"blends.{blend_name}.sequence"),
        Limit(blend.max_images, "images", f"blends.{blend_name}.max_images"),
    )
    if args.tokenizer is None:
        if not isinstance(tokens.template, TemplateTexts):
            if tokens.template == CHAT:
                raise UserError("--template chat needs --tokenizer, whose chat template it is")
            return Reading(Template(), tokens.image_tokens, *limits)
        return Reading(tokens.template.template(), tokens.image_tokens, *limits)
    from scripts.blending.tokens_identity import load_tokenizer, template_of

    tokenizer = load_tokenizer(args.tokenizer)
    return Reading(template_of(tokens, tokenizer), tokens.image_tokens, *limits, tokenizer, args.tokenizer)


def _arguments() -> argparse.ArgumentParser:
    """The command line."""
    result = parser(__doc__)
    add = result.add_argument
    add("path", type=Path, metavar="PATH", help="file of rows, folder, archive, or a pattern of files in quotes")
    add(
        "--images",
        action="append",
        default=[],
        metavar="PATH",
        help="folder or archive of images below the folder of PATH; repeatable",
    )
    add(
        "--columns",
        metavar="YAML",
        help="what the members of a row mean, as `columns` in a configuration (YAML, or @file)",
    )
    add("--entry", help="entry of dataset_info.json in PATH")
    add("--name", help="of the dataset in the recipe (default: after PATH)")
    add("--rows", type=int, default=_ROWS, help="rows to read (default: %(default)s)")
    add("--conversations", type=int, default=_SHOWN, help="conversations to show (default: %(default)s)")
    add(
        "--tokenizer",
        metavar="NAME",
        help="folder or hub name of a tokenizer, to count tokens (default: they are estimated)",
    )
    add("--template", choices=("paper", "chat"), help="prompt template (default: that of recipes/own-data.yaml)")
    add("--image-tokens", type=int, help="tokens of an image (default: those of recipes/own-data.yaml)")
    add("--recipe", type=Path, metavar="FILE", help="recipe to write (default: NAME.yaml)")
    add("--force", action="store_true", help="replace a recipe that exists")
    add("--html", type=Path, metavar="FILE", help="page to write")
    return result


if __name__ == "__main__":
    run_program(main)
