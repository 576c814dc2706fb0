"""The typed configuration: all keys of `config.yaml` and the recipes with their defaults, and the checks of `load`.

`Settings` is composed of the sections in `scripts/config/`, of which every program reads its own. The Snakefile loads
the configuration with `load`. A program must not import this module, or it would run again when the code of any other
section changes.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError

from scripts.common.errors import UserError
from scripts.config.base import Section
from scripts.config.blend import BlendConfig
from scripts.config.custom import CustomDatasetConfig
from scripts.config.derivation import Derivation, derive
from scripts.config.evaluate import EvaluationConfig
from scripts.config.holdout import HoldoutConfig
from scripts.config.licences import LicencesConfig
from scripts.config.miniature import MiniatureConfig
from scripts.config.model import ModelConfig
from scripts.config.own_data import completed
from scripts.config.paths import Declared, Given, Results
from scripts.config.pretrain import PretrainConfig
from scripts.config.registry import REGISTRY, Registry, custom_dataset, custom_source
from scripts.config.replay import ReplayConfig, replay_dataset
from scripts.config.run import RunConfig
from scripts.config.stages import stage_problems
from scripts.config.subset import SubsetConfig
from scripts.config.tokens import TokensConfig
from scripts.config.tolerance import ToleranceConfig

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)]


class MediaConfig(Section):
    """How the images of one source are stored."""

    shards: Annotated[int, Field(ge=1, le=99999)] = 1
    """Number of tar shards. Aim at 256 to 512 MB each (COCO: 64)."""


class Settings(Section):
    """A complete configuration. A recipe replaces the default one as a whole."""

    name: Name
    """Name of this configuration. A results folder belongs to one configuration, by name; any other is refused."""
    results: Results = "results"
    """Folder of all outputs. Each configuration has its own; to move it, use a symlink or `--directory`."""
    data_path: Given | None = None
    """Folder with the raw datasets, in the layout of the original project. Empty: the miniature is generated
    instead."""
    download: Literal["never", "missing"] = "never"
    """`missing`: download what is missing below `data_path` into it (COCO alone has 20 GB; see `subset`). `never`:
    missing files are an error, which explains how to get them. VISUALCHAT_OFFLINE=1 disables all downloads."""
    subset: SubsetConfig | None = None
    """Use only conversations about a few hundred images. Empty: use all."""
    custom: dict[Name, CustomDatasetConfig] = Field(default={})
    """Your own datasets, which blends can use like the published ones."""
    replay: dict[Name, ReplayConfig] = Field(default={})
    """Text-only datasets of a decoder's own answers, which blends can use like the others: against forgetting."""
    miniature: MiniatureConfig = MiniatureConfig()
    """The synthetic data that are generated if there is no `data_path`."""
    pretrain: PretrainConfig = PretrainConfig()
    """How the miniature's tokenizer, vision encoder and language model are made."""
    media: dict[str, MediaConfig] = Field(default={})
    """How the images are stored, by source."""
    licences: LicencesConfig = LicencesConfig()
    """Which terms of use are acceptable."""
    tolerance: ToleranceConfig = ToleranceConfig()
    """How much of the raw data may be unusable."""
    holdout: HoldoutConfig = HoldoutConfig()
    """Which images are held out for evaluation."""
    tokens: dict[Name, TokensConfig] = Field(default={})
    """Ways to turn conversations into tokens: a tokenizer, a prompt template and the tokens per image. What is left out
    is derived from the models."""
    blends: dict[Name, BlendConfig]
    """Mixtures of datasets for training, and their order."""
    models: dict[Name, ModelConfig]
    """Models before training."""
    runs: dict[Name, RunConfig]
    """Training runs. `extends: NAME` copies the settings of another run, except those that are given as well."""
    evaluate: EvaluationConfig = EvaluationConfig()
    """How the trained models are evaluated."""
    suites: dict[Name, Declared] = Field(default={})
    """Evaluation suites by name: paths of dialogues (JSON, in the original's format) or task files (YAML,
    docs/evaluation.md). `miniature`: the dialogues of the miniature; `miniature/choices` and `miniature/orders`: its
    task files."""

    def own(self) -> dict[str, CustomDatasetConfig]:
        """The custom datasets, and those of replay, whose rows are read like theirs."""
        replay = {name: replay_dataset(f"{self.results}/replay/{name}") for name in self.replay}
        return {**self.custom, **replay}

    def registry(self) -> Registry:
        """The published sources and datasets, the custom ones and those of replay."""
        own = self.own()
        return REGISTRY.with_more(
            (custom_source(name, config) for name, config in own.items()),
            (custom_dataset(name, config) for name, config in own.items()),
        )

    def datasets(self) -> list[str]:
        """Names of the datasets whose records some blend, or replay in one, needs, in the order of the registry."""
        needed = {name for blend in self.blends.values() for name in blend.records()}
        needed |= {dataset for name in needed & set(self.replay) for dataset in self.replay[name].questions_of}
        return [name for name in self.registry().datasets if name in needed]


