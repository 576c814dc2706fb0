"""What a configuration leaves out about its models, derived from the encoders and decoders that it names.

    models:
      mine: {vision: google/siglip2-base-patch16-224, language: data/my-decoder}

is enough: tokenizer, tokens of an image, learning rates, precision and the entry of `tokens` follow. A value that is
derived gives the same results as the same value written by hand. Every one is recorded with its source, for `python -m
scripts.settings --explain`.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.image_tokens import image_tokens, square_side
from scripts.common.gpus import automatic_precision, present
from scripts.config.base_facts import MINIATURE, BaseFacts, facts_of, missing_folder, offline
from scripts.config.model import ModelConfig
from scripts.config.rates import is_pretrained, safe_rates
from scripts.config.run import DEFAULT_RATE, RunConfig
from scripts.config.safety import rate_problems, sequence_problems
from scripts.config.tokenizer_check import lacks_chat_template, tokenizer_problem
from scripts.config.tokens import AUTO, TokensConfig

if TYPE_CHECKING:
    from scripts.config.settings import Settings


_CPU_RANKS = 2
"""Ranks on a machine without a GPU, each of which holds the whole model."""
_TEXT = 480
"""Tokens of text that a row has room for beside all its images."""


@dataclass
class Derivation:
    """A complete configuration, the source of every derived value by its key, and what is wrong with it.

    `written` is the configuration before, whose sections know which of their keys were written.
    """

    settings: "Settings"
    written: "Settings"
    sources: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Bases:
    """What is known of the encoders and decoders of a configuration; each is looked for once."""

    def __init__(self, settings: "Settings") -> None:
        self._root, self._pretrain = Path(settings.results), settings.pretrain
        self._found: dict[tuple[str, str, bool], BaseFacts | None] = {}

    def facts(self, name: str, kind: str, network: bool = False) -> BaseFacts | None:
        """What is known of the base `name` of the kind vision or language; None if it is nowhere.

        Raises:
            ValueError: a file of the base is no JSON object.
        """
        key = (name, kind, network)
        if key not in self._found:
            self._found[key] = facts_of(name, kind, self._root, self._pretrain, network)
        return self._found[key]


def derive(settings: "Settings", filled: Iterable[str] = ()) -> Derivation:
    """Derive what `settings`, whose references are valid, leave out.

    Args:
        settings: as they were read.
        filled: sections that were taken from a recipe; rows of blends among them are fitted to the model.
    """
    result = Derivation(settings, settings)
    bases = Bases(settings)
    _name_tokens(result)
    _derive_tokens(result, bases)
    _derive_runs(result, bases)
    if result.problems:
        return result
    if "replay" in filled:
        _leave_replay_out(result)
    if "blends" in filled:
        _fit_rows(result, bases)
    if "runs" in filled:
        _fit_machine(result)
    result.problems += _consistency(result.settings, bases)
    return result


def encoder_layout(model: ModelConfig, facts: BaseFacts) -> tuple[int, int]:
    """The side of an image in pixels and its number of tokens, for a model with an encoder of these facts.

    Raises:
        ValueError: they do not follow from its files.
    """
    side = square_side(facts.fields, facts.preprocessor)
    return side, image_tokens(facts.fields, side, model.projector, model.projector_queries, model.class_token)


def _name_tokens(result: Derivation) -> None:
    """Give every model an entry of `tokens`, and every blend that of the models that train on it."""
    settings = result.settings
    models, tokens = dict(settings.models), dict(settings.tokens)
    for name, model in models.items():
        if not model.tokens:
            models[name] = model.model_copy(update={"tokens": name})
            result.sources[f"models.{name}.tokens"] = "the name of the model"
            tokens.setdefault(name, TokensConfig())
    blends = dict(settings.blends)
    for name, blend in blends.items():
        if blend.tokens:
            continue
        users = {run.model: models[run.model].tokens for run in settings.runs.values() if run.blend == name}
        users = users or {model: config.tokens for model, config in models.items()}
        entries = sorted(set(users.values()))
        if not entries:
            result.problems.append(
                f"blends.{name}.tokens: there is no model whose entry of `tokens` it could be; name an entry here"
            )
            continue
        if len(entries) != 1:
            result.problems.append(
                f"blends.{name}.tokens: its models ({', '.join(users)}) count tokens in different ways ("
                f"{', '.join(entries)}); name one of them here, and give the others a blend of their own"
            )
        blends[name] = blend.model_copy(update={"tokens": entries[0]})
        result.sources[f"blends.{name}.tokens"] = f"models.{next(iter(users))}.tokens"
    result.settings = settings.model_copy(update={"models": models, "blends": blends, "tokens": tokens})


def _derive_tokens(result: Derivation, bases: Bases) -> None:
    """Derive tokenizer and tokens of an image of every entry of `tokens`."""
    tokens = dict(result.settings.tokens)
    for name, entry in tokens.items():
        users = {model: config for model, config in result.settings.models.items() if config.tokens == name}
        changes: dict[str, Any] = {}
        if entry.tokenizer == AUTO:
            changes |= _tokenizer_of(name, users, result)
        if not entry.image_tokens:
            changes |= _image_tokens_of(name, users, result, bases)
        tokens[name] = entry.model_copy(update=changes)
    result.settings = result.settings.model_copy(update={"tokens": tokens})


def _tokenizer_of(name: str, users: Mapping[str, ModelConfig], result: Derivation) -> dict[str, Any]:
    decoders = {config.language: model for model, config in users.items()}
    if not decoders:
        result.problems.append(
            f"tokens.{name}.tokenizer: {AUTO} is the tokenizer of a decoder, but no model has tokens: {name}; write "
            "the folder or hub name of a tokenizer"
        )
        return {}
    if len(decoders) > 1:
        result.problems.append(
            f"tokens.{name}.tokenizer: {AUTO}, but the models that use this entry have different decoders: "
            f"{', '.join(f'{model} has {decoder}' for decoder, model in decoders.items())}; give each its own entry of "
            "`tokens`, or leave `tokens` out of the models"
        )
    decoder, model = next(iter(decoders.items()))
    result.sources[f"tokens.{name}.tokenizer"] = f"models.{model}.language"
    return {"tokenizer": decoder}


def _image_tokens_of(name: str, users: Mapping[str, ModelConfig], result: Derivation, bases: Bases) -> dict[str, Any]:
    found: dict[str, int] = {}
    for model, config in users.items():
        try:
            facts = bases.facts(config.vision, "vision", network=True)
            if facts is None:
                raise ValueError(
                    "it is neither a folder with a config.json, nor in the cache of the hub, nor built in"
                    + (", and the hub may not be asked (offline)" if offline() else ", nor could the hub be reached")
                )
            side, found[model] = encoder_layout(config, facts)
        except ValueError as error:
            result.problems.append(
                f"models.{model}.vision: how many tokens {config.vision} makes of an image cannot be derived: {error}; "
                f"write the number, such as: tokens: {{{name}: {{image_tokens: 256}}}}"
            )
            return {}
        result.sources[f"tokens.{name}.image_tokens"] = f"{facts.source}: images of {side} x {side} pixels"
    if not found:
        result.problems.append(
            f"tokens.{name}.image_tokens: no model has tokens: {name}, from whose encoder it could be derived; write it"
        )
        return {}
    if len(set(found.values())) > 1:
        result.problems.append(
            f"tokens.{name}: the models that use this entry make different numbers of tokens of an image: "
            f"{', '.join(f'{model} makes {number}' for model, number in found.items())}; give each its own entry of "
            "`tokens`"
        )
    return {"image_tokens": next(iter(found.values()))}


def _derive_runs(result: Derivation, bases: Bases) -> None:
    """Derive learning rates and precision of every run."""
    runs = {}
    for name, run in result.settings.runs.items():
        changes: dict[str, Any] = {}
        if run.precision == AUTO:
            changes["precision"] = automatic_precision(os.environ)
            found = "a GPU that computes in bf16" if changes["precision"] == "bf16" else "no GPU that computes in bf16"
            result.sources[f"runs.{name}.precision"] = f"this machine has {found}"
        if run.learning_rate is None:
            changes |= _rates_of(name, run, result, bases)
        runs[name] = run.model_copy(update=changes)
    result.settings = result.settings.model_copy(update={"runs": runs})


def _rates_of(name: str, run: RunConfig, result: Derivation, bases: Bases) -> dict[str, float]:
    model = result.settings.models[run.model]
    size = _parameters(model, bases)
    if not is_pretrained(model.language, size):
        result.sources[f"runs.{name}.learning_rate"] = "default of a decoder that has nothing to lose"
        return {"learning_rate": DEFAULT_RATE}
    changes = {}
    for part, rate in safe_rates(run, size, model.vision != MINIATURE).items():
        key = "learning_rate" if part == "language" else f"{part}_learning_rate"
        if getattr(run, key) is None:
            changes[key] = rate.value
            result.sources[f"runs.{name}.{key}"] = rate.reason
    return changes


def _leave_replay_out(result: Derivation) -> None:
    """Leave the recipe's replay out of a decoder that was not tuned to chat: it closes no answer, and has no form."""
    settings, root = result.settings, Path(result.settings.results)
    silent = {
        name
        for name, entry in settings.replay.items()
        if lacks_chat_template(settings.models[entry.model].language, root)
    }
    if not silent:
        return
    blends = dict(settings.blends)
    for name, blend in blends.items():
        kept = {entry: value for entry, value in blend.datasets.items() if entry not in silent}
        blends[name] = blend.model_copy(update={"datasets": kept})
        result.sources[f"blends.{name}.datasets"] = "without replay: the decoder has no chat template"
    replay = {name: entry for name, entry in settings.replay.items() if name not in silent}
    result.settings = settings.model_copy(update={"blends": blends, "replay": replay})


