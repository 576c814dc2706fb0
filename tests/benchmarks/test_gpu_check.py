"""The check of a GPU: every part runs in a tiny form, and what fails or takes too long does not end it."""

import re
import sys

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import Part, Result, as_printed, check, make_environment, of_tests


@pytest.mark.long
def test_every_part_runs_without_a_gpu(tmp_path):
    out = tmp_path / "gpu-check.md"
    whole = check(out, tmp_path / "no-wheels", minutes=60, dry=True)
    text = out.read_text()
    assert whole, text
    assert re.findall(r"^## (.*)$", text, re.M) == ["Machine", *(part.title for part in gpu_check.parts(dry=True))]
    assert re.search(r"^\| torch \| 2\.", text, re.M) and "no GPU" in text
    assert re.search(r"\d+ skipped", text), "the tests that need a GPU were collected"
    assert "mmca to causal" in text and "| ours |" in text and "| plain loop |" in text


def test_a_part_that_fails_or_is_too_slow_is_reported_and_the_next_one_runs(tmp_path, monkeypatch):
    parts = [
        Part("Broken", ["-c", "print('shown'); raise SystemExit(3)"], 20, as_printed),
        Part("Slow", ["-c", "import time; print('begun', flush=True); time.sleep(60)"], 1, as_printed),
        Part("Good", ["-c", "print('| a | table |')"], 20, as_printed),
    ]
    monkeypatch.setattr(gpu_check, "parts", lambda dry: parts)
    monkeypatch.setattr(gpu_check, "describe", lambda python, installed: installed)
    out = tmp_path / "gpu-check.md"
    assert not check(out, tmp_path / "no-wheels", minutes=6, dry=True)
    sections = re.split(r"^## ", out.read_text(), flags=re.M)
    assert "**Failed: exit status 3**" in sections[2] and "shown" in sections[2]
    assert "**Failed: stopped at its limit of 1 s**" in sections[3] and "begun" in sections[3]
    assert sections[4].endswith("| a | table |\n")


def test_a_killed_check_leaves_the_parts_that_were_done(tmp_path, monkeypatch):
    class KilledError(BaseException):
        pass

    def killed(words, limit):
        raise KilledError

    monkeypatch.setattr(gpu_check, "describe", lambda python, installed: "the machine")
    monkeypatch.setattr(gpu_check, "run", killed)
    out = tmp_path / "gpu-check.md"
    with pytest.raises(KilledError):
        check(out, tmp_path / "no-wheels", minutes=1, dry=True)
    assert "the machine" in out.read_text()


def test_no_part_begins_when_the_minutes_are_over(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "describe", lambda python, installed: installed)
    out = tmp_path / "gpu-check.md"
    assert not check(out, tmp_path / "no-wheels", minutes=0, dry=True)
    assert out.read_text().count("**Not run**") == len(gpu_check.parts(dry=True))


def test_results_of_tests_are_counted_also_when_they_were_cut_short():
    finished = "a.py::one PASSED [ 50%]\na.py::two FAILED [100%]\nE   assert 1 == 2\nFAILED a.py::two - assert 1 == 2\n"
    finished += "===== 1 failed, 1 passed in 3.00s =====\n"
    text = of_tests(Result(1, finished, "", 3.0))
    assert text.startswith("1 failed, 1 passed in 3.00s\n- `FAILED a.py::two") and "E   assert 1 == 2" in text
    cut = "a.py::one PASSED [ 20%]\na.py::two PASSED [ 40%]\na.py::three "
    assert of_tests(Result(None, cut, "", 90.0)) == "2 passed"
    assert of_tests(Result(1, "", "no module", 1.0)) == "no test ended"


def test_wheels_for_another_python_are_refused_and_torch_is_never_installed(tmp_path):
    other = f"cp{sys.version_info.major}{sys.version_info.minor + 1}"
    (tmp_path / f"numpy-2.0-{other}-{other}-manylinux_2_28_x86_64.whl").touch()
    with pytest.raises(RuntimeError, match=f"are for {other} .*gpu-wheels GPU_PYTHON="):
        make_environment(tmp_path)
    only = tmp_path / "only"
    only.mkdir()
    (only / "torch-2.0-py3-none-any.whl").touch()
    assert str(make_environment(only)[0]) == sys.executable
