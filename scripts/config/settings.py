"""The whole configuration, typed: what `config.yaml` and the recipes may say, with defaults, checked before anything
runs.

It composes the sections that the programs read one at a time (`scripts/config/`). The Snakefile loads a configuration
through `load`; `python -m scripts.settings --write` writes the JSON schema and the reference page from the same source,
and a test fails when they drift. Programs never import this module, or every step would depend on the settings of every
other.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from scripts.common.errors import UserError
from scripts.config.base import Section
from scripts.config.blend import BlendConfig
from scripts.config.custom import CustomDatasetConfig
from scripts.config.evaluate import EvaluationConfig
from scripts.config.holdout import HoldoutConfig
from scripts.config.licences import LicencesConfig
from scripts.config.miniature import MiniatureConfig
from scripts.config.model import ModelConfig
from scripts.config.pretrain import PretrainConfig
from scripts.config.registry import REGISTRY, Registry, custom_dataset, custom_source
from scripts.config.run import RunConfig
from scripts.config.subset import SubsetConfig
from scripts.config.tokens import TokensConfig
from scripts.config.tolerance import ToleranceConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]


class MediaConfig(Section):
    """How the images of one source are stored."""

    shards: Annotated[int, Field(ge=1, le=99999)] = 1
    """Number of tar shards. Aim at 256 to 512 MB each (COCO: 64); fixed here so that file names are known
    beforehand."""


class Settings(Section):
    """A complete configuration. A recipe replaces the default one as a whole."""

    name: Name
    """What this configuration is called. A results folder belongs to one name and refuses another."""
    results: str = "results"
    """Folder of everything that is made. Each configuration has its own; to move it, use a symlink or `--directory`."""
    data_path: str | None = None
    """Folder with the raw datasets as users of the original have them. Empty: the miniature world is drawn instead."""
    download: Literal["never", "missing"] = "never"
    """`missing`: what is not below `data_path` is fetched into it from where it is published (COCO alone has 20 GB; see
    `subset`). `never`: it is named, with what to do. VISUALCHAT_OFFLINE=1 keeps any run from reaching out."""
    subset: SubsetConfig | None = None
    """Use only what is said about a few hundred images, instead of everything."""
    custom: dict[Name, CustomDatasetConfig] = {}
    """Datasets of your own, which blends may name beside the published ones."""
    miniature: MiniatureConfig = MiniatureConfig()
    """The world that is drawn where there is no `data_path`."""
    pretrain: PretrainConfig = PretrainConfig()
    """How the miniature's tokenizer, vision encoder and language model are made."""
    media: dict[str, MediaConfig] = {}
    """Per image source, how it is stored."""
    licences: LicencesConfig = LicencesConfig()
    """Which terms of use are acceptable."""
    tolerance: ToleranceConfig = ToleranceConfig()
    """How much of the raw data may be unusable."""
    holdout: HoldoutConfig = HoldoutConfig()
    """Which images are kept for evaluation."""
    tokens: dict[Name, TokensConfig]
    """Ways to turn conversations into tokens: a tokenizer, a prompt template and the tokens per image."""
    blends: dict[Name, BlendConfig]
    """Mixtures of datasets: what is trained on, in which order."""
    models: dict[Name, ModelConfig]
    """Models before training."""
    runs: dict[Name, RunConfig]
    """Training runs. `extends: other` takes the settings of another run and changes only what is written beside it."""
    evaluate: EvaluationConfig = EvaluationConfig()
    """How the trained models are judged."""
    suites: dict[Name, str] = {}
    """Evaluation suites: dialogues in the original's JSON form, or task files (YAML, docs/evaluation.md). `miniature`
    are the dialogues drawn with the world, `miniature/choices` and `miniature/orders` its task files."""

    def registry(self) -> Registry:
        """The published sources and datasets, and the user's own."""
        return REGISTRY.with_more(
            (custom_source(name, own) for name, own in self.custom.items()),
            (custom_dataset(name, own) for name, own in self.custom.items()),
        )

    def datasets(self) -> list[str]:
        """Datasets whose records some blend needs, in the registry's order."""
        needed = {name for blend in self.blends.values() for name in blend.records()}
        return [name for name in self.registry().datasets if name in needed]


def load(config: Mapping[str, Any]) -> Settings:
    """Validate a parsed configuration.

    Raises:
        UserError: unknown keys or names (with the nearest known one), values of the wrong kind, references to nothing;
        every
            problem is listed with its place.
    """
    config = dict(config)
    if isinstance(config.get("runs"), Mapping):
        config["runs"] = {name: _resolve_like(config["runs"], name) for name in config["runs"]}
    try:
        settings = Settings.model_validate(config)
    except ValidationError as error:
        problems = [_problem(detail) for detail in error.errors()]
        raise UserError("the configuration is not usable:\n  " + "\n  ".join(problems)) from None
    problems = _dangling(settings)
    if problems:
        raise UserError("the configuration is not usable:\n  " + "\n  ".join(problems))
    return settings


