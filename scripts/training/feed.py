"""Brings the micro-batches of a rank to its device while it computes the ones before.

On a GPU they are copied from page-locked memory on a stream of their own, where a frozen vision tower runs too: the
images of the next micro-batch are encoded while the decoder trains on this one. Nothing here waits for the GPU; on a
CPU there is nothing to overlap, and the next micro-batch is simply read a little earlier.
"""

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.tensor_maps import map_tensors
from scripts.training.dataset import MODEL_INPUTS, MicroBatch


@dataclass
class DeviceBatch:
    """A micro-batch on the device.

    `inputs` are those of `engine.LossModule`; `label_datasets` (n,) is the number of the dataset of each label; `host`
    is the micro-batch that they were copied from.
    """

    inputs: dict[str, Any]
    label_datasets: Tensor
    host: MicroBatch


class MicroBatchFeed:
    """The micro-batches of an iterator on a device, one after the other.

    `waited` counts the seconds for which the iterator was waited for, on a GPU without those in which it was still
    computing what had been queued when the micro-batch came. A reader may set it back.
    """

    def __init__(self, batches: Iterable[MicroBatch], device: torch.device, tower: nn.Module | None = None) -> None:
        """Feed `batches` to `device`; a `tower` there encodes their images."""
        self.waited = 0.0
        self._batches, self._device, self._tower = iter(batches), device, tower
        self._next: DeviceBatch | None = None
        self._error: Exception | None = None
        self._stream = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def prepare(self) -> None:
        """Read the next micro-batch and queue its copy, unless that is done already or there is none.

        An error is kept for the `take` that this batch is for, so that it does not end the step before.
        """
        if self._next is not None or self._error is not None:
            return
        begin, queued = time.perf_counter(), self._queued()
        try:
            batch = next(self._batches)
        except Exception as error:  # noqa: BLE001 - raised again by `take`
            self._error = error
            return
        if queued is None or queued.query():
            self.waited += time.perf_counter() - begin
        with self._on_stream():
            self._next = self._moved(batch)

    def take(self) -> DeviceBatch:
        """The next micro-batch; what is queued on the device from now on sees it.

        Raises:
            StopIteration: there is none.
            UserError: it cannot be read.
        """
        self.prepare()
        if self._error is not None:
            raise self._error
        batch, self._next = self._next, None
        assert batch is not None
        if self._stream is not None:
            compute = torch.cuda.current_stream(self._device)
            compute.wait_stream(self._stream)
            # Their memory belongs to the other stream, which must not reuse it before this one has read it.
            map_tensors([batch.inputs, batch.label_datasets], lambda x: _recorded(x, compute))
        return batch

    def __iter__(self) -> "MicroBatchFeed":
        return self

    __next__ = take

    def _queued(self) -> torch.cuda.Event | None:
        """An event behind all that is queued for the GPU's computation; None on a CPU."""
        if self._stream is None:
            return None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _moved(self, batch: MicroBatch) -> DeviceBatch:
        inputs: dict[str, Any] = {name: batch.tensors[name] for name in MODEL_INPUTS if name in batch.tensors}
        inputs |= {"layout": batch.layout, "index": batch.index}
        inputs, labels = map_tensors([inputs, batch.label_datasets], lambda x: x.to(self._device, non_blocking=True))
        if "pixel_values" in inputs and self._tower is not None:
            with torch.no_grad():
                inputs["image_features"] = self._tower(inputs.pop("pixel_values"))
        return DeviceBatch(inputs | {"chunks": batch.head_chunks}, labels, batch)


def _recorded(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    tensor.record_stream(stream)
    return tensor
