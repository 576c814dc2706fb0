"""Full disks, limits and wrong kinds of files: every program says in one line what it wanted and what to do, and the
next run succeeds with nothing left of the failed one."""

import errno
import os
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.disks import mounted, small_disk
from tests.scripts.blending.synthetic_blend import World
from tests.tiny_models import IMAGE_TOKENS, make_bases

REPOSITORY = Path(__file__).resolve().parents[2]
SHARD = "coco-00000-of-00002"
TOKENS = f'{{"tokenizer": "tiny", "image_tokens": {IMAGE_TOKENS}}}'


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """A finished data path below one root, and bases."""
    root = tmp_path_factory.mktemp("limits") / "root"
    made = World.build(root, images=30)
    made.blend(made.plan(), root / "blend/demo/epoch-000")
    make_bases(root / "bases")
    return made


def commands(root: Path, out: Path) -> dict[str, str]:
    """The arguments of every program of the data path, which write into `out`."""
    data, media = root / "raw/miniature", f"--media coco={root}/media/coco"
    plan = f"{root}/plan/demo/epoch-000.parquet"
    return {
        "miniature": f"--settings '{{\"images\": 20}}' --out {out}/world",
        "fetch": f"--source coco --data-path {data} --out {out}/coco",
        "shard": f"--source coco --raw {root}/raw/coco --shards 2 --index 0 --out {out}",
        "holdout": f"{media} --out {out}",
        "convert": f"--dataset llava --raw llava={root}/raw/llava {media} --out {out}",
        "count_tokens": f"--dataset llava --records {root}/records/llava.parquet "
        f"--report {root}/records/llava.report.json --tokenizer {root}/tokenizer --settings '{TOKENS}' --out {out}",
        "plan": f"--name demo --epoch 0 --records {root}/records --tokens {root}/tokens/tiny --split {root}/split "
        f'{media} --out {out} --settings \'{{"tokens": "tiny", "global_batch": 8, "datasets": {{"llava": {{}}}}}}\'',
        "blend": f"--plan {plan} --records {root}/records {media} --root {root} --shards 3 --index 0 --out {out} "
        '--settings \'{"tokens": "tiny", "images": "embedded"}\'',
        "preprocess_images": f"--processor {root}/bases/vision --source coco --media {root}/media/coco "
        f"--shard {SHARD} --out {out}",
        "preview": f"--blend {root}/blend/demo/epoch-000 --root {root} --tokenizer {root}/tokenizer "
        f"--settings '{TOKENS}' --out {out}/preview.html",
        "make_model": '--settings \'{"tokens": "tiny", "vision": "v", "language": "l"}\' '
        f"--tokens '{TOKENS}' --vision {root}/bases/vision --language {root}/bases/language "
        f"--tokenizer {root}/tokenizer --root {root} --out {out}/model",
    }


PROGRAMS = tuple(commands(Path(), Path()))


def run(root: Path, program: str, out: Path, before: str = "") -> subprocess.CompletedProcess:
    """Run a program; `before` is a shell command that the shell runs first."""
    command = f"{before} exec {shlex.quote(sys.executable)} -m scripts.{program} {commands(root, out)[program]}"
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(["bash", "-c", command], cwd=root, env=variables, capture_output=True, text=True, check=False)


