"""A chat: questions and images in, answers out, over many rounds, of which only the new text is computed.

The session keeps the conversation in the chat form. For every question the whole conversation is written by the same
template as in training, and what the model has in its cache already, from the first token on, is not computed again;
so the answers are those of a fresh start, and undoing, regenerating or loading a conversation needs no care. An image
is encoded once, however often it is shown and in however many sessions that share an `ImageCache`.
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

from .conversation_cache import ConversationCache, ImageCache
from .modeling import VisualChatForConditionalGeneration
from .processing import VisualChatProcessor, to_rgb
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
    ):
        """`system` is said before the conversation; sessions with the same model may share a `cache` of images."""
        self.model = model.eval()
        self.processor = processor
        self.system = system
        self.history: list[dict[str, Any]] = []
        self.images: list[Image.Image] = []
        self._pixels: list[np.ndarray] = []
        self._image_cache = cache or ImageCache(model)
        self._forget_tokens()

    def clear(self) -> None:
        """Forget the conversation and its images."""
        self.history, self.images, self._pixels = [], [], []
        self._forget_tokens()

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
        piece by piece while it is made. `sampling` are options of `generate` (do_sample, temperature, top_p, ...);
        without them the likeliest answer is taken. A question that fails or gets no answer leaves the conversation as
        it was. Raises ValueError if the conversation does not fit into the model's context.
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
        """Answer the last question anew, for instance by sampling; the arguments are those of `ask`.

        Raises ValueError if nothing was asked yet.
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
        """Take back the last round; returns its question, as a message, and the images it brought.

        Raises ValueError if nothing was asked yet.
        """
        if not self.history:
            raise ValueError("there is no round to take back")
        *self.history, question, _ = self.history
        brought = sum(part["type"] == "image" for part in question["content"])
        kept = len(self.images) - brought
        shown, self.images, self._pixels = self.images[kept:], self.images[:kept], self._pixels[:kept]
        return question, shown

    def save(self, folder: str | Path) -> None:
        """Write the conversation into `folder`: conversation.json, and the images as PNG, which keeps every pixel.

        One that was saved there before stays whole until the new one is: images are named by their pixels, and the
        file that names them is replaced last.
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
        """Take up a conversation that `save` wrote, with this model or another.

        Raises ValueError if the folder holds none, or its file names images outside of the folder.
        """
        try:
            content = json.loads((Path(folder) / _FILE).read_text(encoding="utf-8"))
            session = cls(model, processor, content["system"], cache)
            if any(Path(name).name != name for name in content["images"]):
                raise ValueError("an image lies outside of the folder")
            images = [Image.open(Path(folder) / name).convert("RGB") for name in content["images"]]
            session._restore(content["history"], images)
            if content["history"]:
                shown = processor.encode(content["history"]).image_indices
                if content["history"][-1]["role"] != "assistant" or shown != list(range(len(images))):
                    raise ValueError("its messages and images do not belong together")
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
        pictures = [to_rgb(image) for image in shown]
        pixels = self._pixels + [self.processor.preprocess_image(picture) for picture in pictures]
        asked = [*self.history, question]
        encoded = self.processor.encode(self._with_system(asked))
        room = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if room is not None and len(encoded) + max_new_tokens > room:
            raise ValueError(
                f"the conversation has {len(encoded)} tokens; with {max_new_tokens} for an answer it does not fit into "
                f"the {room} that the model can read: clear the conversation, or ask for a shorter answer"
            )
        options = {"do_sample": False} | sampling | {"max_new_tokens": max_new_tokens}
        if on_text:
            options["streamer"] = _Streamer(self.processor.tokenizer, on_text)
        tokens = self._generate(encoded, pixels, options)
        answer = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        if answer:
            self.history = [*asked, {"role": "assistant", "content": answer}]
            self.images, self._pixels = [*self.images, *pictures], pixels
        return answer

    def _generate(
        self, encoded: EncodedConversation, pixels: Sequence[np.ndarray], options: dict[str, Any]
    ) -> list[int]:
        """Generate behind `encoded`, going on from the longest beginning that the cache holds already."""
        names = self._names(encoded, pixels)
        # The last token is always computed: the answer's first one follows from it.
        limit = min(len(names) - 1, len(self._cached))
        same = next((n for n in range(limit) if names[n] != self._cached[n]), limit)
        self._tokens.crop(same - self._tokens.get_seq_length())
        known = sum(kind == IMAGE for kind in encoded.modality[:same]) // self.processor.image_tokens
        images = self._image_cache.model_inputs([pixels[index] for index in encoded.image_indices[known:]])
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
            self._forget_tokens()  # it may have been stopped between two layers
            raise
        tokens = out[0, len(names) :].tolist()
        self._cached = [*names, *tokens][: self._tokens.get_seq_length()]
        return tokens

    def _names(self, encoded: EncodedConversation, pixels: Sequence[np.ndarray]) -> list[int | bytes]:
        """The tokens, with the image's hash in place of every placeholder."""
        hashes = iter([hashlib.sha256(pixels[index].tobytes()).digest() for index in encoded.image_indices])
        names: list[int | bytes] = []
        left, name = 0, b""
        for token, kind in zip(encoded.input_ids, encoded.modality, strict=True):
            if kind == IMAGE:
                if not left:
                    left, name = self.processor.image_tokens, next(hashes)
                left -= 1
            names.append(name if kind == IMAGE else token)
        return names

    def _forget_tokens(self) -> None:
        """Start with an empty cache; the conversation stays."""
        config = self.model.config
        split = self.model.supports_image_states
        self._tokens = ConversationCache(config) if split else DynamicCache(config=config.get_text_config(decoder=True))
        self._cached: list[int | bytes] = []

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
