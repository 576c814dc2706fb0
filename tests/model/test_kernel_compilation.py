"""The fused kernels compile for each generation of GPUs, into registers and the shared memory of a block."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict

import pytest

from model.fused_attention import candidates, fixed_config
from tests.model.kernel_compilation import ROOT, Job, compile_jobs

OLDER_TRITON = ROOT / ".venv" / "triton-3.6"
KERNELS = ("forward_kernel", "query_gradient_kernel", "key_gradient_kernel")
KIB = 1024
# Of each compute capability: the shared memory of a block, and the instruction that multiplies matrices.
GPUS = {80: (163 * KIB, "mma.sync"), 90: (227 * KIB, "wgmma.mma_async"), 100: (227 * KIB, "tcgen05.mma")}
SMALL_GPUS = {89: (99 * KIB, "mma.sync"), 120: (99 * KIB, "mma.sync")}


@pytest.fixture(params=["of the tests", "3.6"])
def triton(request):
    """The folder of a release of Triton, None for the one that is installed."""
    if request.param != "3.6":
        if importlib.util.find_spec("triton") is None:
            pytest.skip("triton is not installed: it comes with envs/requirements-test.txt on Linux, x86-64")
        return None
    if not OLDER_TRITON.is_dir():
        pytest.skip(f"there is no Triton 3.6 in {OLDER_TRITON.relative_to(ROOT)}: `make check` installs it")
    return OLDER_TRITON


def jobs_for(capability: int, width: int, dtype: str, *, is_joint: bool, fixed: bool) -> list[Job]:
    """A job for the fixed launch of each kernel, or for each of its candidates."""
    version = divmod(capability, 10)
    launches = [[config] for config in fixed_config(version, width)] if fixed else candidates(version, width)
    return [
        Job(kernel, capability, dtype, width, is_joint, **asdict(config))
        for kernel, configs in zip(KERNELS, launches, strict=True)
        for config in configs
    ]


def check(jobs: list[Job], cache, triton) -> None:
    for job, result in zip(jobs, compile_jobs(jobs, cache, triton), strict=True):
        shared, instruction = (GPUS | SMALL_GPUS)[job.capability]
        assert result["registers"] <= 255 and result["spilled"] == 0, (job, result)
        assert result["shared"] <= shared, (job, result)
        used = {name for name, count in result["instructions"].items() if count}
        assert used == {instruction, "cp.async"} if job.stages > 1 else {instruction}, (job, result)
        # With heads of 256 the asynchronous products of a Hopper GPU do not fit the registers of the key gradient.
        assert not result["serialized"] or job.width > 128, (job, result)


@pytest.mark.parametrize("capability", GPUS)
def test_fixed_launches_keep_everything_in_registers(capability, triton, tmp_path):
    check(jobs_for(capability, 128, "bf16", is_joint=False, fixed=True), tmp_path, triton)


@pytest.mark.long
@pytest.mark.parametrize("width", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("capability", GPUS | SMALL_GPUS)
def test_every_launch_keeps_everything_in_registers(capability, width, triton, tmp_path):
    jobs = jobs_for(capability, width, "bf16", is_joint=False, fixed=capability in SMALL_GPUS)
    jobs += jobs_for(capability, width, "fp16", is_joint=True, fixed=True)
    check(jobs, tmp_path, triton)


def test_every_width_has_launches_on_every_gpu():
    """The choice is a function of the compute capability alone, the same in each process."""
    for version in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)]:
        for width in range(16, 257, 8):
            launches = candidates(version, width)
            assert fixed_config(version, width) == [configs[0] for configs in launches]
            assert all(len(set(configs)) == len(configs) > 1 for configs in launches)
    assert fixed_config((8, 0), 128) == fixed_config((12, 0), 128) != fixed_config((9, 0), 128)
