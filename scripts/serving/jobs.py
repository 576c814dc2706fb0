"""Jobs of the engine: a prompt with its sampling parameters, token sampling, and incremental detokenisation."""

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.template import EncodedConversation

STOP, LENGTH, TIMEOUT, CANCELLED, ERROR = "stop", "length", "timeout", "cancelled", "error"
DISPLACED = "displaced"
"""The queue was full, and the job made room for one of another client."""


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are sampled. `temperature` 0 is greedy decoding; `seed` makes sampling repeatable."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """New text of an answer. The last delta has the reason for the end (`finish`) and, if that is `ERROR`, `error`."""

    text: str = ""
    finish: str | None = None
    error: str = ""


@dataclass(eq=False)
class Job:
    """A prompt whose answer is to be generated.

    Attributes:
        encoded: the prompt.
        pixels: its images in reading order, uint8 (3, height, width).
        hashes: the sha256 of each image's pixels.
        sampling: how tokens are sampled.
        deadline: when the job times out, in the time of `time.monotonic`.
        on_delta: receives the answer; called in the engine's thread, must not block.
        client: who sent it; clients share the queue and the batch equally.
        cached_tokens: how many tokens of the prompt were taken from the prefix cache.
        output_ids: the tokens of the answer so far.
        cancelled: set to cancel the job.
    """

    encoded: EncodedConversation
    pixels: Sequence[np.ndarray]
    hashes: Sequence[bytes]
    sampling: SamplingParams
    deadline: float
    on_delta: Callable[[TextDelta], None]
    client: str = ""
    cached_tokens: int = 0
    output_ids: list[int] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Let the engine drop the job before its next step."""
        self.cancelled.set()


class TokenStreamer:
    """Samples the tokens of one answer and decodes them to text."""

    def __init__(self, job: Job, tokenizer: PreTrainedTokenizerFast, eos_tokens: frozenset[int]) -> None:
        self.job, self._tokenizer, self._eos_tokens = job, tokenizer, eos_tokens
        self.finished = False
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held = ""  # decoded text that may be the beginning of a stop sequence
        self._decoded = 0  # characters of the answer that were decoded
        self._generator: torch.Generator | None = None
        if job.sampling.temperature:
            self._generator = torch.Generator()
            if job.sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(job.sampling.seed)

    def sample(self, logits: Tensor) -> int:
        """Sample a token from logits (vocabulary,)."""
        if self._generator is None:
            return int(logits.argmax())
        probabilities = (logits.float().cpu() / self.job.sampling.temperature).softmax(-1)
        if self.job.sampling.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            # The most likely tokens whose probabilities together reach top_p; the first one always stays.
            ordered[ordered.cumsum(0) - ordered >= self.job.sampling.top_p] = 0
            return int(order[torch.multinomial(ordered, 1, generator=self._generator)])
        return int(torch.multinomial(probabilities, 1, generator=self._generator))

    def put(self, token: int) -> TextDelta | None:
        """Append a token; returns the text that can be sent now, `None` if there is none yet."""
        self.job.output_ids.append(token)
        if token in self._eos_tokens:
            return self._last(STOP)
        # A token may be part of a character; then the stream returns nothing until the character is complete.
        new = self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        self._decoded += len(new)
        text, stopped = self._until_stop(self._held + new)
        if stopped:
            self._held = ""
            return TextDelta(text, STOP)
        if len(self.job.output_ids) >= self.job.sampling.max_new_tokens:
            self._held = text + self._held
            return self._last(LENGTH)
        return TextDelta(text) if text else None

    def _until_stop(self, text: str) -> tuple[str, bool]:
        """The text before the first stop sequence, and whether there is one; a possible start of one is held back."""
        stops = self.job.sampling.stop
        starts = [start for start in (text.find(stop) for stop in stops) if start >= 0]
        if starts:
            return text[: min(starts)], True
        held = max(
            (n for stop in stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])), default=0
        )
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def _last(self, finish: str) -> TextDelta:
        tokens = [token for token in self.job.output_ids if token not in self._eos_tokens]
        rest = self._tokenizer.decode(tokens, skip_special_tokens=True)[self._decoded :]
        return TextDelta(self._held + rest, finish)


def copy_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy for one thread: encoding changes a tokenizer's state, which breaks decoding in another thread."""
    return copy.deepcopy(tokenizer)
