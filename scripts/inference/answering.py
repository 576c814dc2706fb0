"""A trained model as something that answers prompts and measures losses, in batches.

Prompts are sorted by length before they are cut into batches, so that little padding is computed; answers come back in
the order of the prompts. The same model, prompts and settings give the same answers: decoding is greedy, and where a
suite wants sampling, it is drawn from a seed that follows from what the batch asks. With a journal, batches that were
answered before are read from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.conversation_cache import ImageCache
from model.template import IGNORE_INDEX, EncodedConversation, count_text, end_ids, render
from scripts.common.errors import UserError
from scripts.common.files import canonical_json, text_sha256
from scripts.common.progress import Progress
from scripts.config.evaluate import EvaluationConfig
from scripts.inference.answer_cache import AnswerCache
from scripts.inference.decoded_images import DecodedImageCache
from scripts.inference.generation import GenerationOptions
from scripts.inference.model_loading import load_model


@dataclass(frozen=True)
class Prompt:
    """A conversation; to be answered, it ends with a question. `name` says which one it is, should it not fit.

    `hashes` are the sha256 of its images, which `read` fetches (encoded bytes, same order) when their batch is due.
    Where losses are measured, `last_answer_only` leaves out the answers before the last one.
    """

    name: str
    messages: list[dict[str, Any]]
    hashes: Sequence[str]
    read_images: Callable[[], Sequence[bytes]]
    last_answer_only: bool = False


class ModelRunner:
    """One model that answers and is measured."""

    def __init__(self, folder: Path, settings: EvaluationConfig):
        """Load the model in `folder`. A `journal` may be given to it afterwards.

        Raises:
            UserError: see `load_model`.
        """
        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.model, self.processor = load_model(folder, settings.device)
        self.journal: AnswerCache | None = None
        self._images = DecodedImageCache(self.processor)
        self._states = ImageCache(self.model)

    def generate(
        self, prompts: Sequence[Prompt], label: str, blank: bool = False, generation: GenerationOptions | None = None
    ) -> list[str]:
        """Answer every prompt; with `blank` every image is replaced by one uniform colour.

        Args:
            prompts: conversations that end with a question.
            label: what is shown as progress.
            blank: whether the model may not see.
            generation: how answers are written; greedily, if not given.

        Raises:
            UserError: a prompt leaves no room for an answer in the model's context.
        """
        how = generation or GenerationOptions()
        options = self._generate_options(how)
        # Where an answer is cut does not change what is generated.
        asked = {"what": "answers", "blank": blank, "options": options}
        asked |= {"seed": self.settings.seed} if how.do_sample else {}
        texts = self._by_length(prompts, label, asked, lambda batch: self._generate(batch, blank, options))
        return [_until(text, how.until).strip() for text in texts]

    def answer_losses(self, conversations: Sequence[Prompt], label: str) -> list[tuple[float, int, bool]]:
        """For each conversation the cross-entropy in nats, summed over its supervised tokens, how many these are, and
        whether each of them is the one that greedy decoding would have taken."""
        found = self._by_length(conversations, label, {"what": "likelihoods"}, self._likelihoods)
        return [(nats, tokens, greedy) for nats, tokens, greedy in found]

    def losses(self, conversations: Sequence[Prompt], label: str) -> list[tuple[float, int]]:
        """Cross-entropy in nats, summed over the supervised tokens of each conversation, and how many these are."""
        return [(nats, tokens) for nats, tokens, _ in self.answer_losses(conversations, label)]

    def prompt_text(self, prompt: Prompt) -> str:
        """A prompt as the model reads it, with "<image>" for an image."""
        return "".join(text for text, _ in render(prompt.messages, self.processor.template))

    def count_tokens(self, answer: str) -> int:
        """Tokens that generating `answer` takes, its end token included."""
        tokenizer, template = self.processor.tokenizer, self.processor.template
        return count_text(tokenizer, answer) + len(end_ids(tokenizer, template))

    def _by_length(self, prompts: Sequence[Prompt], label: str, asked: dict, work: Callable[[list], list]) -> list:
        """Apply `work` to batches of (tokens, prompt) of similar length and return its results in the given order."""
        encoded = [self._encode(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda index: -len(encoded[index]))
        results: list = [None] * len(prompts)
        progress = Progress(label, len(prompts))
        with torch.inference_mode():
            for start in range(0, len(order), self.settings.batch):
                chosen = order[start : start + self.settings.batch]
                batch = [(encoded[index], prompts[index]) for index in chosen]
                for index, output in zip(chosen, self._batch(batch, asked, work), strict=True):
                    results[index] = output
                progress.advance(len(chosen))
        progress.close()
        return results

    def _batch(self, batch: list, asked: dict, work: Callable[[list], list]) -> list:
        """The outputs of one batch, from the journal if it has them."""
        asked = asked | {
            "batch": [[tokens.input_ids, prompt.last_answer_only, list(prompt.hashes)] for tokens, prompt in batch]
        }

        def answer(key: str) -> list:
            torch.manual_seed(int(key[:15], 16))
            return work(batch)

        return (
            answer(text_sha256(canonical_json(asked)))
            if self.journal is None
            else self.journal.get_or_compute(asked, answer)
        )

    def _generate_options(self, how: GenerationOptions) -> dict[str, Any]:
        """The arguments of `generate`."""
        options: dict[str, Any] = {
            "max_new_tokens": how.max_new_tokens or self.settings.max_new_tokens,
            "do_sample": how.do_sample,
            "num_beams": how.num_beams,
        }
        if how.do_sample:
            drawn = {name: asdict(how)[name] for name in ("temperature", "top_p", "top_k")}
            options |= {name: value for name, value in drawn.items() if value is not None}
        return options

    def _generate(self, batch: list, blank: bool, options: dict[str, Any]) -> list[str]:
        inputs = self._collate(batch, "left", blank)
        del inputs["labels"]
        if "pixel_values" in inputs:
            # Suites and held-out conversations show the same images again and again.
            inputs |= self._states.model_inputs(list(inputs.pop("pixel_values").cpu().numpy()))
        tokens = self.model.generate(**inputs, **options)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        return self.processor.tokenizer.batch_decode(answers, skip_special_tokens=True)

    def _likelihoods(self, batch: list) -> list[tuple[float, int, bool]]:
        inputs = self._collate(batch, "right", blank=False)
        del inputs["attention_mask"]
        if "pixel_values" in inputs:
            # The choices of a question, and the rounds of a conversation, show the same images.
            pixels, places = inputs.pop("pixel_values").unique(dim=0, return_inverse=True)
            inputs["image_features"] = self.model.vision_tower(pixels)[places]
        labelled = inputs["labels"][:, 1:] != IGNORE_INDEX
        targets = inputs["labels"][:, 1:][labelled]
        logits = self.model(**inputs).logits.float()
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double().cpu()
        right = (logits.argmax(-1) == targets).cpu()
        counts = labelled.sum(1).tolist()
        parts = zip(losses.split(counts), right.split(counts), counts, strict=True)
        return [(float(loss.sum()), count, bool(greedy.all())) for loss, greedy, count in parts]

    def _encode(self, prompt: Prompt) -> EncodedConversation:
        encoded = self.processor.encode(prompt.messages)
        room = getattr(self.model.config.text_config, "max_position_embeddings", None)
        if room is not None and len(encoded) >= room:
            raise UserError(f"{prompt.name} has {len(encoded)} tokens, but the model reads at most {room}")
        if prompt.last_answer_only:
            before = len(self.processor.encode(prompt.messages[:-1]))
            encoded.labels[:before] = [IGNORE_INDEX] * before
        return encoded

    def _collate(self, batch: list, padding_side: str, blank: bool) -> dict[str, torch.Tensor]:
        samples = [(tokens, self._pixels(prompt, blank)) for tokens, prompt in batch]
        inputs = self.processor.collate(samples, padding_side)
        return {name: value.to(self.model.device) for name, value in inputs.items()}

    def _pixels(self, prompt: Prompt, blank: bool) -> list[np.ndarray]:
        if not prompt.hashes:
            return []
        images = [
            self._images.get(sha256, data) for sha256, data in zip(prompt.hashes, prompt.read_images(), strict=True)
        ]
        return [self._blanked(image) for image in images] if blank else images

    def _blanked(self, image: np.ndarray) -> np.ndarray:
        """An image (3, H, W) of the colour that the encoder regards as the mean, which normalises to zero."""
        colour = np.rint(255 * np.array(self.model.config.image_mean)).astype(np.uint8)
        return np.broadcast_to(colour[:, None, None], image.shape)


def _until(text: str, stops: Sequence[str]) -> str:
    """A text up to the first of the given ones."""
    return text[: min((place for stop in stops if stop and (place := text.find(stop)) >= 0), default=len(text))]
