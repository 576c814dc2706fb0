"""Everything that only a GPU can show, in six minutes, into one Markdown file whose sections go into RESULTS.md.

    make gpu-wheels GPU_PYTHON=3.12       # at home: the packages that the machine lacks, into gpu-wheels/
    make gpu-check                        # on the machine with the GPU, which has a torch of its own
    python -m benchmarks.gpu_check --dry-run        # anywhere: every part in a tiny form on the CPU

The machine needs Python, torch and Triton, and no network. The other packages come from the wheels, into an environment
in `.gpu-check/` that sees what is installed on the machine; torch and Triton are never installed. Without wheels, the
interpreter that runs this program is used as it is.

Each part is a process with a time limit of its own. What fails or takes too long is reported in the file, and the next
part runs; the file is written again after every part, so that nothing is lost if the machine is taken away. The exit
status is 1 if a part failed.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.common.files import atomic
from scripts.common.gpus import present

ROOT = Path(__file__).resolve().parents[1]
ATTENTION_TESTS = ("tests/model/test_gpu.py", "tests/model/test_fused_attention.py")
TRAINING_TESTS = ("tests/scripts/training/test_gpu.py",)
_NEVER_INSTALLED = ("torch-", "triton-", "nvidia_")
_TAIL = 40
_MINUTES = 6.0

VERSIONS = """
import platform, sys
from importlib.metadata import version, PackageNotFoundError
import torch
def of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
print(f"| Python | {platform.python_version()} |")
print(f"| torch | {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()} |")
for name in ("triton", "transformers", "deepspeed", "numpy"):
    print(f"| {name} | {of(name)} |")
if torch.cuda.is_available():
    major, minor = torch.cuda.get_device_capability()
    print(f"| compute capability | {major}.{minor} |")
"""


@dataclass
class Result:
    """How a process ended: `status` is None if it exceeded its time; `output` and `errors` are what it printed."""

    status: int | None
    output: str
    errors: str
    seconds: float


@dataclass(frozen=True)
class Part:
    """A part of the check: a command for the environment's Python, and how its result is shown.

    `limit`: its time limit in seconds, where the whole check has six minutes; in proportion where it has others.
    """

    title: str
    words: Sequence[str]
    limit: float
    show: Callable[[Result], str]


def run(words: Sequence[str], limit: float) -> Result:
    """Run a command in the project's folder; it and all that it started end after `limit` seconds."""
    begin = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    # Into files: a process that outlives its parent would keep a pipe open.
    paths = [working_folder() / name for name in ("output.txt", "errors.txt")]
    status: int | None
    with open(paths[0], "wb") as output, open(paths[1], "wb") as errors:
        try:
            process = subprocess.Popen(
                words, cwd=ROOT, env=environment, stdout=output, stderr=errors, start_new_session=True
            )
        except OSError as error:
            return Result(1, "", str(error), 0.0)
        try:
            status = process.wait(timeout=max(limit, 1))
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    output_text, errors_text = (path.read_text(errors="replace") for path in paths)
    return Result(status, output_text, errors_text, time.monotonic() - begin)


def working_folder() -> Path:
    """Where the environment and outputs lie."""
    folder = ROOT / ".gpu-check"
    folder.mkdir(exist_ok=True)
    return folder


def as_printed(result: Result) -> str:
    """The Markdown that the command printed, without what DeepSpeed logs."""
    return "\n".join(line for line in result.output.splitlines() if not re.match(r"\[\d{4}-\d\d-\d\d ", line)).strip()


def in_code(result: Result) -> str:
    """The output as a block of code."""
    return f"```text\n{as_printed(result)}\n```"


