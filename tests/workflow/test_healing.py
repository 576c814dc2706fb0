"""Whatever is removed or damaged below the results root is made again by the same command, and nothing else is."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.common.files import file_sha256, temporary_prefix
from scripts.provenance.verification import verify_root
from tests.workflow.project import Project

KINDS = {
    "raw/miniature/miniature.json": "miniature",
    "raw/miniature/coco/train2017/*": "miniature",
    "raw/miniature/kinds.json": "miniature",
    "raw/coco/source.json": "fetch",
    "raw/coco/images.parquet": "fetch",
    "raw/coco/files": "fetch",
    "validated/source/coco.json": "validate_source",
    "validated/llava.json": "validate_dataset",
    "media/coco/coco-00001-of-00002.tar": "shard",
    "media/coco/coco-00000-of-00002.tar.idx": "shard",
    "media/coco/parts/coco-00000-of-00002.parquet": "shard",
    "media/coco/index.parquet": "media_index",
    "media/coco/manifest.json": "media_index",
    "split/heldout.parquet": "holdout",
    "records/llava.parquet": "convert",
    "records/aokvqa.report.json": "convert",
    "tokens/words/llava.parquet": "count_tokens",
    "plan/mixed/epoch-000.parquet": "plan",
    "plan/plain/heldout.json": "plan",
    "blend/mixed/epoch-000/train-00001-of-00002.tar": "blend",
    "blend/plain/epoch-000/parts/*.json": "blend",
    "blend/mixed/epoch-000/units.idx": "blend_manifest",
    "blend/mixed/epoch-000/counts.npy": "blend_manifest",
    "blend/plain/heldout/manifest.json": "blend_manifest",
    "blend/mixed/preview.html": "preview",
    "pixels/miniature/coco-00001-of-00002.u8": "preprocess_images",
    "features/miniature/*/coco-00001-of-00002.bf16": "encode_images",
    "bases/miniature/vision/model.safetensors": "pretrain_vision",
    "bases/miniature/tokenizer/tokenizer.json": "pretrain_tokenizer",
    "bases/miniature/language/config.json": "pretrain_language",
    "models/small/projector.safetensors": "make_model",
    "models/small/tokenizer.json": "make_model",
    "train/first/finished.json": "train_run",
    "train/first/state/*/settings.json": "train_run",
    "train/second/lock.json": "lock",
    "exported/first/final/model.safetensors": "export",
    "exported/first/best/config.json": "export",
    "exported/second/best/manifest.json": "export",
    "evaluate/first/heldout/final.csv": "evaluate_run",
    "evaluate/second/metrics.json": "evaluate_run",
    "report.html": "report_page",
    "graph.json": "report_page",
    "configuration.json": "report_page",
}
"""A file of every kind -> the rule that makes it."""


# A dry run for each takes minutes together.
OFTEN = {"raw/coco/files", "validated/llava.json", "media/coco/coco-00001-of-00002.tar", "blend/mixed/preview.html"}
OFTEN |= {"train/first/finished.json", "exported/first/final/model.safetensors", "graph.json"}


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [pytest.param(*kind, marks=[] if kind[0] in OFTEN else pytest.mark.long, id=kind[0]) for kind in KINDS.items()],
)
def test_a_file_that_is_gone_is_planned_to_be_made_again_alone(scratch_root, pattern, rule):
    path = _first(scratch_root.folder / "out", pattern)
    aside = scratch_root.folder / "aside"
    path.rename(aside)
    try:
        assert scratch_root.jobs() == {rule: 1}
    finally:
        aside.rename(path)


@pytest.fixture(scope="module")
def scratch_root(finished, tmp_path_factory):
    """A copy of the finished project in which tests put everything back."""
    folder = tmp_path_factory.mktemp("healing") / "project"
    shutil.copytree(finished.folder, folder, symlinks=True)
    return Project(folder)


# Files of several steps that depend on each other, at once.
TOGETHER = [
    "raw/miniature/coco/train2017/*",
    "media/coco/coco-00001-of-00002.tar",
    "media/coco/index.parquet",
    "records/llava.parquet",
    "plan/mixed/epoch-000.parquet",
    "blend/mixed/epoch-000/train-00001-of-00002.tar",
    "blend/mixed/epoch-000/counts.npy",
    "features/miniature/*/coco-00001-of-00002.bf16",
    "models/small/projector.safetensors",
    "exported/first/final/model.safetensors",
    "evaluate/second/metrics.json",
    "blend/mixed/preview.html",
]


def test_everything_that_is_gone_is_back_bit_for_bit(scratch):
    root = scratch.folder / "out"
    before = _hashes(root)
    shutil.rmtree(root / "exported/second/best")
    for pattern in TOGETHER:
        _first(root, pattern).unlink()
    ran = scratch.run_jobs()
    assert _hashes(root) == before
    expected = {KINDS[pattern] for pattern in TOGETHER} | {"export"}
    assert set(ran) == expected and ran["export"] == 2
    assert all(ran[rule] == 1 for rule in expected - {"export"})
    assert scratch.jobs() == {}


def test_weights_of_a_run_are_made_again_without_training_it_again(scratch):
    root = scratch.folder / "out"
    before = _hashes(root)
    finished = json.loads((root / "train/first/finished.json").read_text())
    weights = {root / "train/first" / finished[which]["weights"] for which in ("final", "best")}
    hashes = {path: file_sha256(path) for path in weights}
    for path in weights:
        path.unlink()
    assert scratch.run_jobs() == {"train_run": 1}
    assert {path: file_sha256(path) for path in weights} == hashes
    assert _hashes(root) == before and scratch.jobs() == {}


def test_damaged_files_are_withdrawn_by_repair_and_made_again(scratch):
    root = scratch.folder / "out"
    before = _hashes(root)
    for pattern in TOGETHER:
        path = _first(root, pattern)
        content = path.read_bytes()
        middle = len(content) // 2
        status = path.stat()
        path.chmod(0o644)
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        _set_time(path, status.st_mtime_ns)
    command = [sys.executable, "-m", "scripts.verify", "--root", "out"]
    found = subprocess.run(command, cwd=scratch.folder, capture_output=True, text=True, check=False)
    assert found.returncode == 1 and found.stdout.splitlines()[-1].startswith(f"{len(TOGETHER)} differences in ")
    repaired = subprocess.run([*command, "--repair"], cwd=scratch.folder, capture_output=True, text=True, check=True)
    assert f"{len(TOGETHER)} files were withdrawn: run snakemake again" in repaired.stdout
    ran = scratch.run_jobs()
    assert _hashes(root) == before and set(ran) == {KINDS[pattern] for pattern in TOGETHER}
    assert verify_root(root).differences == []


def test_leftovers_of_dead_programs_are_removed_and_of_living_ones_kept(scratch):
    root = scratch.folder / "out"
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    dead = subprocess.run(command, capture_output=True, text=True, check=True)
    ended = root / f"media/coco/.coco-00000-of-00002.tar.{dead.stdout.strip()}@{socket.gethostname()}.abc.tmp"
    living = root / f"plan/{temporary_prefix(Path('x.json'))}abc.tmp"
    elsewhere = root / "plan/.x.json.1@another-machine.abc.tmp"
    for path in (ended, living, elsewhere):
        path.write_bytes(b"half")
    scratch.snakemake("-n")
    assert ended.exists(), "a dry run changes nothing"
    (root / "report.html").unlink()
    scratch.snakemake()
    assert not ended.exists() and living.exists() and elsewhere.exists()


def _first(root: Path, pattern: str) -> Path:
    return min(root.glob(pattern))


def _set_time(path: Path, mtime_ns: int) -> None:
    os.utime(path, ns=(mtime_ns, mtime_ns))


def _hashes(root: Path) -> dict[str, str]:
    """sha256 of every result, without logs and the state of runs, which contain times."""
    return {
        str(path.relative_to(root)): file_sha256(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.relative_to(root).parts[0] not in ("logs", "benchmarks")
        and "state" not in path.parts
    }