def load(config: Mapping[str, Any]) -> Settings:
    """Validate a parsed configuration and derive what it leaves out; a short one of own data is completed first.

    Raises:
        UserError: unknown keys or names (with the most similar known one), values of the wrong type, references to
            missing entries, or combinations that cannot work; all problems are listed with their keys.
    """
    return explained(config).settings


def explained(config: Mapping[str, Any]) -> Derivation:
    """`load`, with the source of every derived value, and of what was taken from a recipe (see own_data.py).

    Raises:
        UserError: see `load`.
    """
    config, filled = completed(config)
    if isinstance(config.get("runs"), Mapping):
        config["runs"] = {name: _resolve_extends(config["runs"], name) for name in config["runs"]}
    try:
        settings = Settings.model_validate(config)
    except ValidationError as error:
        _refuse([_describe(detail) for detail in error.errors()])
    problems = [*_custom_problems(settings), *_replay_problems(settings)]
    problems += [*_blend_problems(settings), *_run_problems(settings)]
    problems += stage_problems(settings.runs, _suggestion)
    if settings.download == "missing" and not settings.data_path:
        problems.append("download: needs a `data_path`, the folder to download into")
    if "heldout" in settings.suites:
        problems.append("suites.heldout: this is the name of the questions about held-out images; choose another")
    synthetic = [path for path in settings.suites.values() if path.split("/")[0] == "miniature"]
    if settings.data_path and synthetic:
        problems.append(f"suites: the suite {synthetic[0]!r} exists only with the miniature (without data_path)")
    _refuse(problems)
    derivation = derive(settings, filled)
    _refuse(derivation.problems)
    derivation.sources |= {section: f"recipes/{recipe}" for section, recipe in filled.items()}
    return derivation


def _refuse(problems: Collection[str]) -> None:
    if problems:
        raise UserError("the configuration is not usable:\n  " + "\n  ".join(problems)) from None