def of_tests(result: Result) -> str:
    """The counts that pytest prints, and of failed tests the names and errors; also of tests that were cut short."""
    counts = {word: len(re.findall(rf" {word}\b", result.output)) for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    summary = re.findall(r"^=+ (.*(?:passed|failed|skipped|error).*) =+$", result.output, re.M)
    found = summary[-1] if summary else ", ".join(f"{n} {word.lower()}" for word, n in counts.items() if n)
    failures = re.findall(r"^(?:FAILED|ERROR) .*$", result.output, re.M)
    shown = [found or "no test ended", *(f"- `{line[:300]}`" for line in failures)]
    reasons = re.findall(r"^E   .*$", result.output, re.M)[:_TAIL]
    return "\n".join([*shown, "", "```text", *reasons, "```"] if reasons else shown)


def parts(dry: bool) -> list[Part]:
    """The parts in order: figures first, then the tests that start many processes."""
    attention = ["-m", "benchmarks.attention"]
    tiny = ["--heads", "2", "--width", "16", "--no-memory", "--repeats", "1", "--cases", "1x40"] if dry else []
    table = tiny or ["--dense-up-to", "3000", "--repeats", "7"]
    repeated = tiny or ["--cases", "8x2048", "28x1024", "--repeats", "3"]
    size = ["--width", "4096", "--layers", "auto", "--heads", "32", "--inner", "11008", "--vision-width", "1024"]
    size += ["--vision-layers", "23", "--conversations", "96", "--step-tokens", "16384"]
    small = ["--width", "64", "--layers", "1", "--vocabulary", "400", "--vision-width", "64", "--vision-layers", "1"]
    small += ["--conversations", "6", "--step-tokens", "2048"]
    return [
        # Without a GPU the others would run in Triton's interpreter, for minutes.
        Part("Tests of the attention", tests(ATTENTION_TESTS[:1] if dry else ATTENTION_TESTS), 90, of_tests),
        Part("Back-ends against the formula in float64", [*attention, "--check"], 40, in_code),
        Part("Attention", [*attention, *table], 110, as_printed),
        Part("Attention, repeated", [*attention, "--repetition", *repeated], 40, as_printed),
        Part("Training", ["-m", "benchmarks.train", "--runs", "1", *(small if dry else size)], 150, as_printed),
        Part("Tests of training: interrupted runs have the same bits", tests(TRAINING_TESTS), 240, of_tests),
    ]


def tests(files: Sequence[str]) -> list[str]:
    """The arguments that run those of the test files that exist."""
    present = [name for name in files if (ROOT / name).is_file()]
    return ["-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *present]


def make_environment(wheels: Path) -> tuple[Path, str]:
    """An environment with the wheels that sees the packages of this interpreter; its Python, and what happened.

    Raises:
        RuntimeError: the wheels do not fit this Python, or cannot be installed.
    """
    files = [file for file in sorted(wheels.glob("*.whl")) if not file.name.startswith(_NEVER_INSTALLED)]
    if not files:
        return Path(sys.executable), f"no wheels in {wheels.name}/: what is installed on the machine is used"
    mine = f"cp{sys.version_info.major}{sys.version_info.minor}"
    others = {tag for file in files for tag in re.findall(r"-(cp\d+)-cp\d+-", file.name)} - {mine}
    if others:
        wanted = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise RuntimeError(
            f"the wheels are for {', '.join(sorted(others))} and this Python is {mine}: "
            f"`make gpu-wheels GPU_PYTHON={wanted}` gets others"
        )
    folder = working_folder() / "environment"
    shutil.rmtree(folder, ignore_errors=True)
    # Without pip of its own, which some systems leave out of `venv`; this interpreter's pip installs into it.
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    site = next(folder.glob("lib/python*/site-packages"))
    # The machine's torch may itself lie in an environment, which `system_site_packages` would not see.
    seen = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "packages-of-the-machine.pth").write_text("".join(f"{path}\n" for path in seen))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", "--no-deps", "--quiet"]
    result = run([*install, *map(str, files)], 90)
    if result.status == 0:
        return python, f"{len(files)} wheels installed in {result.seconds:.0f} s"
    # The tests of the attention need few packages: what one of the others lacks is no reason to leave out all.
    failed = [file.name for file in files if run([*install, str(file)], 20).status != 0]
    if len(failed) == len(files):
        raise RuntimeError(f"pip could not install the wheels: {result.errors.strip()[-500:]}")
    return python, f"{len(files) - len(failed)} wheels installed, but not {', '.join(failed)}"


class Report:
    """The Markdown file, written anew after every section."""

    def __init__(self, path: Path) -> None:
        self._path, self._sections = path, ["# GPU check"]

    def add(self, title: str, text: str) -> None:
        """Add a section and write the file."""
        self._sections.append(f"## {title}\n\n{text.strip()}")
        with atomic(self._path, "w") as file:
            file.write("\n\n".join(self._sections) + "\n")
        print(f"## {title}\n\n{text.strip()}\n", flush=True)


def describe(python: Path, installed: str) -> str:
    """The machine: card, driver and versions, as a table."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    found = run(query, 20)
    cards = found.output.strip().splitlines() if found.status == 0 else ["no GPU"]
    rows = [f"| card, driver, memory | {card.strip()} |" for card in cards]
    versions = run([str(python), "-c", VERSIONS], 60)
    rows += [line for line in versions.output.splitlines() if line.startswith("| ")]
    text = "\n".join(["| | |", "|---|---|", *rows, f"| packages | {installed} |"])
    return text if versions.status == 0 else f"{text}\n\n{failure(versions)}"


def failure(result: Result, limit: float | None = None) -> str:
    """That a part failed, and the last lines of its output."""
    how = f"exit status {result.status}" if result.status is not None else f"stopped at its limit of {limit:.0f} s"
    tail = "\n".join([*result.output.splitlines()[-_TAIL:], *result.errors.splitlines()[-_TAIL:]])
    return f"**Failed: {how}** after {result.seconds:.0f} s.\n\n```text\n{tail}\n```"


def check(out: Path, wheels: Path, minutes: float, dry: bool) -> bool:
    """Run all parts and write the file; returns whether all succeeded."""
    deadline = time.monotonic() + 60 * minutes
    report, whole = Report(out), True
    try:
        python, installed = make_environment(wheels)
    except RuntimeError as error:
        python, installed, whole = Path(sys.executable), f"**{error}**; what is installed is used", False
    report.add("Machine", describe(python, installed))
    for part in parts(dry):
        left = deadline - time.monotonic()
        if left < 5:
            report.add(part.title, f"**Not run**: the {minutes:g} minutes were over.")
            whole = False
            continue
        limit = min(part.limit * minutes / _MINUTES, left)
        result = run([str(python), *part.words], limit)
        whole = whole and result.status == 0
        command = " ".join(["python", *part.words]).replace("python -m pytest", "pytest")
        report.add(part.title, f"`{command}`, {result.seconds:.0f} s\n\n{section(part, result, limit)}")
    return whole


def section(part: Part, result: Result, limit: float) -> str:
    """What the file shows of a part: its result, or why there is none."""
    if result.status == 0:
        return part.show(result)
    if part.show is not of_tests:
        return failure(result, limit)
    # pytest ends with 1 where tests failed, which are listed; everything else needs an explanation.
    return of_tests(result) if result.status == 1 else f"{of_tests(result)}\n\n{failure(result, limit)}"


def main() -> int:
    """Run the program."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=ROOT / "gpu-check.md", help="the file to write")
    arguments.add_argument("--wheels", type=Path, default=ROOT / "gpu-wheels", help="folder of wheels to install")
    arguments.add_argument(
        "--minutes", type=float, default=_MINUTES, help="time for everything; limits of the parts change in proportion"
    )
    arguments.add_argument(
        "--dry-run", action="store_true", help="every part in a tiny form, for a machine without a GPU"
    )
    args = arguments.parse_args()
    if not args.dry_run and not present(os.environ):
        arguments.error("there is no GPU on this machine; --dry-run tries every part in a tiny form on the CPU")
    return not check(args.out, args.wheels, args.minutes, args.dry_run)


if __name__ == "__main__":
    sys.exit(main())
