"""Settings of a model before training: which parts it is joined from and how (read by `make_model`)."""

from typing import Annotated, Any, Literal

from pydantic import Field

from scripts.config.base import Section


class ModelConfig(Section):
    """A vision encoder and a language model, joined by a projector that is new."""

    vision: str
    """Vision encoder: `miniature`, a folder, or a hub name such as `openai/clip-vit-large-patch14`."""
    language: str
    """Language model: `miniature`, a folder, or a hub name. A chat-tuned one wants its own prompt template."""
    tokens: str
    """Entry of `tokens` that counts for this model: it fixes tokenizer, prompt template and tokens per image."""
    projector: Literal["linear", "mlp", "vit", "perceiver"] = "linear"
    """Map from image features to the language model: `linear`, one layer with a norm (the paper's); `mlp`, two layers
    (LLaVA's); `vit`, one more layer of attention before `linear`; `perceiver`, learned queries that read the image."""
    projector_queries: Annotated[int, Field(ge=1)] = 256
    """Tokens that `perceiver` makes of an image; a square number."""
    vision_layer: int = -1
    """Hidden layer of the encoder that is read: -1 its output, -2 the last layer but one (LLaVA's choice). Qwen-VL's
    encoder has only -1."""
    class_token: Literal["drop", "keep"] = "drop"
    """Whether the encoder's class token is one of the image's tokens; encoders without one need `drop`."""
    seed: int = 0
    """Seed of the weights that no base provides: the projector's, and rows of new tokens."""

    def joining(self) -> dict[str, Any]:
        """How encoder and projector are used, in the words of `VisualChatConfig`."""
        return {
            "projector": self.projector,
            "projector_queries": self.projector_queries,
            "vision_feature_layer": self.vision_layer,
            "vision_class_token": self.class_token,
        }
