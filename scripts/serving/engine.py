"""Continuous batching: one thread generates the answers of many jobs with one model, one token per job and step.

    1. admit     queued jobs are prefilled (their prompts in one forward pass) and join the running batch
    2. step      one forward pass over one new token of every running job; a token is sampled for each
    3. release   jobs that are finished, late or cancelled leave the batch; their slot is free at once

Clients are served in turn: the next job is one of the client with the fewest running jobs. One client can fill the
batch, but not the eighth that is added for others; of a full queue, the client with most jobs in it loses its last one
to a client with fewer.

So a short answer never waits for a long one. While memory allows, nothing is computed twice: images are cached by their
pixels for all jobs (`model.image_cache.ImageCache`), and conversations by their tokens (`PrefixCache`), so that
the next round of a conversation computes only its new text.

Jobs are isolated from each other: a prompt that fails does not affect others, and the memory of the caches is bounded.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from model.conversation_batch import ConversationBatch
from model.image_cache import ImageCache
from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from model.template import IMAGE, TEXT
from scripts.serving.jobs import CANCELLED, DISPLACED, ERROR, TIMEOUT, Job, TextDelta, TokenStreamer, copy_tokenizer
from scripts.serving.prefix_cache import PrefixCache

log = logging.getLogger("visualchat.engine")


class QueueFullError(Exception):
    """The queue holds its maximum number of jobs."""


class EngineClosedError(Exception):
    """The engine is closed and accepts no jobs."""


@dataclass(frozen=True)
class EngineSettings:
    """Limits of an engine.

    Attributes:
        max_batch_size: jobs of one client that run at the same time; those of others may be an eighth more.
        max_queue_size: jobs that wait.
        image_cache_bytes: memory for cached images, on the model's device.
        prefix_cache_bytes: memory for cached conversations, on the model's device.
        max_prefill_tokens: of one prefill: jobs times the new tokens of the longest prompt.
        max_batch_tokens: of the running batch: jobs times the tokens of the longest one with its answer at full length.
            Bounds the memory of the batch; an eighth more if it has jobs of several clients.
    """

    max_batch_size: int = 32
    max_queue_size: int = 128
    image_cache_bytes: int = 512 << 20
    prefix_cache_bytes: int = 512 << 20
    max_prefill_tokens: int = 8192
    max_batch_tokens: int = 1 << 16


DEFAULT_SETTINGS = EngineSettings()


class BatchingEngine:
    """Generates the answers of jobs with one model, in its own thread. Must be closed."""

    def __init__(
        self,
        model: VisualChatForConditionalGeneration,
        processor: VisualChatProcessor,
        settings: EngineSettings = DEFAULT_SETTINGS,
    ) -> None:
        self.model, self.settings = model.eval(), settings
        self.answered = self.steps = self.rows = 0
        self._images = ImageCache(model, settings.image_cache_bytes)
        self._prefixes = PrefixCache(settings.prefix_cache_bytes, processor.image_tokens)
        self._tokenizer = copy_tokenizer(processor.tokenizer)
        self._image_tokens = processor.image_tokens
        generation = model.generation_config
        eos = generation.eos_token_id
        self._eos_tokens = frozenset([eos] if isinstance(eos, int) else eos or [])
        self._suppressed = list(generation.suppress_tokens or [])
        self._waiting: deque[Job] = deque()
        self._running: list[TokenStreamer] = []
        self._batch = ConversationBatch.empty(model, 0)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job into the queue.

        Raises:
            QueueFullError: the queue is full.
            EngineClosedError: the engine has been closed.
        """
        with self._changed:
            if self._closed:
                raise EngineClosedError
            displaced = self._displaced_by(job) if len(self._waiting) >= self.settings.max_queue_size else None
            self._waiting.append(job)
            self._changed.notify()
        if displaced is not None:
            _deliver(displaced, TextDelta(finish=DISPLACED))

    def _displaced_by(self, job: Job) -> Job:
        """Remove the last job of the client with most jobs in the full queue, if that are more than `job`'s client has.

        Raises:
            QueueFullError: no client has more.
        """
        counts = Counter(waiting.client for waiting in self._waiting)
        client, most = counts.most_common(1)[0]
        if most <= counts[job.client] + 1:
            raise QueueFullError
        last = next(waiting for waiting in reversed(self._waiting) if waiting.client == client)
        self._waiting.remove(last)
        return last

    def close(self) -> None:
        """Stop the thread; unfinished jobs end with an error."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def state(self) -> dict[str, int]:
        """Counters for monitoring: jobs, steps, rows (the sum of batch sizes over steps), and bytes of the caches."""
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
                self._release()
                if self._running:
                    self._step()
                    self._release()
            except Exception:  # a bug, or out of memory: the running jobs fail, queued ones are still answered
                log.exception("a step failed; its jobs are aborted")
                self._abort("the model failed while generating the answer")
        self._abort("the server is shutting down")
        while self._waiting:
            _deliver(self._waiting.popleft(), TextDelta(finish=ERROR, error="the server is shutting down"))

    def _admit(self) -> None:
        """Prefill queued jobs, as long as they fit into the batch."""
        self._drop_expired()
        group: list[Job] = []
        prefixes: list[tuple[ConversationBatch | None, int]] = []
        longest = 0
        size = max((_max_tokens(streamer.job) for streamer in self._running), default=0)
        while (job := self._next_job(group)) is not None:
            prefix = self._prefixes.longest(job)
            new = len(job.encoded) - prefix[1]
            clients = {other.client for other in [job, *group, *(streamer.job for streamer in self._running)]}
            rows, size = len(self._running) + len(group) + 1, max(size, _max_tokens(job))
            max_tokens = _shared(self.settings.max_batch_tokens, len(clients))
            prefill_full = group and (len(group) + 1) * max(longest, new) > self.settings.max_prefill_tokens
            if prefill_full or (rows > 1 and rows * size > max_tokens):
                with self._changed:
                    self._waiting.appendleft(job)
                break
            group.append(job)
            prefixes.append(prefix)
            longest = max(longest, new)
        if not group:
            return
        try:
            self._prefill(group, prefixes)
        except Exception:
            # One of the prompts is bad, or memory is full: try each alone, with empty caches.
            log.exception("the prefill of %d prompts failed", len(group))
            self._images.clear()
            self._prefixes.clear()
            for job in group:
                try:
                    self._prefill([job], [(None, 0)])
                except Exception as error:
                    log.exception("the prefill of one prompt failed")
                    _deliver(job, TextDelta(finish=ERROR, error=f"the model cannot read this prompt: {error}"))

    def _next_job(self, group: Sequence[Job]) -> Job | None:
        """Take a job from the queue: the first one of the client with the fewest jobs in the batch and in `group`.

        `None` if the batch is full, or none waits whose client may have another one.
        """
        counts = Counter(job.client for job in [*group, *(streamer.job for streamer in self._running)])
        limit = self.settings.max_batch_size
        with self._changed:
            fitting = [
                job
                for job in self._waiting
                if counts[job.client] < limit and counts.total() < _shared(limit, len({job.client, *counts}))
            ]
            if not fitting:
                return None
            job = min(fitting, key=lambda job: counts[job.client])
            self._waiting.remove(job)
        return job

    def _drop_expired(self) -> None:
        """Remove jobs from the queue that were cancelled or timed out."""
        with self._changed:
            waiting = list(self._waiting)
            expired = {job: finish for job in waiting if (finish := _expired(job)) is not None}
            self._waiting = deque(job for job in waiting if job not in expired)
        for job, finish in expired.items():
            _deliver(job, TextDelta(finish=finish))

    def _prefill(self, group: Sequence[Job], prefixes: Sequence[tuple[ConversationBatch | None, int]]) -> None:
        """Compute the prompts of `group` after their cached prefixes, sample first tokens, and join the batch.

        Args:
            group: the jobs.
            prefixes: for each, a cached conversation (`None` without one) and how many of its tokens are shared.
        """
        starts: list[ConversationBatch] = []
        tokens: list[list[int]] = []
        modality: list[list[int]] = []
        pixels: list[np.ndarray] = []
        for job, (prefix, length) in zip(group, prefixes, strict=True):
            starts.append(ConversationBatch.empty(self.model) if prefix is None else prefix.truncate(length))
            tokens.append(job.encoded.input_ids[length:])
            modality.append(job.encoded.modality[length:])
            cached_images = sum(kind == IMAGE for kind in job.encoded.modality[:length]) // self._image_tokens
            pixels += job.pixels[cached_images:]
            job.cached_tokens = length
        logits, batch = ConversationBatch.concat(starts).extend(tokens, modality, self._images.model_inputs(pixels))
        streamers = [TokenStreamer(job, self._tokenizer, self._eos_tokens) for job in group]
        self._batch = ConversationBatch.concat([self._batch, batch]) if self._running else batch
        self._running += streamers
        self._sample(streamers, logits)

    def _step(self) -> None:
        """Generate one token for every running job."""
        tokens = [[streamer.job.output_ids[-1]] for streamer in self._running]
        logits, self._batch = self._batch.extend(tokens, [[TEXT]] * len(tokens), {})
        self.steps += 1
        self.rows += len(tokens)
        self._sample(self._running, logits)

    def _sample(self, streamers: Sequence[TokenStreamer], logits: torch.Tensor) -> None:
        """Sample the next token of every job from logits (jobs, vocabulary), and deliver its text."""
        logits[:, self._suppressed] = float("-inf")
        greedy = logits.argmax(-1).tolist()
        for row, streamer in enumerate(streamers):
            try:
                token = streamer.sample(logits[row]) if streamer.job.sampling.temperature else greedy[row]
                delta = streamer.put(token)
            except Exception as error:  # for instance probabilities that are NaN
                log.exception("sampling a token failed")
                delta = TextDelta(finish=ERROR, error=f"sampling a token failed: {error}")
            if delta is not None:
                streamer.finished = delta.finish is not None
                _deliver(streamer.job, delta)

    def _release(self) -> None:
        """Remove jobs that are finished, late or cancelled from the batch, and cache their conversations."""
        remaining = []
        for row, streamer in enumerate(self._running):
            if not streamer.finished and (finish := _expired(streamer.job)) is not None:
                _deliver(streamer.job, TextDelta(finish=finish))
            elif not streamer.finished:
                remaining.append(row)
                continue
            self.answered += 1
            self._prefixes.keep(streamer.job, self._batch.select_rows([row]))
        if len(remaining) < len(self._running):
            self._batch = self._batch.select_rows(remaining) if remaining else ConversationBatch.empty(self.model, 0)
            self._running = [self._running[row] for row in remaining]

    def _abort(self, reason: str) -> None:
        """End all running jobs with an error."""
        for streamer in self._running:
            if not streamer.finished:
                _deliver(streamer.job, TextDelta(finish=ERROR, error=reason))
        self._running, self._batch = [], ConversationBatch.empty(self.model, 0)


def _shared(limit: int, clients: int) -> int:
    """A limit of the batch: with several clients an eighth more, which none of them can take alone."""
    return limit if clients == 1 else limit + max(1, limit // 8)


def _max_tokens(job: Job) -> int:
    """The tokens of a job with its answer at full length."""
    return len(job.encoded) + job.sampling.max_new_tokens


def _expired(job: Job) -> str | None:
    """`CANCELLED` or `TIMEOUT` if the job must not be continued."""
    if job.cancelled.is_set():
        return CANCELLED
    return TIMEOUT if time.monotonic() > job.deadline else None


def _deliver(job: Job, delta: TextDelta) -> None:
    """Pass a delta to the job's callback; if that fails, cancel the job alone."""
    try:
        job.on_delta(delta)
    except Exception:
        log.warning("an answer could not be delivered; its client may have disconnected", exc_info=True)
        job.cancel()