def _fit_rows(result: Derivation, bases: Bases) -> None:
    """Fit the rows of blends that the user did not write: to the images, and to what the decoders read."""
    blends = dict(result.settings.blends)
    for run in result.settings.runs.values():
        blend = blends[run.blend]
        language = result.settings.models[run.model].language
        needed = blend.max_images * result.settings.tokens[blend.tokens].image_tokens + _TEXT
        if needed != blend.sequence:
            blend = blend.model_copy(update={"sequence": needed})
            result.sources[f"blends.{run.blend}.sequence"] = f"{blend.max_images} images and {_TEXT} tokens of text"
        positions = _positions(language, bases)
        if positions is not None and positions < blend.sequence:
            blend = blend.model_copy(update={"sequence": positions})
            result.sources[f"blends.{run.blend}.sequence"] = f"the positions of {language}"
        blends[run.blend] = blend
    result.settings = result.settings.model_copy(update={"blends": blends})


def _fit_machine(result: Derivation) -> None:
    """Divide the work of runs that the user did not write among what this machine has; it changes no result."""
    gpus, cores = len(present(os.environ)), os.cpu_count() or 1
    ranks = gpus or min(cores, _CPU_RANKS)
    reason = f"this machine has {gpus} GPUs" if gpus else f"this machine has no GPU, and {cores} cores"
    runs = dict(result.settings.runs)
    for name, run in runs.items():
        rows = result.settings.blends[run.blend].global_batch
        runs[name] = run.model_copy(update={"ranks": max(n for n in range(1, ranks + 1) if rows % n == 0)})
        result.sources[f"runs.{name}.ranks"] = reason
    result.settings = result.settings.model_copy(update={"runs": runs})


