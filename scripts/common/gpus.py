"""The GPUs of this machine, found without torch: by their device files and by NVIDIA's own program."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

_SECONDS = 20
_FIRST_WITH_BF16 = 8.0
"""Compute capability of Ampere, the first that computes in bf16."""


def present(environment: Mapping[str, str], system: Path = Path("/dev")) -> list[str]:
    """The GPUs that a program started here would see: those of CUDA_VISIBLE_DEVICES, or all of the machine."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    found = [path for path in system.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    if not found:
        return []
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(len(found))]


def supports_bf16(environment: Mapping[str, str], system: Path = Path("/dev")) -> bool:
    """Whether there are GPUs and all of the machine compute in bf16; without `nvidia-smi`, every GPU is taken to."""
    if not present(environment, system):
        return False
    program = shutil.which("nvidia-smi")
    if program is None:
        return True
    try:
        answer = subprocess.run(
            [program, "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
        ).stdout
        return all(float(line) >= _FIRST_WITH_BF16 for line in answer.split())
    except (OSError, ValueError, subprocess.SubprocessError):
        return True


def automatic_precision(environment: Mapping[str, str]) -> str:
    """What `precision: auto` means on this machine: bf16 where its GPUs compute in it, else fp32."""
    return "bf16" if supports_bf16(environment) else "fp32"
