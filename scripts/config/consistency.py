"""What of a complete configuration does not fit together, as far as it can be known before anything runs.

Each problem is a sentence with the key, what is wrong, and what to write.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from model.image_tokens import class_tokens
from scripts.config.base_facts import BaseFacts, missing_folder
from scripts.config.bases import Bases, encoder_layout
from scripts.config.model import ModelConfig
from scripts.config.safety import rate_problems, sequence_problems
from scripts.config.tokenizer_check import tokenizer_problem

if TYPE_CHECKING:
    from scripts.config.settings import Settings

_KINDS = {"vision": "an encoder of images", "language": "a decoder of text"}


def inconsistencies(settings: "Settings", bases: Bases) -> list[str]:
    """The problems of models, and of runs and blends with the models that they name."""
    problems = []
    for name, model in settings.models.items():
        problems += _model_problems(settings, name, model, bases)
    for name, blend in settings.blends.items():
        counted = settings.tokens[blend.tokens].max_images
        if counted < blend.max_images:
            problems.append(
                f"tokens.{blend.tokens}.max_images: images are counted up to number {counted}, but blends.{name} has "
                f"up to {blend.max_images} in a conversation; write max_images: {blend.max_images} here, or lower that "
                "of the blend"
            )
    for name, run in settings.runs.items():
        model, blend = settings.models[run.model], settings.blends[run.blend]
        if model.tokens != blend.tokens:
            problems.append(
                f"runs.{name}: model {run.model!r} counts tokens as {model.tokens!r}, blend {run.blend!r} as "
                f"{blend.tokens!r}; they must name the same entry of `tokens`"
            )
        language = model.language if bases.has_pretrained_decoder(model) else None
        vision = model.vision if bases.has_pretrained_encoder(model) else None
        rates = rate_problems(run, language, vision, bases.decoder_size(model))
        problems += [f"runs.{name}: {problem}" for problem in rates]
        too_long = sequence_problems(blend.sequence, model.language, bases.positions(model.language))
        problems += [f"blends.{run.blend}: {problem}" for problem in too_long]
    return list(dict.fromkeys(problems))


def _model_problems(settings: "Settings", name: str, model: ModelConfig, bases: Bases) -> list[str]:
    """Folders that are not there or hold something else, another tokenizer, and images that become something else."""
    tokens, root, problems = settings.tokens[model.tokens], Path(settings.results), []
    found: dict[str, BaseFacts | None] = {}
    for kind, base in (("language", model.language), ("vision", model.vision)):
        try:
            found[kind] = facts = bases.facts(base, kind)
        except ValueError as error:
            problems.append(f"models.{name}.{kind}: {error}")
            continue
        problem = missing_folder(base, root) if facts is None else _other_kind(base, facts, kind)
        if problem:
            problems.append(f"models.{name}.{kind}: {problem}")
    if problems:
        return problems
    if problem := tokenizer_problem(tokens.tokenizer, model.language, found["language"], root):
        problems.append(f"tokens.{model.tokens}.tokenizer: {problem}")
    if found["vision"] is not None:
        problems += _image_problems(settings, name, model, found["vision"])
    return problems


def _other_kind(base: str, facts: BaseFacts, kind: str) -> str:
    """What is wrong with a base that is of the other kind, by what its configuration counts; empty if it is not."""
    has = {"vision": "patch_size" in facts.fields, "language": facts.rows is not None}
    other = "vision" if kind == "language" else "language"
    if has[kind] or not has[other]:
        return ""
    field = "patch_size" if kind == "vision" else "vocab_size"
    return f"{base} is {_KINDS[other]}, not {_KINDS[kind]}: its config.json names no {field}"


def _image_problems(settings: "Settings", name: str, model: ModelConfig, vision: BaseFacts) -> list[str]:
    """Another number of tokens of an image, and layers and class tokens that the encoder does not have."""
    problems = []
    layers = vision.layers
    if layers is not None and not -layers - 1 <= model.vision_layer <= layers:
        problems.append(
            f"models.{name}.vision_layer: {model.vision} has {layers} layers, so this is -1 (its output) to "
            f"{-layers - 1} (its input), not {model.vision_layer}"
        )
    known = class_tokens(vision.fields)
    if model.class_token == "keep" and known == 0:  # noqa: S105 - a token of the encoder, not a secret
        problems.append(f"models.{name}.class_token: {model.vision} has no class token; write class_token: drop")
    try:
        made = encoder_layout(model, vision)[1]
    except ValueError:
        return problems  # only its files can show it, see `make_model`
    entry = settings.tokens[model.tokens]
    if entry.image_tokens and made != entry.image_tokens:
        problems.append(
            f"models.{name}: {model.vision} makes {made} tokens of an image, but tokens.{model.tokens} counts "
            f"{entry.image_tokens}; write image_tokens: {made}, or leave it out"
        )
    return problems