def read_configuration(path: Path) -> Settings:
    """Read, validate and complete a configuration file.

    Raises:
        UserError: the file cannot be read or is not YAML, or see `load`.
    """
    return load(read_yaml(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a configuration file as it was written.

    Raises:
        UserError: the file cannot be read or is not YAML, or holds no mapping.
    """
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as a configuration: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} holds no configuration: it is not a mapping of keys to values")
    return config


def _resolve_extends(runs: Mapping[str, Any], name: str, seen: tuple[str, ...] = ()) -> Any:
    """The keys of the run `name`, with those of the runs that it extends."""
    run = runs[name]
    if not isinstance(run, Mapping) or "extends" not in run:
        return run
    parent = run["extends"]
    if parent in (*seen, name):
        raise UserError(f"runs.{name}.extends: the runs {', '.join((*seen, name))} extend each other in a circle")
    if parent not in runs:
        raise UserError(f"runs.{name}.extends: there is no run {parent!r}{_suggestion(parent, runs)}")
    changes = {key: value for key, value in run.items() if key != "extends"}
    return dict(_resolve_extends(runs, parent, (*seen, name))) | changes


def _describe(detail: Mapping[str, Any]) -> str:
    """An error of pydantic as one line, with the path of the key."""
    # Parts in angle brackets are the forms that a key may have, see `TokensConfig.template`.
    path = [str(part) for part in detail["loc"] if not str(part).startswith("<")]
    if detail["type"] == "extra_forbidden":
        return f"{'.'.join(path)}: unknown key{_suggestion(path[-1], _keys_at(path[:-1]))}"
    if detail["type"] == "missing":
        return f"{'.'.join(path)}: is required"
    if detail["type"] in ("tuple_type", "list_type"):
        return f"{'.'.join(path)}: should be a list, such as [{detail['input']}]"
    return f"{'.'.join(path)}: {detail['msg']} (it is {detail['input']!r})"


def _keys_at(path: list[str]) -> list[str]:
    """The valid keys of the section at `path`, which consists of keys and, for dictionaries, of names of entries."""
    section: Any = Settings
    for part in path:
        field = getattr(section, "model_fields", {}).get(part)
        if field is not None:
            section = field.annotation
        arguments = [argument for argument in getattr(section, "__args__", ()) if argument is not type(None)]
        # The type of the entries: of a dictionary it is needed for the name that follows, of `Section | None` at once.
        if arguments and (field is None or getattr(section, "__origin__", None) is not dict):
            section = arguments[-1]
    keys = list(getattr(section, "model_fields", {}))
    # Resolved before validation, so it is no field.
    return [*keys, "extends"] if section is RunConfig else keys


def _suggestion(word: str, known: Iterable[str]) -> str:
    names = [str(name) for name in known]
    if matches := difflib.get_close_matches(str(word), names, n=1):
        return f"; did you mean {matches[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def _unknown(path: str, word: str, known: Collection[str]) -> list[str]:
    """The problem with a reference to a missing entry, if it is one."""
    return [] if word in known else [f"{path}: there is no {word!r}{_suggestion(word, known)}"]


def _custom_problems(settings: Settings) -> list[str]:
    """Problems of `custom` and `media`."""
    taken = {*REGISTRY.sources, *REGISTRY.datasets, "miniature"}
    problems = [
        f"custom.{name}: this is the name of the miniature, or of a published source or dataset; choose another"
        for name in settings.custom
        if name in taken
    ]
    for source in settings.media:
        problems += _unknown(f"media.{source}", source, settings.registry().sources)
    return problems


def _replay_problems(settings: Settings) -> list[str]:
    """Problems of `replay`."""
    problems, registry = [], settings.registry()
    taken = {*REGISTRY.sources, *REGISTRY.datasets, *settings.custom, "miniature"}
    with_records = [name for name, entry in registry.datasets.items() if entry.adapter and name not in settings.replay]
    for name, replay in settings.replay.items():
        if name in taken:
            problems.append(f"replay.{name}: this is the name of another dataset or source; choose another")
        problems += _unknown(f"replay.{name}.model", replay.model, settings.models)
        for dataset in replay.questions_of:
            problems += _unknown(f"replay.{name}.questions_of", dataset, with_records)
    return problems


def _blend_problems(settings: Settings) -> list[str]:
    """Problems of `blends`."""
    problems, registry = [], settings.registry()
    for name, blend in settings.blends.items():
        if blend.tokens:
            problems += _unknown(f"blends.{name}.tokens", blend.tokens, _entries_of_tokens(settings))
        for dataset in blend.datasets:
            problems += _entry_problems(f"blends.{name}.datasets", dataset, blend, registry)
            known = [part for part in blend.component_datasets(dataset) if part in registry.datasets]
            terms = {term for part in known for term in registry.terms_of(part)}
            if bad := settings.licences.objections(terms):
                problems.append(
                    f"blends.{name}.datasets: {dataset} is under {', '.join(bad)}, which `licences` does not accept; "
                    "take it out of the blend, or accept its terms"
                )
    return problems


def _entry_problems(path: str, entry: str, blend: BlendConfig, registry: Registry) -> list[str]:
    """Problems with the datasets of one entry of a blend."""
    join, with_records = blend.datasets[entry].join, [name for name, d in registry.datasets.items() if d.adapter]
    if join is None:
        return _unknown(path, entry, registry.datasets)
    if entry in with_records:
        return [f"{path}.{entry}.join: this is the name of a dataset; give the join a name of its own"]
    unknown = [part for part in blend.component_datasets(entry) if part not in with_records]
    if unknown:
        problems = "; ".join(f"there is no {part!r}{_suggestion(part, with_records)}" for part in unknown)
        return [f"{path}.{entry}.join: {problems}"]
    sources = set(registry.image_sources(join.over))
    return [
        f"{path}.{entry}.join: {part} and {join.over} show images of different sources, so they share none"
        for part in join.talk
        if not sources & set(registry.image_sources(part))
    ]


def _entries_of_tokens(settings: Settings) -> list[str]:
    """Names of the entries of `tokens`, those included that are made for models without one."""
    return [*settings.tokens, *(name for name, model in settings.models.items() if not model.tokens)]


def _run_problems(settings: Settings) -> list[str]:
    """Problems of `models` and `runs`."""
    problems = []
    for name, model in settings.models.items():
        if model.tokens:
            problems += _unknown(f"models.{name}.tokens", model.tokens, _entries_of_tokens(settings))
    for name, run in settings.runs.items():
        problems += _unknown(f"runs.{name}.model", run.model, settings.models)
        problems += _unknown(f"runs.{name}.blend", run.blend, settings.blends)
    return problems
