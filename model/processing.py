"""The processor: conversations and images in, batches of tensors out.

It holds an image processor and a tokenizer of `transformers`, the prompt template and the number of tokens per image.
Its images are uint8, resized and cropped exactly as by the image processor, and not normalised: the model does that.
Only the Pillow back-end of image processors is used, so that pixels are the same on every machine.
"""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    ProcessorMixin,
    SiglipImageProcessorPil,
)

from .configuration import VisualChatConfig
from .cropping import processed_pixels
from .pixels import open_bounded
from .template import (
    IGNORE_INDEX,
    IMAGE_TOKEN,
    EncodedConversation,
    Segment,
    Template,
    encode_segments,
    render_segments,
    segments,
)

_SECONDS = 60
_MOST_BYTES = 256 << 20
"""How long a download of an image may wait."""


class VisualChatProcessor(ProcessorMixin):
    """Image processor, tokenizer, template and tokens per image: what a model needs to read a conversation.

    The tokenizer gets the image placeholder if it lacks it. Raises ValueError for an image processor that scales pixels
    by anything but 1/255.
    """

    def __init__(
        self, image_processor: Any, tokenizer: Any, image_tokens: int, template: Template | dict[str, Any] | None = None
    ) -> None:
        if isinstance(template, dict) or template is None:
            template = Template.from_dict(template or {})
        if abs(image_processor.rescale_factor * 255 - 1) > 1e-6:
            raise ValueError(f"the image processor scales pixels by {image_processor.rescale_factor}, not by 1/255")
        add_image_token(tokenizer)
        self.image_tokens = image_tokens
        self.template = template
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_base_models(
        cls, vision_folder: Path, tokenizer: Any, image_tokens: int, template: Template | dict[str, Any] | None = None
    ) -> VisualChatProcessor:
        """Build a processor from the folder of a vision encoder and a tokenizer (an object, or its folder)."""
        if isinstance(tokenizer, str | Path):
            tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        return cls(load_image_processor(vision_folder), tokenizer, image_tokens, template)

    def preprocess_image(self, image: Image.Image) -> np.ndarray:
        """Convert an image of any mode into the input of the encoder: uint8 (3, height, width), resized and cropped.

        Raises ValueError for an image that the image processor would enlarge without bound, see `processed_pixels`.
        """
        return processed_pixels(self.image_processor, image)

    def encode(self, messages: Sequence[dict[str, Any]]) -> EncodedConversation:
        """Encode a conversation as tokens, see `template.encode`."""
        return self._encoded(segments(messages, self.template))

    def collate(
        self, samples: Sequence[tuple[EncodedConversation, Sequence[np.ndarray]]], padding_side: str = "right"
    ) -> dict[str, torch.Tensor]:
        """Make a batch of (tokens, images of the conversation as uint8 (3, height, width)) pairs.

        Returns `input_ids`, `labels`, `attention_mask` and `modality` (0 padding, 1 text, 2 image), each (B, T), and
        `pixel_values` (N, 3, height, width) of all images in reading order, if there are any. Pad on the right to
        train and on the left to generate.
        """
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        length = max(len(encoded) for encoded, _ in samples)

        def stack(rows: list[list[int]], fill: int) -> torch.Tensor:
            out = torch.full((len(rows), length), fill)
            for target, row in zip(out, rows, strict=True):
                start = length - len(row) if padding_side == "left" else 0
                target[start : start + len(row)] = torch.tensor(row)
            return out

        batch = {
            "input_ids": stack([encoded.input_ids for encoded, _ in samples], pad),
            "labels": stack([encoded.labels for encoded, _ in samples], IGNORE_INDEX),
            "modality": stack([encoded.modality for encoded, _ in samples], 0),
        }
        batch["attention_mask"] = (batch["modality"] != 0).long()
        pixels = [images[index] for encoded, images in samples for index in encoded.image_indices]
        if pixels:
            batch["pixel_values"] = torch.from_numpy(np.stack(pixels))
        return batch

    def __call__(
        self,
        text: str | Sequence | None = None,
        images: Any = None,
        padding_side: str = "left",
        return_tensors: str = "pt",
        **ignored: Any,
    ) -> BatchFeature:
        """Prepare one conversation, or a batch of them, as inputs of the model, ready for `generate`.

        A conversation is a list of messages in the chat form, or a text that is one question, with "<image>" in the
        place of every image it shows (without any, its images are shown first). `images` are those of the one
        conversation; for a batch, a list of them per conversation. `ignored` are options that other processors take,
        such as `padding`: here a batch is always padded.

        Raises ValueError without a text, or if placeholders and images do not match.
        """
        if text is None:
            raise ValueError("pass a question or a conversation as text; images alone are not a question")
        if isinstance(images, Image.Image):
            images = [images]
        single = isinstance(text, str) or (len(text) > 0 and isinstance(text[0], dict))
        conversations, galleries = ([text], [images or ()]) if single else (text, images)
        if not galleries:
            galleries = [()] * len(conversations)
        elif isinstance(galleries[0], Image.Image):
            galleries = [[image] for image in galleries]
        samples = []
        for one, gallery in zip(conversations, galleries, strict=True):
            encoded = self.encode(_question(one, len(gallery)) if isinstance(one, str) else one)
            samples.append((encoded, gallery))
        return self._inputs(samples, padding_side)

    def apply_chat_template(
        self,
        conversation: Sequence,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = False,
        padding_side: str = "left",
        **ignored: Any,
    ) -> Any:
        """Write a conversation (or a list of them) in the model's prompt template, as `transformers` does.

        Image parts contain their image, path, URL or base64 form under 'image', 'path', 'url' or 'base64'. With
        `add_generation_prompt`, a last question is followed by the answer header; with `continue_final_message`, a last
        answer is not closed. Returns the text, with one "<image>" for each image; with `tokenize` the model's inputs,
        or without `return_dict` only `input_ids`.

        Raises ValueError if `chat_template` is given, or for an image part without one image.
        """
        if chat_template is not None:
            raise ValueError("the prompt template is part of the model; it was not trained with another chat_template")
        single = isinstance(conversation[0], dict)
        samples, texts = [], []
        for messages in [conversation] if single else conversation:
            messages, gallery = _with_indices(messages)
            layout = segments(messages, self.template)
            open_answer = continue_final_message and layout[-1].kind == "end"
            open_question = messages[-1]["role"] == "user" and not (add_generation_prompt or continue_final_message)
            if open_answer or (open_question and self.template.header_before_answer(last=True)):
                layout.pop()  # what closes the answer, or comes before it
            texts.append(self._written(layout))
            samples.append((self._encoded(layout), gallery))
        if not tokenize:
            return texts[0] if single else texts
        inputs = self._inputs(samples, padding_side)
        return inputs if return_dict else inputs["input_ids"]

    def _encoded(self, layout: Sequence[Segment]) -> EncodedConversation:
        return encode_segments(layout, self.tokenizer, self.template, self.image_tokens)

    def _written(self, layout: Sequence[Segment]) -> str:
        """The text of all tokens of a conversation, with one "<image>" for each image."""
        begin = self.tokenizer.bos_token if self.template.bos and self.tokenizer.bos_token else ""
        end = self.template.answer_end or self.tokenizer.eos_token
        return begin + "".join(text for text, _ in render_segments(layout, self.template, end))

    def _inputs(
        self, samples: Sequence[tuple[EncodedConversation, Sequence[Image.Image]]], padding_side: str
    ) -> BatchFeature:
        for encoded, gallery in samples:
            if any(not 0 <= index < len(gallery) for index in encoded.image_indices):
                raise ValueError(f"a conversation shows images {encoded.image_indices}, but {len(gallery)} were given")
        ready = [
            (encoded, [self.preprocess_image(_opened(image)) for image in gallery]) for encoded, gallery in samples
        ]
        batch = self.collate(ready, padding_side)
        del batch["labels"]
        return BatchFeature(batch)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of processor_config.json."""
        return super().to_dict() | {"template": self.template.to_dict()}

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs that the processor makes."""
        return ["input_ids", "modality", "attention_mask", "pixel_values"]

    @classmethod
    def _get_arguments_from_pretrained(
        cls, folder: str | Path, processor_dict: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        # `transformers` would prefer torchvision where it is installed, whose pixels differ a little.
        return [load_image_processor(folder, **kwargs), AutoTokenizer.from_pretrained(folder, **kwargs)]


def _opened(image: Image.Image | str) -> Image.Image:
    """An image, or the one at a URL, at a path or in base64, in its own mode.

    `load_image` of `transformers` converts to RGB, and so drops transparency and clips 16 bits.

    Raises ValueError for a text that is none of these and for an image that is too large, TypeError for anything else.
    """
    if isinstance(image, Image.Image):
        return image
    if not isinstance(image, str):
        raise TypeError(f"an image must be a PIL image, or its URL, path or base64 text, not {type(image).__name__}")
    if image.startswith(("http://", "https://")):
        # Some servers refuse the name that Python's library gives itself.
        request = Request(image, headers={"User-Agent": "VisualChat"})  # noqa: S310 - the scheme is one of two
        with urlopen(request, timeout=_SECONDS) as response:  # noqa: S310
            data = response.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise ValueError(f"the image at {image} has more than {_MOST_BYTES:,} bytes")
        return open_bounded(BytesIO(data))
    if os.path.isfile(image):
        return open_bounded(image)
    text = image.partition(",")[2] if image.startswith("data:image/") else image
    try:
        file = BytesIO(base64.b64decode(text, validate=True))
    except ValueError as error:
        raise ValueError(f"{image[:80]!r} is neither a URL, nor a file, nor an image in base64: {error}") from None
    try:
        return open_bounded(file)
    except OSError:
        raise ValueError(f"{image[:80]!r} is neither a URL, nor a file, nor an image in base64") from None


def load_image_processor(folder: str | Path, **kwargs: Any) -> Any:
    """Load the image processor of a folder with its Pillow back-end.

    SigLIP 2's, which cuts images of any shape into patches, is replaced by one that makes squares of as many patches.
    """
    images = AutoImageProcessor.from_pretrained(folder, backend="pil", **kwargs)
    if not hasattr(images, "max_num_patches"):
        return images
    side = images.patch_size * math.isqrt(images.max_num_patches)
    return SiglipImageProcessorPil(
        size={"height": side, "width": side},
        resample=images.resample,
        image_mean=images.image_mean,
        image_std=images.image_std,
    )


def image_side(image_processor: Any) -> int:
    """The side in pixels of the images that an image processor makes. Raises ValueError if they are not square."""
    height, width = np.asarray(
        image_processor(Image.new("RGB", (8, 8)), do_rescale=False, do_normalize=False)["pixel_values"][0]
    ).shape[-2:]
    if height != width:
        raise ValueError(f"the image processor makes images of {width} x {height} pixels; configure it to make squares")
    return height


def add_image_token(tokenizer: Any) -> None:
    """Make the image placeholder a special token of `tokenizer`, whose vocabulary grows only if it lacks it."""
    if IMAGE_TOKEN not in tokenizer.all_special_tokens:
        tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)


