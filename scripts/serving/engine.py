"""Continuous batching: one thread that answers many conversations with one model, a token for each at every step.

    1. admit   jobs that wait are read (their prompts in one forward) and join the running batch
    2. step    one forward over one new token of every running job; each chooses its next token
    3. leave   those that are finished, late or no longer wanted leave the batch; their place is free at once

So a short answer never waits for a long one. Nothing that anybody has shown or said is computed twice while there is
room to keep it: images are kept by their pixels for everybody (`model.conversation_cache.ImageCache`), and what was read and said in
a conversation by its tokens, so that its next round computes its new text alone.

What one job asks for never harms another: a prompt that fails, fails alone, and the memory that is kept is bounded.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from model.conversation_batch import ConversationBatch
from model.conversation_cache import ImageCache
from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from scripts.serving.jobs import CANCELLED, ERROR, TIMEOUT, Job, TextDelta, TokenStreamer, copy_tokenizer
from scripts.serving.prefix_cache import PrefixCache

log = logging.getLogger("visualchat.engine")


class QueueFull(Exception):
    """As many jobs wait as may wait."""


class EngineClosed(Exception):
    """The engine ends and takes no more jobs."""


@dataclass(frozen=True)
class EngineSettings:
    """What an engine may use.

    `batch` jobs run and `queue` wait; `image_cache_bytes` and `prefix_cache_bytes` are bytes on the model's device for images and
    for conversations that may go on. `prefill` and `places` are rows times the longest of them, in tokens: of the new
    tokens of one reading forward, and of all that runs with its answers at their longest, which bounds its memory.
    """

    max_batch_size: int = 32
    max_queue_size: int = 128
    image_cache_bytes: int = 512 << 20
    prefix_cache_bytes: int = 512 << 20
    max_prefill_tokens: int = 8192
    max_batch_tokens: int = 1 << 16


class BatchingEngine:
    """Answers jobs with one model, in a thread of its own. Close it at the end."""

    def __init__(
        self,
        model: VisualChatForConditionalGeneration,
        processor: VisualChatProcessor,
        settings: EngineSettings = EngineSettings(),
    ):
        self.model, self.settings = model.eval(), settings
        self.answered = self.steps = self.rows = 0
        self._images = ImageCache(model, settings.image_cache_bytes)
        self._prefixes = PrefixCache(settings.prefix_cache_bytes, processor.image_tokens)
        self._tokenizer = copy_tokenizer(processor.tokenizer)
        self._image_tokens = processor.image_tokens
        generation = model.generation_config
        ends = generation.eos_token_id
        self._ends = frozenset([ends] if isinstance(ends, int) else ends or [])
        self._never = list(generation.suppress_tokens or [])
        self._waiting: deque[Job] = deque()
        self._running: list[TokenStreamer] = []
        self._batch = ConversationBatch.empty(model, 0)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Let a job wait for its turn.

        Raises:
            QueueFull: too many wait already.
            EngineClosed: the engine has been closed.
        """
        with self._changed:
            if self._closed:
                raise EngineClosed
            if len(self._waiting) >= self.settings.max_queue_size:
                raise QueueFull
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """End the thread; jobs that are not finished get an error."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    def state(self) -> dict[str, int]:
        """Numbers for whoever watches the server."""
        return {
            "waiting": len(self._waiting),
            "running": len(self._running),
            "answered": self.answered,
            "steps": self.steps,
            "rows": self.rows,
            "image_cache_bytes": self._images.nbytes,
            "images_computed": self._images.misses,
            "prefix_cache_bytes": self._prefixes.nbytes,
            "running_bytes": self._batch.nbytes,
        }

    @torch.inference_mode()
    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._waiting or self._running):
                    self._changed.wait()
                if self._closed:
                    break
            try:
                self._admit()
                self._leave()
                if self._running:
                    self._step()
                    self._leave()
            except Exception:  # a defect or the memory is full: those who run now are told, the others are served
                log.exception("a step failed; the jobs in it are given up")
                self._give_up("the model failed in the middle of the answer")
        self._give_up("the server ends")
        while self._waiting:
            _tell(self._waiting.popleft(), TextDelta(finish=ERROR, error="the server ends"))

    def _admit(self) -> None:
        """Read as many of the waiting prompts as there are places for, in the order in which they came."""
        self._sweep()
        group, longest, reused = [], 0, []
        size = max((_size(speaker.job) for speaker in self._running), default=0)
        while len(self._running) + len(group) < self.settings.max_batch_size:
            with self._changed:
                job = self._waiting.popleft() if self._waiting else None
            if job is None:
                break
            prefix = self._prefixes.longest(job)
            new = len(job.encoded) - prefix[1]
            rows, size = len(self._running) + len(group) + 1, max(size, _size(job))
            too_much = group and (len(group) + 1) * max(longest, new) > self.settings.max_prefill_tokens
            if too_much or (rows > 1 and rows * size > self.settings.max_batch_tokens):
                with self._changed:
                    self._waiting.appendleft(job)
                break
            group.append(job)
            reused.append(prefix)
            longest = max(longest, new)
        if not group:
            return
        try:
            self._read(group, reused)
        except Exception:
            # One of them is at fault, or the memory is full: each alone, with nothing kept.
            log.exception("a forward over %d prompts failed", len(group))
            self._images.clear()
            self._prefixes.clear()
            for job in group:
                try:
                    self._read([job], [(None, 0)])
                except Exception as error:
                    log.exception("a prompt failed")
                    _tell(job, TextDelta(finish=ERROR, error=f"the model cannot read this: {error}"))

    def _sweep(self) -> None:
        """Let go of those who wait in vain, so that they take no place in the queue."""
        with self._changed:
            waiting = list(self._waiting)
            unwanted = {job: finish for job in waiting if (finish := _unwanted(job)) is not None}
            self._waiting = deque(job for job in waiting if job not in unwanted)
        for job, finish in unwanted.items():
            _tell(job, TextDelta(finish=finish))

    def _read(self, group: Sequence[Job], prefixes: Sequence[tuple[ConversationBatch | None, int]]) -> None:
        """Compute the prompts of `group` behind what is known of them, choose first tokens, and join the batch."""
        begun, tokens, kinds, pixels = [], [], [], []
        for job, (known, length) in zip(group, prefixes, strict=True):
            begun.append(ConversationBatch.empty(self.model) if known is None else known.truncate(length))
            tokens.append(job.encoded.input_ids[length:])
            kinds.append(job.encoded.modality[length:])
            pixels += job.pixels[sum(kind == 2 for kind in job.encoded.modality[:length]) // self._image_tokens :]
            job.cached_tokens = length
        logits, batch = ConversationBatch.concat(begun).extend(tokens, kinds, self._images.model_inputs(pixels))
        speakers = [TokenStreamer(job, self._tokenizer, self._ends) for job in group]
        self._batch = ConversationBatch.concat([self._batch, batch]) if self._running else batch
        self._running += speakers
        self._choose(speakers, logits)

    def _step(self) -> None:
        """One token for everybody who runs."""
        tokens = [[speaker.job.output_ids[-1]] for speaker in self._running]
        logits, self._batch = self._batch.extend(tokens, [[1]] * len(tokens), {})
        self.steps += 1
        self.rows += len(tokens)
        self._choose(self._running, logits)

    def _choose(self, speakers: Sequence[TokenStreamer], logits: torch.Tensor) -> None:
        logits[:, self._never] = float("-inf")
        likeliest = logits.argmax(-1).tolist()
        for place, speaker in enumerate(speakers):
            try:
                token = speaker.choose(logits[place]) if speaker.job.sampling.temperature else likeliest[place]
                piece = speaker.put(token)
            except Exception as error:  # chances that are no numbers, for instance
                log.exception("a token could not be chosen")
                piece = TextDelta(finish=ERROR, error=f"no token could be chosen: {error}")
            if piece is not None:
                speaker.finished = piece.finish is not None
                _tell(speaker.job, piece)

    def _leave(self) -> None:
        """Let go of those who are finished, late or no longer wanted, and remember their conversations."""
        stay = []
        for place, speaker in enumerate(self._running):
            if not speaker.finished and (finish := _unwanted(speaker.job)) is not None:
                _tell(speaker.job, TextDelta(finish=finish))
            elif not speaker.finished:
                stay.append(place)
                continue
            self.answered += 1
            self._prefixes.keep(speaker.job, self._batch.select_rows([place]))
        if len(stay) < len(self._running):
            self._batch = self._batch.select_rows(stay) if stay else ConversationBatch.empty(self.model, 0)
            self._running = [self._running[place] for place in stay]

    def _give_up(self, why: str) -> None:
        for speaker in self._running:
            if not speaker.finished:
                _tell(speaker.job, TextDelta(finish=ERROR, error=why))
        self._running, self._batch = [], ConversationBatch.empty(self.model, 0)


def _size(job: Job) -> int:
    """The tokens of a job with its answer at its longest."""
    return len(job.encoded) + job.sampling.max_new_tokens


def _unwanted(job: Job) -> str | None:
    """Why a job need not be answered any more, if so."""
    if job.cancelled.is_set():
        return CANCELLED
    return TIMEOUT if time.monotonic() > job.deadline else None


def _tell(job: Job, piece: TextDelta) -> None:
    """Hand out a piece; whoever asked may be gone."""
    try:
        job.on_delta(piece)
    except Exception:
        # Whatever it is, the others must not suffer for it.
        log.warning("nobody takes the answer any more", exc_info=True)
        job.cancel()
