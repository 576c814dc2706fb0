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

from scripts.config.base_facts import offline
from scripts.config.bases import Bases, encoder_layout
from scripts.config.consistency import inconsistencies
from scripts.config.machine import planning_machine
from scripts.config.model import ModelConfig
from scripts.config.rates import safe_rates
from scripts.config.run import DEFAULT_RATE, RunConfig
from scripts.config.tokenizer_check import lacks_chat_template
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
    if "evaluate" in filled:
        _fit_evaluation(result)
    result.problems += inconsistencies(result.settings, bases)
    return result


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
            changes["precision"] = planning_machine(os.environ).precision
            found = "a GPU that computes in bf16" if changes["precision"] == "bf16" else "no GPU that computes in bf16"
            result.sources[f"runs.{name}.precision"] = f"this machine has {found}"
        if run.learning_rate is None:
            changes |= _rates_of(name, run, result, bases)
        runs[name] = run.model_copy(update=changes)
    result.settings = result.settings.model_copy(update={"runs": runs})


def _rates_of(name: str, run: RunConfig, result: Derivation, bases: Bases) -> dict[str, float]:
    model = result.settings.models[run.model]
    safe = safe_rates(run, bases.decoder_size(model), bases.has_pretrained_encoder(model))
    changes = {}
    if not bases.has_pretrained_decoder(model):
        changes["learning_rate"] = DEFAULT_RATE
        result.sources[f"runs.{name}.learning_rate"] = "default of a decoder that has nothing to lose"
        safe = {part: rate for part, rate in safe.items() if part == "vision"}
    for part, rate in safe.items():
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
        positions = bases.positions(language)
        if positions is not None and positions < blend.sequence:
            blend = blend.model_copy(update={"sequence": positions})
            result.sources[f"blends.{run.blend}.sequence"] = f"the positions of {language}"
        blends[run.blend] = blend
    result.settings = result.settings.model_copy(update={"blends": blends})


def _fit_machine(result: Derivation) -> None:
    """Divide the work of runs that the user did not write among what the machine has.

    Another number of threads adds in another order, so that results of other machines differ in their last digits.
    """
    machine = planning_machine(os.environ)
    ranks = machine.gpus or min(machine.cores, _CPU_RANKS)
    found = f"{machine.gpus} GPUs" if machine.gpus else f"no GPU, and {machine.cores} cores"
    reason = f"this machine has {found}"
    runs = dict(result.settings.runs)
    for name, run in runs.items():
        rows = result.settings.blends[run.blend].global_batch
        changes = {"ranks": max(n for n in range(1, ranks + 1) if rows % n == 0)}
        if not machine.gpus:
            changes["threads"] = max(1, machine.cores // changes["ranks"])
        runs[name] = run.model_copy(update=changes)
        result.sources |= {f"runs.{name}.{key}": reason for key in changes}
    result.settings = result.settings.model_copy(update={"runs": runs})


def _fit_evaluation(result: Derivation) -> None:
    """Let evaluation use all cores of a machine without a GPU, where the user did not write the section."""
    machine = planning_machine(os.environ)
    if not machine.gpus:
        evaluate = result.settings.evaluate.model_copy(update={"threads": machine.cores})
        result.sources["evaluate.threads"] = f"this machine has no GPU, and {machine.cores} cores"
        result.settings = result.settings.model_copy(update={"evaluate": evaluate})
