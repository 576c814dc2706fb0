"""Settings that destroy a pretrained model, or cannot work with it: found by pure functions, before anything runs.

Each returns problems as sentences that name the keys to change, and an empty list if there is none. `load` calls them
with what is known of the bases; training can call them again with the models themselves.
"""

from scripts.config.rates import HIGHEST_ADAPTERS, HIGHEST_EMBEDDINGS, HIGHEST_FULL, safe_rates
from scripts.config.run import RunConfig

_INSIST = "to insist, add allow_high_rates: true"


def rate_problems(run: RunConfig, language: str | None, vision: str | None, parameters: int | None) -> list[str]:
    """Learning rates of a run that a pretrained decoder or encoder does not survive.

    Args:
        run: with all its rates.
        language: name of the decoder if it is pretrained, see `is_pretrained`; None if it has nothing to lose.
        vision: the same of the encoder.
        parameters: of the decoder; None if unknown.
    """
    if run.allow_high_rates:
        return []
    problems = []
    safe = safe_rates(run.model_copy(update={"train_embeddings": True}), parameters, vision is not None)
    if language is not None and run.train_language != "frozen":
        highest = HIGHEST_FULL if run.train_language == "full" else HIGHEST_ADAPTERS
        if run.language_rate > highest:
            how = f"train_language: {run.train_language}"
            others = ", or train adapters with train_language: lora" if run.train_language == "full" else ""
            problems.append(
                f"learning_rate {run.language_rate:g} with {how} would destroy the pretrained {language}, which loses "
                f"its language in a few steps above {highest:g}; write learning_rate: {safe['language'].value:g}"
                f"{others}; {_INSIST}"
            )
    if language is not None and run.train_embeddings and run.rate_of("embeddings") > HIGHEST_EMBEDDINGS:
        problems.append(
            f"the token embeddings of the pretrained {language} would be trained at {run.rate_of('embeddings'):g}, and "
            f"they lose their meaning above {HIGHEST_EMBEDDINGS:g}; write embeddings_learning_rate: "
            f"{safe['embeddings'].value:g}, or train_embeddings: false; {_INSIST}"
        )
    if vision is not None and run.train_vision != "frozen":
        highest = HIGHEST_FULL if run.train_vision == "full" else HIGHEST_ADAPTERS
        if run.rate_of("vision") > highest:
            problems.append(
                f"the pretrained encoder {vision} would be trained at {run.rate_of('vision'):g} with train_vision: "
                f"{run.train_vision}, and is destroyed above {highest:g}; write vision_learning_rate: "
                f"{safe['vision'].value:g}, or train_vision: frozen; {_INSIST}"
            )
    return problems


def sequence_problems(sequence: int, language: str, positions: int | None) -> list[str]:
    """Rows longer than the decoder reads: `positions` is its longest sequence in tokens, None if it has no limit."""
    if positions is None or sequence <= positions:
        return []
    problem = (
        f"sequence {sequence} is longer than the {positions} positions that {language} was made for "
        f"(max_position_embeddings of its config.json); write sequence: {positions}, or less"
    )
    return [problem]


def untrained_projector(settings: RunConfig, trained_before: bool) -> str | None:
    """What is wrong if the projector is never trained: not in this run, nor before it in those that it starts from."""
    if settings.train_projector or trained_before:
        return None
    return (
        "the projector is new and would never be trained (`train_projector: false`), so images would reach the decoder "
        "as noise. Write `train_projector: true`, or `start: RUN` with a run that trains it"
    )
