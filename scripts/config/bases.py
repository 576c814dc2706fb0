"""The encoders and decoders of a configuration: what is known of each, and what follows from it."""

from pathlib import Path
from typing import TYPE_CHECKING

from model.image_tokens import image_tokens, square_side
from scripts.config.base_facts import BaseFacts, facts_of
from scripts.config.model import ModelConfig
from scripts.config.rates import is_pretrained

if TYPE_CHECKING:
    from scripts.config.settings import Settings


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

    def readable(self, name: str, kind: str) -> BaseFacts | None:
        """`facts`, with None for a base whose files cannot be read."""
        try:
            return self.facts(name, kind)
        except ValueError:
            return None

    def decoder_size(self, model: ModelConfig) -> int | None:
        """About how many parameters the decoder of a model has; None if unknown."""
        facts = self.readable(model.language, "language")
        return facts.parameters if facts is not None else None

    def positions(self, language: str) -> int | None:
        """The longest sequence that a decoder reads, in tokens; None if it has no limit, or none is known."""
        facts = self.readable(language, "language")
        return facts.positions if facts is not None else None

    def has_pretrained_decoder(self, model: ModelConfig) -> bool:
        """Whether the decoder of a model has something to lose."""
        return is_pretrained(model.language, self.decoder_size(model))

    def has_pretrained_encoder(self, model: ModelConfig) -> bool:
        """The same of its encoder."""
        facts = self.readable(model.vision, "vision")
        return is_pretrained(model.vision, facts.parameters if facts is not None else None)


def encoder_layout(model: ModelConfig, facts: BaseFacts) -> tuple[int, int]:
    """The side of an image in pixels and its number of tokens, for a model with an encoder of these facts.

    Raises:
        ValueError: they do not follow from its files.
    """
    side = square_side(facts.fields, facts.preprocessor)
    return side, image_tokens(facts.fields, side, model.projector, model.projector_queries, model.class_token)