def _consistency(settings: "Settings", bases: Bases) -> list[str]:
    """What does not fit together, as far as it can be known before anything runs."""
    problems = []
    for name, model in settings.models.items():
        problems += _model_problems(settings, name, model, bases)
    for name, run in settings.runs.items():
        model, blend = settings.models[run.model], settings.blends[run.blend]
        if model.tokens != blend.tokens:
            problems.append(
                f"runs.{name}: model {run.model!r} counts tokens as {model.tokens!r}, blend {run.blend!r} as "
                f"{blend.tokens!r}; they must name the same entry of `tokens`"
            )
        size = _parameters(model, bases)
        language = model.language if is_pretrained(model.language, size) else None
        # Sizes of encoders are not looked at: those of tests are beside decoders that are as small.
        vision = model.vision if language is not None and model.vision != MINIATURE else None
        problems += [f"runs.{name}: {problem}" for problem in rate_problems(run, language, vision, size)]
        too_long = sequence_problems(blend.sequence, model.language, _positions(model.language, bases))
        problems += [f"blends.{run.blend}: {problem}" for problem in too_long]
    return list(dict.fromkeys(problems))


def _model_problems(settings: "Settings", name: str, model: ModelConfig, bases: Bases) -> list[str]:
    """Folders that are not there, another number of tokens of an image, a tokenizer that is not the decoder's."""
    tokens, problems = settings.tokens[model.tokens], []
    try:
        language = bases.facts(model.language, "language")
    except ValueError as error:
        return [f"models.{name}.language: {error}"]
    if language is None and (problem := missing_folder(model.language, Path(settings.results))):
        return [f"models.{name}.language: {problem}"]
    if problem := tokenizer_problem(tokens.tokenizer, model.language, language, Path(settings.results)):
        problems.append(f"tokens.{model.tokens}.tokenizer: {problem}")
    try:
        vision = bases.facts(model.vision, "vision")
        made = encoder_layout(model, vision)[1] if vision is not None else tokens.image_tokens
    except ValueError:
        return problems  # only its files can show it, see `make_model`
    if tokens.image_tokens and made != tokens.image_tokens:
        problems.append(
            f"models.{name}: {model.vision} makes {made} tokens of an image, but tokens.{model.tokens} counts "
            f"{tokens.image_tokens}; write image_tokens: {made}, or leave it out"
        )
    return problems


def _parameters(model: ModelConfig, bases: Bases) -> int | None:
    try:
        facts = bases.facts(model.language, "language")
    except ValueError:
        return None
    return facts.parameters if facts is not None else None


def _positions(language: str, bases: Bases) -> int | None:
    try:
        facts = bases.facts(language, "language")
    except ValueError:
        return None
    return facts.positions if facts is not None else None
