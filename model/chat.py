"""A chat: questions and images in, answers out, over many rounds.

The session keeps the conversation in the chat form and gives the model all of it at every question, written by the same
template as in training. Images may come with any question, or never. Answers are greedy, so a session can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import TextStreamer

from .modeling import VisualChatForConditionalGeneration
from .processing import VisualChatProcessor


class ChatSession:
    """A conversation with a model. `history` holds its messages, whose image parts count in `images`."""

    def __init__(self, model: VisualChatForConditionalGeneration, processor: VisualChatProcessor, system: str = ""):
        self.model = model.eval()
        self.processor = processor
        self.system = system
        self.history: list[dict[str, Any]] = []
        self.images: list[np.ndarray] = []

    def clear(self) -> None:
        """Forget the conversation and its images."""
        self.history, self.images = [], []

    @torch.inference_mode()
    def ask(
        self,
        text: str,
        images: Sequence[Image.Image] = (),
        max_new_tokens: int = 256,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Ask a question, with the images it shows, and return the answer.

        `on_text` gets the answer piece by piece while it is made. A question that fails or gets no answer leaves the
        conversation as it was. Raises ValueError if the conversation does not fit into the model's context.
        """
        gallery = self.images + [self.processor.image(image) for image in images]
        parts = [{"type": "image", "index": index} for index in range(len(self.images), len(gallery))]
        asked = [*self.history, {"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
        encoded = self.processor.encode(self._with_system(asked))
        room = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if room is not None and len(encoded) + max_new_tokens > room:
            raise ValueError(
                f"the conversation has {len(encoded)} tokens; with {max_new_tokens} for an answer it does not fit into "
                f"the {room} that the model can read: clear the conversation, or ask for a shorter answer"
            )
        batch = self.processor.collate([(encoded, gallery)], padding_side="left")
        del batch["labels"]
        batch = {name: value.to(self.model.device) for name, value in batch.items()}
        streamer = _Streamer(self.processor.tokenizer, on_text) if on_text else None
        tokens = self.model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False, streamer=streamer)
        answer = self.processor.tokenizer.decode(tokens[0, len(encoded) :], skip_special_tokens=True)
        if answer:
            self.history, self.images = [*asked, {"role": "assistant", "content": answer}], gallery
        return answer

    def _with_system(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.system}, *messages] if self.system else messages


class _Streamer(TextStreamer):
    """Hands finished text to a function, word by word."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.on_text(text)