def _question(text: str, images: int) -> list[dict[str, Any]]:
    """Make a conversation of one question out of a text with "<image>" in the place of every image, or without any."""
    placeholders = text.count(IMAGE_TOKEN)
    if placeholders not in (0, images):
        raise ValueError(f"the text has {placeholders} times {IMAGE_TOKEN!r}, but {images} images were given")
    shown: list[dict[str, Any]] = [{"type": "image", "index": index} for index in range(images)]
    if not placeholders:
        return [{"role": "user", "content": [*shown, {"type": "text", "text": text.strip()}]}]
    first, *others = ({"type": "text", "text": piece} for piece in text.split(IMAGE_TOKEN))
    parts = [first, *(part for pair in zip(shown, others, strict=True) for part in pair)]
    return [{"role": "user", "content": parts}]


def _with_indices(messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Replace images in messages by their index, as `template.encode` takes them; returns messages and images."""
    gallery: list[Any] = []

    def numbered(part: dict[str, Any]) -> dict[str, Any]:
        if part.get("type") != "image":
            return part
        sources = [part[name] for name in ("image", "url", "path", "base64") if part.get(name) is not None]
        if len(sources) != 1:
            raise ValueError(
                f"an image part must contain one image, as 'image', 'url', 'path' or 'base64', not {part!r}"
            )
        gallery.append(sources[0])
        return {"type": "image", "index": len(gallery) - 1}

    return [
        message
        if isinstance(message["content"], str)
        else message | {"content": [numbered(part) for part in message["content"]]}
        for message in messages
    ], gallery


AutoProcessor.register(VisualChatConfig, VisualChatProcessor, exist_ok=True)
