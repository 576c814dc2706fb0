"""A chat: questions and images in, answers out, over many rounds, of which only the new text is computed.

The session keeps the conversation in the chat form of `transformers`. For every question the whole conversation is
encoded with the template of training, and the longest prefix that is in the model's cache is not computed again. So the
answers equal those of a new session, and undoing, regenerating or loading a conversation needs no special handling. An
image is encoded once, however often it is shown and in however many sessions that share an `ImageCache`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import DynamicCache, TextStreamer

from .conversation_cache import ConversationCache
from .image_cache import ImageCache
from .modeling import VisualChatForConditionalGeneration
from .pixels import open_bounded, to_rgb
from .processing import VisualChatProcessor
from .template import IMAGE, EncodedConversation

Content = str | Sequence[str | Image.Image]
_FILE = "conversation.json"


class ChatSession:
    """A conversation with a model. `history` holds its messages, whose image parts count in `images`."""

    def __init__(
        self,
        model: VisualChatForConditionalGeneration,
        processor: VisualChatProcessor,
        system: str = "",
        cache: ImageCache | None = None,
    ) -> None:
        """`system` is inserted before the conversation; sessions with the same model may share a `cache` of images."""
        self.model = model.eval()
        self.processor = processor
        self.system = system
        self.history: list[dict[str, Any]] = []
        self.images: list[Image.Image] = []
        self._pixels: list[np.ndarray] = []
        self._image_cache = cache or ImageCache(model)
        self._tokens: DynamicCache
        self._cached: list[int | bytes]  # the keys of the tokens in `_tokens`, see `_token_keys`
        self._reset_cache()

    def clear(self) -> None:
        """Remove the conversation and its images."""
        self.history, self.images, self._pixels = [], [], []
        self._reset_cache()

    @torch.inference_mode()
    def ask(
        self,
        content: Content,
        images: Sequence[Image.Image] = (),
        max_new_tokens: int = 256,
        on_text: Callable[[str], None] | None = None,
        **sampling: Any,
    ) -> str:
        """Ask a question and return the answer.

        `content` is a text, or texts and images in any order; `images` are shown before it. `on_text` gets the answer
        piece by piece while it is generated. `sampling` are options of `generate` (do_sample, temperature, top_p, ...);
        the default is greedy decoding. A question that fails or gets an empty answer leaves the conversation unchanged.

        Raises ValueError for an empty question, or if the conversation does not fit into the model's context.
        """
        shown = list(images)
        parts: list[dict[str, Any]] = [{"type": "image", "index": len(self.images) + n} for n in range(len(shown))]
        for part in [content] if isinstance(content, str) else content:
            if isinstance(part, str):
                parts.append({"type": "text", "text": part})
            else:
                parts.append({"type": "image", "index": len(self.images) + len(shown)})
                shown.append(part)
        return self._answer({"role": "user", "content": parts}, shown, max_new_tokens, on_text, sampling)

    @torch.inference_mode()
    def regenerate(
        self, max_new_tokens: int = 256, on_text: Callable[[str], None] | None = None, **sampling: Any
    ) -> str:
        """Answer the last question again, for instance by sampling; the arguments are those of `ask`.

        Raises ValueError if there is no question yet.
        """
        before = list(self.history), list(self.images)
        question, shown = self.undo()
        try:
            answer = self._answer(question, shown, max_new_tokens, on_text, sampling)
        except BaseException:
            self._restore(*before)
            raise
        if not answer:
            self._restore(*before)
        return answer

    def undo(self) -> tuple[dict[str, Any], list[Image.Image]]:
        """Remove the last round; returns its question, as a message, and its images.

        Raises ValueError if there is no question yet.
        """
        if not self.history:
            raise ValueError("there is no round to undo")
        *self.history, question, _ = self.history
        kept = len(self.images) - sum(part["type"] == "image" for part in question["content"])
        shown, self.images, self._pixels = self.images[kept:], self.images[:kept], self._pixels[:kept]
        return question, shown

    def save(self, folder: str | Path) -> None:
        """Write the conversation to `folder`: conversation.json, and the images as PNG, which is lossless.

        A conversation that was saved there before stays readable until the new one is complete: images are named by a
        hash of their pixels, and conversation.json, which lists them, is replaced last.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        hashes = [hashlib.sha256(repr(image.size).encode() + image.tobytes()) for image in self.images]
        names = [f"image-{digest.hexdigest()[:16]}.png" for digest in hashes]
        for name, image in zip(names, self.images, strict=True):
            image.save(folder / f"{name}.part", format="PNG")
            (folder / f"{name}.part").replace(folder / name)
        content = {"v": 1, "system": self.system, "history": self.history, "images": names}
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (folder / f"{_FILE}.part").write_text(text, encoding="utf-8")
        (folder / f"{_FILE}.part").replace(folder / _FILE)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        model: VisualChatForConditionalGeneration,
        processor: VisualChatProcessor,
        cache: ImageCache | None = None,
    ) -> ChatSession:
        """Load a conversation that `save` wrote, with the same model or another.

        Raises ValueError if the folder holds none, or if conversation.json names images outside of the folder.
        """
        try:
            content = json.loads((Path(folder) / _FILE).read_text(encoding="utf-8"))
            session = cls(model, processor, content["system"], cache)
            if any(Path(name).name != name for name in content["images"]):
                raise ValueError("an image is outside of the folder")
            images = [to_rgb(open_bounded(Path(folder) / name)) for name in content["images"]]
            session._restore(content["history"], images)
            if content["history"]:
                shown = processor.encode(content["history"]).image_indices
                if content["history"][-1]["role"] != "assistant" or shown != list(range(len(images))):
                    raise ValueError("its messages and images do not match")
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{folder} holds no conversation: {error}") from None
        return session

    def _restore(self, history: list[dict[str, Any]], images: list[Image.Image]) -> None:
        self.history, self.images = history, images
        self._pixels = [self.processor.preprocess_image(image) for image in images]

    def _answer(
        self,
        question: dict[str, Any],
        shown: Sequence[Image.Image],
        max_new_tokens: int,
        on_text: Callable[[str], None] | None,
        sampling: dict[str, Any],
    ) -> str:
        images = [to_rgb(image) for image in shown]
        pixels = self._pixels + [self.processor.preprocess_image(image) for image in images]
        messages = [*self.history, question]
        encoded = self.processor.encode(self._with_system(messages))
        context = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if context is not None and len(encoded) + max_new_tokens > context:
            raise ValueError(
                f"the conversation has {len(encoded)} tokens; with {max_new_tokens} for an answer it does not fit into "
                f"the {context} tokens of the model's context: clear the conversation, or ask for a shorter answer"
            )
        options = {"do_sample": False} | sampling | {"max_new_tokens": max_new_tokens}
        if on_text:
            options["streamer"] = _Streamer(self.processor.tokenizer, on_text)
        tokens = self._generate(encoded, pixels, options)
        answer = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        if answer:
            self.history = [*messages, {"role": "assistant", "content": answer}]
            self.images, self._pixels = [*self.images, *images], pixels
        return answer

    def _generate(
        self, encoded: EncodedConversation, pixels: Sequence[np.ndarray], options: dict[str, Any]
    ) -> list[int]:
        """Generate the tokens that follow `encoded`, continuing from the longest prefix that is cached."""
        keys = self._token_keys(encoded, pixels)
        # The last token is always computed: its logits predict the first token of the answer.
        limit = min(len(keys) - 1, len(self._cached))
        same = next((n for n in range(limit) if keys[n] != self._cached[n]), limit)
        self._tokens.crop(same - self._tokens.get_seq_length())
        cached_images = encoded.modality[:same].count(IMAGE) // self.processor.image_tokens
        images = self._image_cache.model_inputs([pixels[index] for index in encoded.image_indices[cached_images:]])
        ids = torch.tensor([encoded.input_ids], device=self.model.device)
        try:
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                past_key_values=self._tokens,
                **images,
                **options,
            )
        except BaseException:
            self._reset_cache()  # an exception between two layers leaves it inconsistent
            raise
        tokens = out[0, len(keys) :].tolist()
        self._cached = [*keys, *tokens][: self._tokens.get_seq_length()]
        return tokens

    def _token_keys(self, encoded: EncodedConversation, pixels: Sequence[np.ndarray]) -> list[int | bytes]:
        """What identifies each token in the cache: its id, or the hash of its image for a placeholder."""
        hashes = [hashlib.sha256(pixels[index].tobytes()).digest() for index in encoded.image_indices]
        placeholders = iter([key for key in hashes for _ in range(self.processor.image_tokens)])
        return [
            next(placeholders) if modality == IMAGE else token
            for token, modality in zip(encoded.input_ids, encoded.modality, strict=True)
        ]

    def _reset_cache(self) -> None:
        """Replace the cache of tokens by an empty one; the conversation stays."""
        config = self.model.config
        split = self.model.supports_image_states
        self._tokens = ConversationCache(config) if split else DynamicCache(config=config.get_text_config(decoder=True))
        self._cached = []

    def _with_system(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"role": "system", "content": self.system}, *messages] if self.system else messages


class _Streamer(TextStreamer):
    """Passes finished text to a function, word by word."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self.on_text(text)