def check_message(done: subprocess.CompletedProcess, out: Path, number: int) -> None:
    """One line, which names a file of `out`, the error and a remedy."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(lines)) == (1, 1) and "Traceback" not in done.stderr, done.stderr
    pattern = rf"error: {re.escape(str(out))}\S* cannot be written: {re.escape(os.strerror(number))}\. [A-Z].*"
    assert re.fullmatch(pattern, lines[0]), lines[0]


def leftovers(out: Path) -> list[str]:
    """Files that only an unfinished attempt has."""
    return [path.name for path in out.rglob("*") if path.name.endswith((".tmp", ".draft", ".old"))]


@contextmanager
def full_disk(folder: Path) -> Iterator[Path]:
    """A file system without a free byte."""
    with small_disk(folder, 1) as disk:
        with pytest.raises(OSError, match="No space left"):
            (disk / "everything").write_bytes(bytes(2 << 20))
        yield disk


@contextmanager
def read_only_disk(folder: Path) -> Iterator[Path]:
    """A file system that is mounted for reading only."""
    with mounted(folder, "tmpfs", "-o", "size=1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        yield folder


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("disk", "number"), [(full_disk, errno.ENOSPC), (read_only_disk, errno.EROFS)], ids=["full", "read-only"]
)
def test_a_disk_that_cannot_be_written_is_named(world, tmp_path, program: str, disk: Callable, number: int):
    with disk(tmp_path / "disk") as out:
        check_message(run(world.root, program, out), out, number)
        assert not leftovers(out)


@pytest.mark.parametrize("program", PROGRAMS)
def test_after_a_limit_on_the_size_of_files_the_next_run_succeeds(world, tmp_path, program: str):
    out = tmp_path / "out"
    # A kilobyte: libraries write a few bytes into the folder of temporary files to see whether they can.
    check_message(run(world.root, program, out, "ulimit -f 1;"), out, errno.EFBIG)
    done = run(world.root, program, out)
    assert done.returncode == 0, done.stderr
    assert not leftovers(out) and any(path.is_file() for path in out.rglob("*"))


@pytest.mark.parametrize("program", ["shard", "convert", "make_model"])
def test_a_file_where_a_folder_belongs_is_named(world, tmp_path, program: str):
    out = tmp_path / "out"
    out.write_text("in the way")
    number = errno.ENOTDIR if program == "make_model" else errno.EEXIST
    check_message(run(world.root, program, out), out, number)
    out.unlink()
    assert run(world.root, program, out).returncode == 0


def test_a_folder_where_a_file_belongs_is_named(world, tmp_path):
    (tmp_path / "llava.parquet/in the way").mkdir(parents=True)
    check_message(run(world.root, "convert", tmp_path), tmp_path, errno.EISDIR)
    assert not leftovers(tmp_path)


def test_a_name_that_is_too_long_is_named(world, tmp_path):
    out = tmp_path / ("n" * 256)
    check_message(run(world.root, "convert", out), out, errno.ENAMETOOLONG)


def test_a_folder_of_temporary_files_that_cannot_be_written_is_named(world, tmp_path):
    done = run(world.root, "shard", tmp_path / "out", "ulimit -f 0;")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: No usable temporary directory found in [" in done.stderr and "TMPDIR" in done.stderr


def test_too_many_open_files_are_named(world, tmp_path):
    """The limit is set once the program's modules are loaded: how many files those need is not its own matter."""
    code = (
        "import resource, sys\n"
        "from scripts.common.errors import run_program\n"
        "from scripts.common.files import read_json\n"
        "from pathlib import Path\n"
        "def main():\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "    read_json(Path(sys.argv[1]))\n"
        "run_program(main)\n"
    )
    path = world.root / "plan/demo/epoch-000.json"
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=variables, capture_output=True, text=True, check=False
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 3
    expected = f"error: {path} cannot be opened, read or written: Too many open files. Raise the limit on open files"
    assert done.returncode == 1 and done.stderr.startswith(expected) and "Traceback" not in done.stderr


@pytest.mark.parametrize("where", ["full", "read-only", "folder"])
def test_without_a_log_a_program_does_its_work(world, tmp_path, where: str):
    disk = {"full": full_disk, "read-only": read_only_disk, "folder": _folder}[where]
    with disk(tmp_path / "logs") as logs:
        done = run(world.root, "convert", tmp_path / "out", f"VISUALCHAT_LOG={logs / 'convert.log'}")
    assert done.returncode == 0 and (tmp_path / "out/llava.parquet").is_file()
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if where == "full":
        assert done.stderr.count("warning:") <= 1
    else:
        assert "convert.log cannot be written (" in done.stderr


@contextmanager
def _folder(folder: Path) -> Iterator[Path]:
    (folder / "convert.log").mkdir(parents=True)
    yield folder
