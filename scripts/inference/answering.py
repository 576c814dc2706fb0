"""Runs an exported model over prompts, in batches: generates answers and measures losses.

Prompts are sorted by length before they are cut into batches, so that little padding is computed; results come back in
the order of the prompts. The same model, prompts and settings give the same answers: decoding is greedy, and a suite
that samples uses a seed derived from the request of each batch. With an answer cache, batches that were computed
earlier are read from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from model.image_cache import ImageCache
from model.template import IGNORE_INDEX, EncodedConversation, render
from model.token_counter import TokenCounter
from scripts.common.errors import UserError
from scripts.common.files import canonical_json, text_sha256
from scripts.common.progress import Progress
from scripts.config.evaluate import EvaluationConfig
from scripts.inference.answer_cache import AnswerCache
from scripts.inference.decoded_images import DecodedImageCache
from scripts.inference.generation import GenerationOptions
from scripts.inference.image_files import unreadable
from scripts.inference.model_loading import load_model
from scripts.media.opening import UnreadableImageError


@dataclass(frozen=True)
class Prompt:
    """A conversation. To generate an answer, it must end with a question; to measure a loss, with an answer.

    `name` identifies it in error messages. `hashes` are the sha256 of its images; `read_images` returns their encoded
    bytes in the same order and is called when their batch is computed. With `last_answer_only` the loss is measured on
    the last answer alone.
    """

    name: str
    messages: list[dict[str, Any]]
    hashes: Sequence[str]
    read_images: Callable[[], Sequence[bytes]]
    last_answer_only: bool = False


class TokenLoss(NamedTuple):
    """The loss of one conversation: summed cross-entropy in nats over its supervised tokens, and their number.

    `greedy` is whether greedy decoding would have produced every one of them.
    """

    nats: float
    tokens: int
    greedy: bool


Batch = list[tuple[EncodedConversation, Prompt]]


class ModelRunner:
    """One model, with the images that it has seen cached. `answer_cache` may be set after construction."""

    def __init__(self, folder: Path, settings: EvaluationConfig) -> None:
        """Load the model in `folder`.

        Raises:
            UserError: see `load_model`.
        """
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.model, self.processor = load_model(folder, settings.device)
        self._counter = TokenCounter(self.processor.tokenizer, self.processor.template, self.processor.image_tokens)
        self.answer_cache: AnswerCache | None = None
        self._images = DecodedImageCache(self.processor)
        self._states = ImageCache(self.model)

    def generate(
        self, prompts: Sequence[Prompt], label: str, blank: bool = False, generation: GenerationOptions | None = None
    ) -> list[str]:
        """Generate an answer to every prompt, in the order of `prompts`.

        Args:
            prompts: conversations that end with a question.
            label: title of the progress line.
            blank: replace every image by one uniform colour.
            generation: decoding options; greedy by default.

        Raises:
            UserError: a prompt leaves no room for an answer in the model's context.
        """
        generation = generation or GenerationOptions()
        options = self._generate_options(generation)
        # `until` is not part of the request: it cuts the text after it was generated.
        request: dict[str, Any] = {"what": "answers", "blank": blank, "options": options}
        if generation.do_sample:
            request["seed"] = self.settings.seed
        texts = self._by_length(prompts, label, request, lambda batch: self._generate(batch, blank, options))
        return [_cut_at_stop(text, generation.until).strip() for text in texts]

    def answer_losses(self, conversations: Sequence[Prompt], label: str) -> list[TokenLoss]:
        """The loss of every conversation, in the order of `conversations`.

        Raises:
            UserError: a conversation does not fit into the model's context.
        """
        found = self._by_length(conversations, label, {"what": "likelihoods"}, self._token_losses)
        return [TokenLoss(*values) for values in found]

    def losses(self, conversations: Sequence[Prompt], label: str) -> list[tuple[float, int]]:
        """As `answer_losses`, without `greedy`: (nats, tokens) of every conversation."""
        return [(loss.nats, loss.tokens) for loss in self.answer_losses(conversations, label)]

    def prompt_text(self, prompt: Prompt) -> str:
        """The text that the model reads, with "<image>" in place of an image."""
        return "".join(text for text, _ in render(prompt.messages, self.processor.template))

    def count_tokens(self, answer: str) -> int:
        """Number of tokens of `answer`, its end tokens included."""
        return self._counter.answers([answer])[0] + self._counter.end()

    def _by_length(
        self, prompts: Sequence[Prompt], label: str, request: dict[str, Any], compute: Callable[[Batch], list]
    ) -> list:
        """Apply `compute` to batches of similar length and return its results in the order of `prompts`."""
        encoded = [self._encode(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: -len(encoded[index]))
        results: list = [None] * len(prompts)
        progress = Progress(label, len(prompts))
        with torch.inference_mode():
            for start in range(0, len(order), self.settings.batch_size):
                indices = order[start : start + self.settings.batch_size]
                batch = [(encoded[index], prompts[index]) for index in indices]
                for index, output in zip(indices, self._cached(batch, request, compute), strict=True):
                    results[index] = output
                progress.advance(len(indices))
        progress.close()
        return results

    def _cached(self, batch: Batch, request: dict[str, Any], compute: Callable[[Batch], list]) -> list:
        """The outputs of one batch, from the answer cache if it has them."""
        contents = [[tokens.input_ids, prompt.last_answer_only, list(prompt.hashes)] for tokens, prompt in batch]
        request = request | {"batch": contents}

        def seeded(key: str) -> list:
            torch.manual_seed(int(key[:15], 16))
            return compute(batch)

        if self.answer_cache is None:
            return seeded(text_sha256(canonical_json(request)))
        return self.answer_cache.get_or_compute(request, seeded)

    def _generate_options(self, generation: GenerationOptions) -> dict[str, Any]:
        """The arguments of `generate` of `transformers`."""
        options: dict[str, Any] = {
            "max_new_tokens": generation.max_new_tokens or self.settings.max_new_tokens,
            "do_sample": generation.do_sample,
            "num_beams": generation.num_beams,
        }
        if generation.do_sample:
            sampling = {name: asdict(generation)[name] for name in ("temperature", "top_p", "top_k")}
            options |= {name: value for name, value in sampling.items() if value is not None}
        return options

    def _generate(self, batch: Batch, blank: bool, options: dict[str, Any]) -> list[str]:
        inputs = self._collate(batch, "left", blank)
        del inputs["labels"]
        if "pixel_values" in inputs:
            # Suites and held-out conversations show the same images many times.
            inputs |= self._states.model_inputs(list(inputs.pop("pixel_values").cpu().numpy()))
        tokens = self.model.generate(**inputs, **options)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)

    def _token_losses(self, batch: Batch) -> list[tuple[float, int, bool]]:
        inputs = self._collate(batch, "right", blank=False)
        del inputs["attention_mask"]
        if "pixel_values" in inputs:
            # The choices of a question, and the rounds of a conversation, show the same images.
            pixels, indices = inputs.pop("pixel_values").unique(dim=0, return_inverse=True)
            inputs["image_features"] = self.model.vision_tower(pixels)[indices]
        labelled = inputs["labels"][:, 1:] != IGNORE_INDEX
        targets = inputs["labels"][:, 1:][labelled]
        logits = self.model(**inputs).logits.float()
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().cpu()
        matches = (logits.argmax(-1) == targets).cpu()
        counts = labelled.sum(1).tolist()
        rows = zip(losses.split(counts), matches.split(counts), counts, strict=True)
        return [(float(loss.sum()), count, bool(greedy.all())) for loss, greedy, count in rows]

    def _encode(self, prompt: Prompt) -> EncodedConversation:
        encoded = self.processor.encode(prompt.messages)
        context = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if context is not None and len(encoded) >= context:
            raise UserError(f"{prompt.name} has {len(encoded)} tokens, but the model reads at most {context}")
        if prompt.last_answer_only:
            prefix = len(self.processor.encode(prompt.messages[:-1]))
            encoded.labels[:prefix] = [IGNORE_INDEX] * prefix
        return encoded

    def _collate(self, batch: Batch, padding_side: str, blank: bool) -> dict[str, torch.Tensor]:
        samples = [(tokens, self._pixels(prompt, blank)) for tokens, prompt in batch]
        inputs = self.processor.collate(samples, padding_side)
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _pixels(self, prompt: Prompt, blank: bool) -> list[np.ndarray]:
        if not prompt.hashes:
            return []
        try:
            images = [
                self._images.get(sha256, data) for sha256, data in zip(prompt.hashes, prompt.read_images(), strict=True)
            ]
        except UnreadableImageError as error:
            raise unreadable(error, f"of {prompt.name}") from None
        return [self._blanked(image) for image in images] if blank else images

    def _blanked(self, image: np.ndarray) -> np.ndarray:
        """An image (3, H, W) of the encoder's mean colour, which normalises to zero."""
        colour = np.rint(255 * np.array(self.model.config.image_mean)).astype(np.uint8)
        return np.broadcast_to(colour[:, None, None], image.shape)


def _cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop sequence in it."""
    for stop in stops:
        if stop:
            text = text.partition(stop)[0]
    return text