def _resolve_like(runs: Mapping[str, Any], name: str, seen: tuple[str, ...] = ()) -> Any:
    run = runs[name]
    if not isinstance(run, Mapping) or "extends" not in run:
        return run
    parent = run["extends"]
    if parent in (*seen, name):
        raise UserError(f"runs.{name}.extends: the runs {', '.join((*seen, name))} name each other in a circle")
    if parent not in runs:
        raise UserError(f"runs.{name}.extends: there is no run {parent!r}{_nearest(parent, runs)}")
    own = {key: value for key, value in run.items() if key != "extends"}
    return dict(_resolve_like(runs, parent, (*seen, name))) | own


def _problem(detail: Mapping[str, Any]) -> str:
    place = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden":
        return f"{'.'.join(place)}: unknown key{_nearest(place[-1], _keys_at(place[:-1]))}"
    if detail["type"] == "missing":
        return f"{'.'.join(place)}: is required"
    return f"{'.'.join(place)}: {detail['msg']} (it is {detail['input']!r})"


def _keys_at(place: list[str]) -> list[str]:
    """The keys that a section knows, found by following `place` through the typed sections."""
    section: Any = Settings
    for part in place:
        field = getattr(section, "model_fields", {}).get(part)
        if field is not None:
            section = field.annotation
        arguments = [a for a in getattr(section, "__args__", ()) if a is not type(None)]
        if arguments and field is None or getattr(section, "__origin__", None) is not dict and arguments:
            section = arguments[-1]
    return list(getattr(section, "model_fields", {}))


def _nearest(word: str, known) -> str:
    found = difflib.get_close_matches(str(word), [str(k) for k in known], n=1)
    return f"; did you mean {found[0]!r}?" if found else f"; known: {', '.join(map(str, known))}" if known else ""


def _dangling(settings: Settings) -> list[str]:
    """References between sections that lead nowhere, and combinations that cannot work."""
    problems = []

    def check(place: str, word: str, known) -> None:
        if word not in known:
            problems.append(f"{place}: there is no {word!r}{_nearest(word, known)}")

    registry = settings.registry()
    for name in settings.custom:
        if name in REGISTRY.sources or name in REGISTRY.datasets:
            problems.append(f"custom.{name}: this is the name of a published source or dataset; choose another")
    for source in settings.media:
        check(f"media.{source}", source, registry.sources)
    for name, blend in settings.blends.items():
        check(f"blends.{name}.tokens", blend.tokens, settings.tokens)
        for dataset in blend.datasets:
            problems += _unusable(f"blends.{name}.datasets", dataset, blend, registry)
            known = [part for part in blend.component_datasets(dataset) if part in registry.datasets]
            terms = {term for part in known for term in registry.terms_of(part)}
            if bad := settings.licences.objections(terms):
                problems.append(
                    f"blends.{name}.datasets: {dataset} is under {', '.join(bad)}, which `licences` does not accept; "
                    "take it out of the blend, or accept its terms"
                )
    for name, model in settings.models.items():
        check(f"models.{name}.tokens", model.tokens, settings.tokens)
    for name, run in settings.runs.items():
        check(f"runs.{name}.model", run.model, settings.models)
        check(f"runs.{name}.blend", run.blend, settings.blends)
        if run.model in settings.models and run.blend in settings.blends:
            of_model, of_blend = settings.models[run.model].tokens, settings.blends[run.blend].tokens
            if of_model != of_blend:
                problems.append(
                    f"runs.{name}: model {run.model!r} counts tokens as {of_model!r}, blend {run.blend!r} as "
                    f"{of_blend!r}; they must name the same entry of `tokens`"
                )
    if settings.download == "missing" and not settings.data_path:
        problems.append("download: needs a `data_path`, the folder to fetch into")
    drawn = [path for path in settings.suites.values() if path.split("/")[0] == "miniature"]
    if settings.data_path and drawn:
        problems.append(f"suites: the suite {drawn[0]!r} exists only where the miniature is drawn (no data_path)")
    return problems


def _unusable(place: str, entry: str, blend: BlendConfig, registry: Registry) -> list[str]:
    """What is wrong with the datasets that an entry of a blend names."""
    join, with_records = blend.datasets[entry].join, [name for name, d in registry.datasets.items() if d.adapter]
    if join is None:
        known = registry.datasets
        return [] if entry in known else [f"{place}: there is no {entry!r}{_nearest(entry, known)}"]
    if entry in with_records:
        return [f"{place}.{entry}.join: this is the name of a dataset; give the join a name of its own"]
    unknown = [part for part in blend.component_datasets(entry) if part not in with_records]
    if unknown:
        found = "; ".join(f"there is no {part!r}{_nearest(part, with_records)}" for part in unknown)
        return [f"{place}.{entry}.join: {found}"]
    sources = set(registry.image_sources(join.over))
    apart = [part for part in join.talk if not sources & set(registry.image_sources(part))]
    return [
        f"{place}.{entry}.join: {part} and {join.over} show images of different sources, so they share none"
        for part in apart
    ]
