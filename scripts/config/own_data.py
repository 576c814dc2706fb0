"""A short configuration of own data, completed: what it leaves out is taken from a recipe.

    custom:
      pets:
        folder: data/pets

is a whole configuration, with the miniature's tiny model of `recipes/own-data.yaml`. With two names more,

    models:
      mine: {vision: google/siglip2-base-patch16-224, language: HuggingFaceTB/SmolLM2-135M-Instruct}

it is one of a real model, in the stages of `recipes/own-real.yaml`. The recipe gives the sections that are missing; its
blends hold all custom datasets, and those of replay where the recipe has them too. What the recipe's entries refer to
follows the entries that the configuration itself has.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from scripts.common.errors import UserError

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
MINIATURE_RECIPE, REAL_RECIPE = "own-data.yaml", "own-real.yaml"
_NEEDED = ("blends", "models", "runs")
"""Sections that make a configuration complete."""
_SUITABLE = ("tokens", *_NEEDED, "replay", "pretrain", "evaluate")
"""Sections that are taken from the recipe."""
_REFERENCES = (
    ("blends", "tokens", "tokens"),
    ("models", "tokens", "tokens"),
    ("replay", "model", "models"),
    ("runs", "model", "models"),
    ("runs", "blend", "blends"),
)
"""(section, key of its entries, section whose entry it names)."""


def completed(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """`config` with the sections that it lacks, if it has custom datasets; else as it is.

    Its name is that of the first custom dataset and its results folder `results-<name>`, where it gives none. Also
    returns the recipe of every section that was taken from one.

    Raises:
        UserError: it leaves out the runs and has several models, of which the recipe would train one.
    """
    custom = config.get("custom")
    missing = [section for section in _NEEDED if section not in config]
    if not isinstance(custom, Mapping) or not custom:
        return dict(config), {}
    if not missing:
        return _named(config, custom), {}
    if "runs" in missing:
        _check_one_model(_names(config.get("models")))
    name = REAL_RECIPE if _has_real_decoder(config.get("models")) else MINIATURE_RECIPE
    recipe = yaml.safe_load((RECIPES / name).read_text(encoding="utf-8"))
    filled = [section for section in _SUITABLE if section in recipe and section not in config]
    if "models" not in missing and "tokens" in filled:
        filled.remove("tokens")  # they are derived from the models
    if "blends" not in missing and "replay" in filled:
        filled.remove("replay")  # no blend would read it
    whole = {section: recipe[section] for section in filled} | dict(config)
    sources = dict.fromkeys(filled, name)
    if name == REAL_RECIPE and "runs" in filled and "models" not in missing:
        whole["models"], keys = _with_projector(config["models"], recipe["models"])
        sources |= dict.fromkeys(keys, name)
    whole = _named(whole, custom)
    if "blends" in missing:
        for blend in whole["blends"].values():
            # A blend of the recipe that has none of its replay is to have none.
            mixes = "replay" not in recipe or not set(recipe["replay"]).isdisjoint(blend["datasets"])
            replay = {entry: blend["datasets"].get(entry, {}) for entry in _names(whole.get("replay")) if mixes}
            # All of the configuration's own datasets are sampled as the recipe samples its own.
            sampling = next(entry for own, entry in blend["datasets"].items() if own in recipe["custom"])
            blend["datasets"] = {entry: dict(sampling) for entry in custom} | replay
    _refer_to_entries(whole, filled)
    return whole, sources


def _check_one_model(models: list[str]) -> None:
    if len(models) > 1:
        raise UserError(
            f"models: there are {len(models)} ({', '.join(models)}), but the runs that a configuration without `runs` "
            "gets train one; leave the others out, or write `runs`"
        )


def _refer_to_entries(whole: dict[str, Any], filled: Collection[str]) -> None:
    """Let the sections `filled` from a recipe name entries that there are."""
    for section, key, named in _REFERENCES:
        if section not in filled:
            continue
        for entry in whole[section].values():
            if key in entry and entry[key] not in (known := _names(whole.get(named))):
                if known:
                    entry[key] = known[0]
                else:
                    del entry[key]  # derived


def _named(config: Mapping[str, Any], custom: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with a name and a results folder."""
    name = config.get("name", str(next(iter(custom))))
    return {"name": name, "results": f"results-{name}", **config}


def _with_projector(models: Any, recipe: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """`models`, with the projector of the recipe's model where none is named, and the keys that this has added.

    The runs of the recipe are written for that projector.
    """
    if not isinstance(models, Mapping):
        return models, []
    projector = next(iter(recipe.values()))["projector"]
    result, keys = dict(models), []
    for name, entry in models.items():
        if isinstance(entry, Mapping) and "projector" not in entry:
            result[name] = dict(entry) | {"projector": projector}
            keys.append(f"models.{name}.projector")
    return result, keys


def _names(section: Any) -> list[str]:
    return list(section) if isinstance(section, Mapping) else []


def _has_real_decoder(models: Any) -> bool:
    """Whether some model has a decoder that the graph does not make."""
    entries = models.values() if isinstance(models, Mapping) else ()
    return any(isinstance(entry, Mapping) and entry.get("language") not in (None, "miniature") for entry in entries)
