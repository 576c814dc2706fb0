"""Training disturbed in ways that take minutes: killed ten times, hung, on a full disk, under Snakemake's retries."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import small_disk
from tests.preload import client as preload
from tests.runs import REPOSITORY, SETTINGS, STEPS, TrainingSetup, finished, lines_written, metrics, wait_until
from tests.scripts.test_train import family, wait_for_death

pytestmark = pytest.mark.long


def worker(pid: int, rank: int):
    """The process of a rank of the run that `pid` has launched."""
    return next(process for process in family(pid) if process.environ().get("RANK") == str(rank))


def same_as(out: Path, undisturbed: Path) -> None:
    """Check that a run ended as if nothing had happened."""
    assert metrics(out) == metrics(undisturbed)
    assert finished(out) == finished(undisturbed)
    for which in ("final", "best"):
        place = finished(out)[which]["weights"]
        assert (out / place).read_bytes() == (undisturbed / place).read_bytes()


def test_killed_at_ten_random_moments_it_ends_the_same(lab: TrainingSetup, undisturbed: Path, chooser: random.Random):
    out = lab.root / "train/killed"
    for _ in range(10):
        # From before the first import to after the last step; a run that gets to its end is begun anew from there.
        process, wait = lab.start(out, preloaded=False, checkpoint_every=2), chooser.uniform(0, 14)
        deadline = time.monotonic() + wait
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is not None:
            assert process.returncode == 0, process.stderr.read()
            break
        victims = family(process.pid)
        for victim in chooser.sample(victims, len(victims)):
            victim.kill()
        process.communicate()
        wait_for_death(victims)
    status, output = lab.train(out, checkpoint_every=2)
    assert status == 0, output
    same_as(out, undisturbed)


def test_a_rank_whose_process_is_frozen_ends_the_job(lab: TrainingSetup):
    out = lab.root / "train/frozen"
    process = lab.start(out, flags=["--hang-timeout", "0.5"], preloaded=False)
    wait_until(process, lambda: lines_written(out) >= 3)
    victims = family(process.pid)
    worker(process.pid, 1).send_signal(signal.SIGSTOP)
    output = process.communicate(timeout=300)[1]
    assert process.returncode == 1 and "Traceback" not in output
    assert "rank 1 wrote no stack: its process is frozen" in output and "rank 0 waits for the others" in output
    wait_for_death(victims)
    status, output = lab.train(out)
    assert status == 0, output


def test_a_rank_that_waits_for_a_dead_disk_is_reported_with_its_stack(lab: TrainingSetup):
    """A shard becomes a pipe without a writer: opening it blocks, like a file of a server that is gone."""
    out, shard = lab.root / "train/dead_disk", lab.blends[1] / "train-00001-of-00002.tar"
    away = shard.with_name("away.tar")
    process = lab.start(out, flags=["--hang-timeout", "0.5"], ranks=1)
    try:
        wait_until(process, lambda: lines_written(out) >= 3)
        shard.rename(away)
        os.mkfifo(shard)
        output = process.communicate(timeout=300)[1]
    finally:
        shard.unlink(missing_ok=True)
        away.rename(shard)
    assert process.returncode == 1 and "Traceback" not in output
    assert "made no progress" in output and "blend_reader.py" in output and "_pread" in output
    status, output = lab.train(out, ranks=1)
    assert status == 0 and "continuing after step" in output, output


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MiB."""
    with small_disk(tmp_path / "disk", 32) as folder:
        yield folder


def test_a_full_disk_is_an_error_and_the_run_continues_once_there_is_room(lab: TrainingSetup, disk: Path):
    out, ballast = disk / "run", disk / "ballast"
    process = lab.start(out, ranks=1)
    wait_until(process, lambda: list(out.glob("state/*/checkpoints/step-*")))
    free = os.statvfs(disk)
    # Room for lines of metrics, not for another checkpoint beside the one that is there.
    ballast.write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - 200_000)))
    output = process.communicate()[1]
    assert process.returncode == 1 and "Traceback" not in output
    assert "the disk of" in output and "No space left on device" in output and "is whole. Free space" in output
    ballast.unlink()
    status, output = lab.train(out, ranks=1)
    assert status == 0 and "continuing after step" in output, output
    assert [line["step"] for line in metrics(out) if "loss" in line] == list(range(1, STEPS + 1))


SNAKEFILE = """
rule train:
    output: update("run/finished.json")
    retries: 3
    shell: {command!r}
"""


def test_asked_to_stop_under_snakemake_its_retry_continues(lab: TrainingSetup, undisturbed: Path, tmp_path: Path):
    """SIGUSR1 and SIGTERM, as a scheduler sends them to the job; exit status 75 makes Snakemake try again."""
    out = tmp_path / "run"
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps(SETTINGS))
    command = f"{sys.executable} -m scripts.train --name tiny --settings @{settings} --out run --model {lab.model}"
    command += f" --blend {' '.join(map(str, lab.blends))} --heldout {lab.heldout} --root {lab.root}"
    (tmp_path / "Snakefile").write_text(SNAKEFILE.format(command=command))
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    snakemake = [sys.executable, "-m", "snakemake", "--cores", "2", "--directory", str(tmp_path)]
    snakemake += ["--snakefile", str(tmp_path / "Snakefile")]
    process = subprocess.Popen(snakemake, env=environment, stderr=subprocess.PIPE, text=True)
    for number, lines in ((signal.SIGUSR1, 4), (signal.SIGTERM, 14)):
        wait_until(process, lambda lines=lines: lines_written(out) >= lines)
        launcher = next(p for p in family(process.pid) if p.cmdline()[1:3] == ["-m", "scripts.train"])
        launcher.send_signal(number)
        launcher.wait(120)
    output = process.communicate()[1]
    assert process.returncode == 0, output
    assert output.count("stopped and saved; the same command continues") == 2
    assert output.count("continuing after step") == 2
    same_as(out, undisturbed)


def test_continued_at_any_stage_by_any_number_of_ranks(lab: TrainingSetup, tmp_path: Path):
    """States of every stage on one rank and on two, each continued on the other number at another stage."""
    found: dict[str, list[float]] = {}
    for turn, ranks in enumerate((1, 2, 1)):
        out = tmp_path / f"{turn}.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command += ["-m", "tests.scripts.training.run_resharded", str(lab.root), str(tmp_path), str(out)]
        environment = os.environ | {"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        done = preload.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found |= json.loads(out.read_text())
    continued = [name for name in found if ">" in name]
    assert len(continued) == 4 * 4 * 2
    for name in continued:
        assert found[name] == pytest.approx(found["whole"], rel=2e-6), name
