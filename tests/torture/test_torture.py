"""The adversary sees what it looks for: faults are planted, and each has to be reported.

The long tests build the graph of the tiny configuration: one plants a fault in a finished project, the other is a short
run of the whole adversary on this project, with every kind of attack.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.__main__ import ATTACKS
from tests.torture.adversary import Adversary, Report
from tests.torture.batch import BatchAttack
from tests.torture.damage import Damage
from tests.torture.mutation import changed, changed_bytes, changed_json
from tests.torture.processes import inhabitants, run
from tests.torture.rows import OWN
from tests.torture.world import World, copy_code, view
from tests.workflow.project import ROOT


@pytest.fixture
def planted(tmp_path: Path):
    """A copy of the project in which one text of one file is replaced: `planted(file, old, new)`."""
    code = tmp_path / "code"

    def plant(file: str, old: str, new: str) -> Path:
        copy_code(ROOT, code)
        replace(code / file, old, new)
        return code

    return plant


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{path} has changed: plant the fault elsewhere"
    path.write_text(text.replace(old, new))


def rows_of(code: Path, folder: Path) -> Report:
    """One batch of rows through the adapters of the project at `code`."""
    folder.mkdir()
    report = Report()
    BatchAttack(World(folder, code), "rows", 1, 120, 2 << 30).strike(random.Random(5), report)
    return report


def test_rows_of_this_project_are_all_accounted_for(tmp_path):
    report = rows_of(ROOT, tmp_path / "work")
    assert report.violations == [] and report.attacks > 1000
    assert report.outcomes["rows kept"] > 100 and report.outcomes["rows dropped with a reason"] > 300


def test_a_row_that_is_skipped_silently_is_reported(planted, tmp_path):
    counted = "self.rows_read += 1"
    code = planted(
        "scripts/adapters/raw.py",
        counted,
        f'if row.id[-1] == "7":\n                    continue\n                {counted}',
    )
    assert "lost" in {violation.fault for violation in rows_of(code, tmp_path / "work").violations}


def test_an_exception_on_a_row_is_reported(planted, tmp_path):
    code = planted(
        "scripts/adapters/base.py",
        "except RowError as error:\n            yield",
        "except OSError as error:\n            yield",
    )
    report = rows_of(code, tmp_path / "work")
    assert report.violations and {violation.fault for violation in report.violations} == {"tracebacks"}


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [("archives", "images read", "containers refused"), ("images", "decoded", "rejected: corrupt")],
)
def test_a_batch_has_what_is_used_and_what_is_refused(tmp_path, kind, good, bad):
    """Otherwise an interface has changed, and nothing is attacked any more."""
    report = Report()
    BatchAttack(World(tmp_path), kind, 1, 300, 2 << 30).strike(random.Random(5), report)
    assert report.outcomes[good] > 20 and report.outcomes[bad] > 3


def test_the_watchdog_ends_what_hangs_or_grows(tmp_path):
    outcome = run(["bash", "-c", "sleep 99 & sleep 99"], tmp_path, os.environ, 1)
    assert outcome.status is None and not outcome.too_large and inhabitants(tmp_path) == []
    growing = "x = []\nwhile True: x.append(bytes(1 << 20))"
    outcome = run([sys.executable, "-c", growing], tmp_path, os.environ, 60, memory=200 << 20)
    assert outcome.status is None and outcome.too_large and outcome.peak > 200 << 20


def test_limits_are_those_of_the_program_alone(tmp_path):
    write = "from pathlib import Path; Path('file').write_bytes(bytes(5000))"
    outcome = run([sys.executable, "-c", write], tmp_path, os.environ, 60, limits={"file_bytes": 100})
    assert outcome.has_traceback and "File too large" in outcome.output
    assert run([sys.executable, "-c", write], tmp_path, os.environ, 60).status == 0
    (tmp_path / "file").unlink()
    tmp_path.chmod(0o555)
    outcome = run([sys.executable, "-c", write], tmp_path, os.environ, 60, limits={"permissions": 1})
    tmp_path.chmod(0o755)
    assert outcome.has_traceback and "Permission denied" in outcome.output


class Alarming:
    """An attack that reports the given faults."""

    weight = 1.0

    def __init__(self, *faults: str):
        self.faults = faults

    def strike(self, draw: random.Random, report: Report) -> None:
        report.attacks += 1
        report.note(f"drew {draw.randrange(10**6)}")
        for fault in self.faults:
            report.violation(fault, "seen")

    def close(self) -> None:
        pass


def test_what_is_found_is_counted_and_can_be_repeated():
    lines: list[str] = []
    attacks = {"calm": Alarming(), "loud": Alarming("differences", "hangs")}
    adversary = Adversary(attacks, 3, lines.append, lambda kind, number: f"again {kind} {number}")
    adversary.run(0)
    assert adversary.strikes == {"calm": 1, "loud": 1} and adversary.violations == 2
    assert sum("again loud 0" in line for line in lines) == 2
    cells = [cell.strip() for cell in adversary.table().splitlines()[3].split("|")]
    assert cells[1:9] == ["loud", "1", "1", "1", "0", "1", "0", "0"]
    again = Adversary(attacks, 3, lines.append, lambda kind, number: "").strike("calm", 0)
    assert again.outcomes == adversary.reports["calm"].outcomes


def test_an_error_of_the_adversary_is_not_a_success():
    class Broken(Alarming):
        def strike(self, draw, report):
            raise RuntimeError("out of ideas")

    adversary = Adversary({"broken": Broken()}, 3, lambda line: None, lambda kind, number: "")
    adversary.run(0)
    assert "out of ideas" in adversary.reports["broken"].violations[0].text


def test_changes_depend_on_the_seed_alone():
    for change, item in ((changed, OWN[0]), (changed_json, OWN[1]), (changed_bytes, b"0123456789" * 50)):
        first, again, other = (change(random.Random(seed), item) for seed in (1, 1, 2))
        assert first == again != other


def test_only_views_may_differ_between_two_builds():
    assert view("train/first/state/0123/events/events.out") and view("logs/blend/mixed/heldout.log")
    for path in ("train/first/finished.json", "train/first/lock.json", "exported/first/final/model.safetensors"):
        assert not view(path)


@pytest.mark.long
def test_a_damaged_file_that_nobody_finds_is_reported(tmp_path):
    world = World(tmp_path)
    plant = world.finished / "scripts/provenance/verification.py"
    replace(
        plant,
        "def _fault(expected: ExpectedFile, quick: bool) -> str:\n",
        'def _fault(expected: ExpectedFile, quick: bool) -> str:\n    return ""\n',
    )
    report, attack = Report(), Damage(world)
    for number in range(8):
        attack.strike(random.Random(number), report)
    assert any("verify does not find" in violation.text for violation in report.violations)


@pytest.mark.long
def test_every_kind_of_attack_once():
    command = [sys.executable, "-m", "tests.torture", "--minutes", "0.1", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    assert {cells[1].strip() for cells in rows[1:]} == set(ATTACKS)
    assert all(int(cells[2]) >= 1 for cells in rows[1:])
