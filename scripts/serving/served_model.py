"""A model that is served: its engine and its description."""

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from model.template import EncodedConversation
from scripts.common.errors import UserError
from scripts.common.files import read_json
from scripts.serving.engine import BatchingEngine, EngineSettings
from scripts.serving.errors import ApiError

MAX_ANSWER_TOKENS = 8192  # for decoders without max_position_embeddings


@dataclass
class ServedModel:
    """A model under its `name`.

    `about` is its description in /v1/models, `context` its maximum number of tokens, `longest_token` how many
    characters a token has at most.
    """

    name: str
    processor: VisualChatProcessor
    engine: BatchingEngine
    about: dict[str, Any]
    context: int | None
    longest_token: int
    _encoding: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def load(cls, name: str, folder: Path, device: str, bits: int | None, settings: EngineSettings) -> "ServedModel":
        """Load the model in `folder` and start its engine.

        Raises:
            UserError: see `load_model`.
        """
        from scripts.inference.model_loading import load_model

        model, processor = load_model(folder, device, bits)
        context = getattr(model.config.text_config, "max_position_embeddings", None)
        longest = max(map(len, processor.tokenizer.get_vocab()))
        engine = BatchingEngine(model, processor, settings)
        return cls(name, processor, engine, describe(folder, model), context, longest)

    def encode(self, messages: list[dict[str, Any]]) -> EncodedConversation:
        """Encode a conversation.

        Raises:
            ApiError: the template cannot express it, or it leaves no room for an answer in the context.
        """
        texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
        characters = sum(map(len, texts))
        if self.context is not None and characters > self.context * self.longest_token:
            # Certain without tokenising, which takes a second for every few hundred thousand characters.
            message = f"the conversation has {characters:,} characters, which cannot fit into {self.context} tokens"
            raise ApiError(400, message, "context_length_exceeded", "messages")
        try:
            with self._encoding:  # a tokenizer changes its state while it encodes
                encoded = self.processor.encode(messages)
        except ValueError as error:
            raise ApiError(400, str(error), "invalid_conversation", "messages") from None
        if messages[-1]["role"] != "user":
            raise ApiError(400, "the last message must have the role user", "invalid_conversation")
        if self.context is not None and len(encoded) >= self.context:
            message = f"the conversation has {len(encoded)} tokens; with its answer it must fit into {self.context}"
            raise ApiError(400, message, "context_length_exceeded", "messages")
        return encoded

    def max_answer_tokens(self, encoded: EncodedConversation) -> int:
        """The maximum number of tokens of an answer to `encoded`."""
        return MAX_ANSWER_TOKENS if self.context is None else self.context - len(encoded)


def describe(folder: Path, model: VisualChatForConditionalGeneration) -> dict[str, Any]:
    """The description of a model: its parts, sizes, checkpoint and scores, `None` where unknown."""
    config, manifest = model.config, _manifest(folder)
    return {
        "attention": config.attention,
        "projector": config.projector,
        "decoder": config.text_config.model_type,
        "encoder": config.vision_config.model_type,
        "parameters": sum(value.numel() for value in model.parameters()),
        "image_side": config.image_size,
        "image_tokens": config.image_tokens,
        "context": getattr(config.text_config, "max_position_embeddings", None),
        "run": manifest.get("run"),
        "checkpoint": manifest.get("which"),
        "step": manifest.get("step"),
        "heldout_loss": manifest.get("heldout_loss"),
        "weights": str(manifest.get("weights") or "")[:12] or None,
        "created": int((folder / "config.json").stat().st_mtime),
    }


def served_name(folder: Path) -> str:
    """RUN/CHECKPOINT of an exported model, or the folder's own name."""
    manifest = _manifest(folder)
    run, which = manifest.get("run"), manifest.get("which")
    return f"{run}/{which}" if run and which else folder.resolve().name


def newest_export(root: Path) -> list[Path]:
    """The checkpoints of the run below `root` that was exported last: final, and best if it differs from final.

    Raises:
        UserError: nothing was exported there.
    """
    finals = [path.parent for path in (root / "exported").glob("*/final/config.json")]
    if not finals:
        raise UserError(f"no model has been exported below {root} yet: run snakemake (or make demo) first")
    final = max(finals, key=lambda folder: (folder / "config.json").stat().st_mtime)
    best = final.with_name("best")
    if (best / "config.json").is_file() and _manifest(best).get("sha256") != _manifest(final).get("sha256"):
        return [final, best]
    return [final]


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    return read_json(path) if path.is_file() else {}
