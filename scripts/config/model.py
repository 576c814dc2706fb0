"""Settings of a model before training: its parts and how they are connected (read by `make_model`)."""

import ast
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from scripts.config.base import Section
from scripts.config.paths import FolderOrName


def _projectors() -> dict[str, str]:
    """Name and description of every projector, from its class in model/projector.py, read without importing torch."""
    source = Path(__file__).resolve().parents[2] / "model/projector.py"
    return {
        ast.literal_eval(keyword.value): ast.get_docstring(node) or ""
        for node in ast.parse(source.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
        for keyword in node.keywords
        if keyword.arg == "name"
    }


PROJECTORS = _projectors()


def _check_projector(name: str) -> str:
    if name not in PROJECTORS:
        raise ValueError(f"should be one of {', '.join(PROJECTORS)}")
    return name


Projector = Annotated[
    str,
    AfterValidator(_check_projector),
    Field(
        json_schema_extra={"enum": [*PROJECTORS]},
        description="Map from image features to the language model. "
        + " ".join(f"`{name}`: {description}" for name, description in PROJECTORS.items()),
    ),
]


def _check_square(queries: int) -> int:
    if math.isqrt(queries) ** 2 != queries:
        below = math.isqrt(queries) ** 2
        raise ValueError(f"should be a square number, such as {max(1, below)} or {(math.isqrt(queries) + 1) ** 2}")
    return queries


class ModelConfig(Section):
    """A vision encoder and a language model, connected by a new projector."""

    vision: FolderOrName
    """Vision encoder: `miniature`, a folder, or a hub name such as `openai/clip-vit-large-patch14`."""
    language: FolderOrName
    """Language model: `miniature`, a folder, or a hub name. Its tokenizer and its chat template are used unless
    `tokens` names others."""
    tokens: str = ""
    """Entry of `tokens` with the tokenizer, prompt template and tokens per image of this model. Empty: an entry of the
    model's name, all of which is derived from the decoder and the encoder if it is not there."""
    projector: Projector = "linear"
    projector_queries: Annotated[int, Field(ge=1), AfterValidator(_check_square)] = 256
    """Tokens per image of `perceiver`; a square number."""
    vision_layer: int = -1
    """Hidden layer of the encoder whose features are used: -1 the output, -2 the last layer but one (LLaVA's choice).
    Qwen-VL's encoder has only -1."""
    class_token: Literal["drop", "keep"] = "drop"  # noqa: S105 - a token of the encoder, not a secret
    """Whether the encoder's class token is one of the image's tokens; encoders without one need `drop`."""
    seed: int = 0
    """Seed of new weights: those of the projector, and the embeddings of new tokens."""

    def projector_options(self) -> dict[str, Any]:
        """How encoder and projector are used, as keyword arguments of `VisualChatConfig`."""
        return {
            "projector": self.projector,
            "projector_queries": self.projector_queries,
            "vision_feature_layer": self.vision_layer,
            "vision_class_token": self.class_token,
        }
