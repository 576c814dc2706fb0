"""The recipe that `inspect_data` writes: the shortest configuration that trains on what was inspected."""

import math
from pathlib import Path

import yaml

from scripts.common.errors import UserError
from scripts.common.files import atomic
from scripts.config.custom import CustomDatasetConfig
from scripts.config.tolerance import OWN

_ORDER = ("folder", "files", "entry", "images", "columns", "split")


def recipe(name: str, config: CustomDatasetConfig, path: str, lost: float = 0.0) -> str:
    """The configuration as YAML: `custom.<name>` alone, because everything else has defaults.

    Where more rows are lost than the default allows, a `tolerance` is added, so that the recipe runs as it is.

    Args:
        name: of the dataset.
        config: its section.
        path: of this recipe, for the commands in its comments.
        lost: share of the rows that cannot be used.
    """
    given = config.model_dump(mode="json", exclude_defaults=True)
    section = {key: given[key] for key in sorted(given, key=lambda key: (*_ORDER, key).index(key))}
    # Lists and the columns on one line each, so that the whole fits into five.
    body = yaml.safe_dump(
        {"custom": {name: section}}, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=None
    )
    return f"""# {config.folder} as training data. What is not written here is taken from recipes/own-data.yaml,
# whose model trains in a minute on a laptop; docs/configuration.md lists all keys.
#
#     snakemake --cores all data --configfile {path}
#     snakemake --cores all --configfile {path}
#
# The first command converts the data: look at results-{name}/blend/mine/preview.html. The second one
# also trains, evaluates and writes results-{name}/report.html.
#
# To train a real model, add the names of an encoder and of a decoder (folders, or names on the hub);
# the rest is taken from recipes/own-real.yaml and derived from the two models:
# python -m scripts.settings --explain {path}
#
#     models:
#       mine: {{vision: google/siglip2-base-patch16-224, language: HuggingFaceTB/SmolLM2-135M-Instruct}}

{body}{_tolerance(lost)}"""


def _tolerance(lost: float) -> str:
    if lost <= OWN:
        return ""
    # Rows that were not inspected may lose a little more.
    allowed = min(1.0, math.ceil(20 * lost + 1) / 20)
    return f"""
# {lost:.1%} of the rows that were inspected cannot be used. Mend them and remove these lines; then
# more than {OWN:.0%} stop the build again.
tolerance: {{rows: {allowed:g}}}
"""


def write_recipe(path: Path, text: str, replace: bool) -> None:
    """Write a recipe.

    Raises:
        UserError: there is another file of this name, and it is not to be replaced.
    """
    if path.exists() and not replace and path.read_text(encoding="utf-8", errors="replace") != text:
        raise UserError(f"{path} exists and is another configuration: give --recipe another name, or add --force")
    with atomic(path, "w") as file:
        file.write(text)
