"""One answer in the making: what was asked, how its tokens are chosen, and how tokens become text piece by piece."""

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from model.template import EncodedConversation

STOP, LENGTH, TIMEOUT, CANCELLED, ERROR = "stop", "length", "timeout", "cancelled", "error"


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen. `temperature` 0 takes the likeliest one; `seed` makes a draw repeatable."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """A piece of an answer. The last one says why it ended (`finish`), and `error` what went wrong, if anything did."""

    text: str = ""
    finish: str | None = None
    error: str = ""


@dataclass(eq=False)
class Job:
    """A question that waits for its answer.

    `pixels` are the images of `encoded`, uint8 (3, height, width), in reading order, and `hashes` their sha256.
    `on_delta` is called in the engine's thread and must return at once. `deadline` is a time of `time.monotonic`.
    """

    encoded: EncodedConversation
    pixels: Sequence[np.ndarray]
    hashes: Sequence[bytes]
    sampling: SamplingParams
    deadline: float
    on_delta: Callable[[TextDelta], None]
    cached_tokens: int = 0  # tokens of the prompt that an earlier conversation had computed
    output_ids: list[int] = field(default_factory=list)  # tokens of the answer so far
    cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Nobody waits for the answer any more: the engine drops it before its next step."""
        self.cancelled.set()


class TokenStreamer:
    """Chooses the tokens of one answer and turns them into text."""

    def __init__(self, job: Job, tokenizer, ends: frozenset[int]):
        """`tokenizer` is the fast tokenizer of `transformers`, `ends` are the tokens that close an answer."""
        self.job, self._tokenizer, self._ends = job, tokenizer, ends
        self.finished = False
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held = ""  # text that may be the beginning of a stop sequence
        self._shown = 0  # letters of the answer that were decoded
        seed = job.sampling.seed
        self._draw = None if not job.sampling.temperature else torch.Generator()
        if self._draw is not None:
            self._draw.seed() if seed is None else self._draw.manual_seed(seed)

    def choose(self, logits: Tensor) -> int:
        """Choose a token from logits (vocabulary,)."""
        if self._draw is None:
            return int(logits.argmax())
        chances = (logits.float().cpu() / self.job.sampling.temperature).softmax(-1)
        if self.job.sampling.top_p < 1:
            ordered, order = chances.sort(descending=True)
            # The likeliest tokens that together reach top_p; the first always stays.
            ordered[ordered.cumsum(0) - ordered >= self.job.sampling.top_p] = 0
            return int(order[torch.multinomial(ordered, 1, generator=self._draw)])
        return int(torch.multinomial(chances, 1, generator=self._draw))

    def put(self, token: int) -> TextDelta | None:
        """Take in the next token; returns what can be shown now, if anything."""
        self.job.output_ids.append(token)
        if token in self._ends:
            return self._last(STOP)
        # A token may be part of a letter; then the stream waits for the rest of it.
        new = self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        self._shown += len(new)
        text, stopped = self._until_stop(self._held + new)
        if stopped:
            self._held = ""
            return TextDelta(text, STOP)
        if len(self.job.output_ids) >= self.job.sampling.max_new_tokens:
            self._held = text + self._held
            return self._last(LENGTH)
        return TextDelta(text) if text else None

    def _until_stop(self, text: str) -> tuple[str, bool]:
        """The text up to the first stop sequence and whether there is one; what may become one is held back."""
        stops = self.job.sampling.stop
        found = [place for place in (text.find(stop) for stop in stops) if place >= 0]
        if found:
            return text[: min(found)], True
        held = max(
            (n for stop in stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])), default=0
        )
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def _last(self, finish: str) -> TextDelta:
        tokens = [token for token in self.job.output_ids if token not in self._ends]
        rest = self._tokenizer.decode(tokens, skip_special_tokens=True)[self._shown :]
        return TextDelta(self._held + rest, finish)


def copy_tokenizer(tokenizer):
    """A copy for one thread: encoding changes a tokenizer's settings for a moment, and decoding meanwhile fails."""
    return copy.deepcopy(tokenizer)
