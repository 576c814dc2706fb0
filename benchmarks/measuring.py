"""Clocks, memory and kernel names, on a GPU and without one.

A GPU works behind the host: it receives launches and computes them later. So two times are measured apart:

    device time   between two events on the GPU, around replays of a CUDA graph. A graph is launched as a whole, so the
                  host has no share in it. What cannot be captured is timed around ordinary calls (see `how`)
    host time     of the calls alone, without waiting for the GPU: what the host needs to queue them

Without a GPU there is one time, that of the clock.
"""

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

GRAPH, EAGER, CLOCK = "graph", "eager calls", "clock"
_WARM_UP = 3
_ENOUGH_SECONDS = 0.02

Call = Callable[[], object]


class Sample(NamedTuple):
    """One timing of a call, in seconds; `host` is None without a GPU."""

    seconds: float
    host: float | None


class Timer:
    """Times one call again and again. Made once per call: it warms it up, and captures it as a graph on a GPU."""

    def __init__(self, call: Call, device: torch.device) -> None:
        self.how = CLOCK
        self._call, self._gpu = call, device.type == "cuda"
        self._timed: Call = call
        self._replays = 1
        if not self._gpu:
            call()
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = capture(call)
        self.how = EAGER if self._graph is None else GRAPH
        self._timed = call if self._graph is None else self._graph.replay
        once = self._events(1)
        self._replays = max(1, min(1000, round(_ENOUGH_SECONDS / max(once, 1e-6))))

    def sample(self) -> Sample:
        """Time the call once: on a GPU the mean of as many replays as take 20 ms."""
        if not self._gpu:
            begin = time.perf_counter()
            self._call()
            return Sample(time.perf_counter() - begin, None)
        seconds = self._events(self._replays)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        self._call()
        host = time.perf_counter() - begin
        torch.cuda.synchronize()
        return Sample(seconds, host)

    def _events(self, replays: int) -> float:
        """Seconds of the device for one of `replays` calls."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        for _ in range(replays):
            self._timed()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / replays


def capture(call: Call) -> torch.cuda.CUDAGraph | None:
    """`call`, which has been warmed up, as a CUDA graph; None if it waits for the device or cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Allow only deterministic algorithms of a GPU, as training does, or also others; the state before is restored."""
    before = torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined] # made on import
    torch.use_deterministic_algorithms(wanted)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def kernels(call: Call) -> list[str]:
    """The names of what `call` launches on the GPU, in order, copies and fills included."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    return [
        event.name
        for event in sorted(profiler.events(), key=lambda event: event.time_range.start)
        if event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)
    ]


def attention_library(names: list[str]) -> str:
    """Which library's attention kernels are among these names."""
    text = " ".join(names).lower()
    known = {"cudnn": "cuDNN", "flash": "flash", "fmha": "memory-efficient", "mem_eff": "memory-efficient"}
    # cuDNN's names contain "flash" too, so it is looked for first.
    return next((library for part, library in known.items() if part in text), "matrix products and a softmax")


def reset_peak_memory(device: torch.device) -> int:
    """Begin to measure the peak of memory; returns what is in use now, in bytes."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # Linux: the peak becomes the present use.
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmRSS")


def peak_memory(device: torch.device) -> int:
    """The peak since `reset_peak_memory` in bytes: allocated on a GPU, or without one resident in the machine."""
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident("VmHWM")


def _resident(field: str) -> int:
    """Memory of this process in bytes: now (VmRSS) or at its peak (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def processor() -> str:
    """The name of the CPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
