"""Compile the kernels of fused_kernels.py for a GPU that need not be here, and print registers and spills of each.

A program of its own, because TRITON_INTERPRET, with which the other tests run, leaves nothing to compile. It reads a
list of `Job`s as JSON from standard input, and writes a list of results in the same order. PYTHONPATH decides which
release of Triton is used.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_IN_FLOAT32, _IN_INT32, _FACTORS = {"LSE", "DELTA"}, {"SPANS", "READS"}, {"scale", "factor"}
_SIZES = {"Mt", "Mi", "H", "R", "shape"}


@dataclass(frozen=True)
class Job:
    """A kernel by its name, its launch, and what it is compiled for: 80 is the compute capability 8.0."""

    kernel: str
    capability: int
    dtype: str  # "bf16" or "fp16"
    width: int
    is_joint: bool
    rows: int
    keys: int
    warps: int
    stages: int


def compile_jobs(jobs: Sequence[Job], cache: Path, triton: Path | None = None) -> list[dict[str, Any]]:
    """Compile `jobs` in a program of its own, with the Triton of the folder `triton` if given.

    Each result holds `registers` of a thread, bytes `spilled`, `shared` memory of a block in bytes, whether the
    assembler had to make asynchronous instructions wait (`serialized`), and how often PTX names some `instructions`.
    """
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    # The assembler's figures are only printed when it runs.
    environment |= {"TRITON_CACHE_DIR": str(cache), "TRITON_ALWAYS_COMPILE": "1", "TRITON_DUMP_PTXAS_LOG": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([*([str(triton)] if triton else []), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.model.kernel_compilation"],
        input=json.dumps([asdict(job) for job in jobs]),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _signature(kernel: Any, constants: dict[str, Any]) -> tuple[dict[str, str], dict[tuple[int], list]]:
    """The types of the arguments, and which of them 16 divides, as at a launch on a model's tensors."""
    types, attributes = {}, {}
    for number, name in enumerate(kernel.arg_names):
        if name in constants:
            types[name] = "constexpr"
        elif name in _FACTORS:
            types[name] = "fp32"
        elif name in _SIZES or name.islower():
            types[name] = "i32"
        else:
            types[name] = "*fp32" if name in _IN_FLOAT32 else "*i32" if name in _IN_INT32 else "*dtype"
        if types[name].startswith("*") or (types[name] == "i32" and name not in _SIZES):
            attributes[number,] = [["tt.divisibility", 16]]
    return types, attributes


def _compile(job: Job) -> dict[str, Any]:
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from model import fused_kernels

    kernel = getattr(fused_kernels, job.kernel)
    constants = {"JOINT": job.is_joint, "D": job.width, "WIDTH": triton.next_power_of_2(job.width)}
    constants |= {"SUM": tl.float32, "UPCAST": False, "BM": job.rows, "BN": job.keys}
    types, attributes = _signature(kernel, constants)
    types = {name: kind.replace("dtype", job.dtype) for name, kind in types.items()}
    source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)
    options = {"num_warps": job.warps, "num_stages": job.stages, "enable_fp_fusion": True}
    log = io.StringIO()
    with contextlib.redirect_stdout(log):
        compiled = triton.compile(source, target=GPUTarget("cuda", job.capability, 32), options=options)
    spilled = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log.getvalue())
    text = compiled.asm["ptx"]
    return {
        "registers": int(re.search(r"Used (\d+) registers", log.getvalue())[1]),
        "spilled": sum(map(int, spilled.groups())),
        "shared": compiled.metadata.shared,
        "serialized": "Potential Performance Loss" in log.getvalue(),
        "instructions": {name: text.count(name) for name in ("mma.sync", "wgmma.mma_async", "tcgen05.mma", "cp.async")},
    }


if __name__ == "__main__":
    results = [_compile(Job(**job)) for job in json.load(sys.stdin)]
    print(json.dumps(results))
