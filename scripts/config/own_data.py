"""A short configuration of own data, completed: what it leaves out is taken from `recipes/own-data.yaml`.

    custom:
      pets:
        folder: data/pets

is a whole configuration. The recipe gives the sections that are missing; the blend holds all custom datasets, and what
the recipe's entries refer to follows the entries that the configuration itself has.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "own-data.yaml"
_NEEDED = ("tokens", "blends", "models", "runs")
_SUITABLE = (*_NEEDED, "pretrain", "evaluate")
"""Sections that are taken from the recipe; the first ones make a configuration complete."""
_REFERENCES = (
    ("blends", "tokens", "tokens"),
    ("models", "tokens", "tokens"),
    ("runs", "model", "models"),
    ("runs", "blend", "blends"),
)
"""(section, key of its entries, section whose entry it names)."""


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the sections that it lacks, if it has custom datasets; else as it is.

    Its name is that of the first custom dataset and its results folder `results-<name>`, where it gives none.
    """
    custom = config.get("custom")
    missing = [section for section in _NEEDED if section not in config]
    if not isinstance(custom, Mapping) or not custom or not missing:
        return dict(config)
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    whole = {section: recipe[section] for section in _SUITABLE} | dict(config)
    whole.setdefault("name", str(next(iter(custom))))
    whole.setdefault("results", f"results-{whole['name']}")
    if "blends" in missing:
        for blend in whole["blends"].values():
            blend["datasets"] = {name: {} for name in custom}
    for section, key, named in _REFERENCES:
        if section in missing and isinstance(whole[named], Mapping) and whole[named]:
            for entry in whole[section].values():
                if entry[key] not in whole[named]:
                    entry[key] = next(iter(whole[named]))
    return whole
