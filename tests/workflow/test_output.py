"""What a person sees of a run: the stages and what failed, in a few lines; all else is in the logs."""

import io
import re
import sys

import pytest

from scripts.common.progress import Progress as StepProgress
from scripts.common.progress import track
from snakemake_logger_plugin_visualchat import screen
from snakemake_logger_plugin_visualchat.jobs import STAGE_OF, Job, Progress, Run, last_message
from tests.workflow.project import ROOT, TINY, Project

LOGGER = ("--logger", "visualchat")


def test_every_rule_belongs_to_a_stage():
    files = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    named = set(re.findall(r"^rule (\w+):", files, re.M))
    assert named | {f"pretrain_{part}" for part in ("tokenizer", "vision", "language")} == STAGE_OF.keys()


def test_progress_is_read_from_what_programs_write(tmp_path, monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr("scripts.common.progress._LOG_EVERY_SECONDS", 0.0)
    list(track("abcd", "training first", total=4))
    log = tmp_path / "first.log"
    job = Job("train_run", "Training first", log)
    assert job.progress() is None
    lines = written.getvalue().splitlines()
    log.write_text("\n".join(lines[:3]))
    assert job.progress() == Progress(0.75, "3 of 4", 0.0, "")
    log.write_text("training first:  20% 512/2502 [01:20<05:10,  6.40it/s, loss 0.53]\na note\n")
    assert job.progress() == Progress(0.2, "512 of 2,502", 310.0, "loss 0.53")
    log.write_text("\n".join(lines))
    assert job.progress() is None, "it is done"


def test_the_last_message_of_a_failed_program_is_its_error(tmp_path):
    log = tmp_path / "log"
    log.write_text(
        "an older attempt\nerror: old\nimages checked:  50% 1/2 [00:01<00:01,  1.00it/s]\n"
        "error: new\n  how to mend it\n"
    )
    assert last_message(log) == ["error: new", "  how to mend it"]
    log.write_text("\n".join(f"line {i}" for i in range(100)))
    assert last_message(log)[-1] == "line 99" and len(last_message(log)) <= 12


def test_notes_of_a_program_are_shown_and_those_of_earlier_runs_are_not(tmp_path):
    log = tmp_path / "log"
    assert Job("plan", "Planning", log).notes() == []
    log.write_text("NOTE: old\n")
    job = Job("plan", "Planning", log)
    log.write_text("NOTE: old\nnote: small\nNOTE: pets gives no conversation to heldout\n")
    assert job.notes() == ["NOTE: pets gives no conversation to heldout"]


def test_an_hour_of_training_is_shown_in_a_few_dozen_lines(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    log, shown = tmp_path / "log", io.StringIO()
    run, lines = Run(), screen.Lines(shown)
    run.plan({"train_run": 1, "all": 1, "total": 2})
    lines.begin(run)
    run.start(1, Job("train_run", "Training first", log))
    training = StepProgress("training first", 3600)
    for second in range(3600):
        now[0] += 1
        if second % 10 == 0:
            training.done, training.note = second, "loss 0.5"
            log.write_text(f"{training.line(second)}\n")
        lines.update(run)
    lines.stage_done(run.finish(1), run)
    printed = shown.getvalue().splitlines()
    assert 10 < len(printed) < 40
    assert re.fullmatch(r" +\d+:\d\d +0%  training 0/1: [\d,]+ of 3,600, loss 0.5, \d+:\d\d left", printed[5])
    assert printed[-1] == "1:00:00 100%  training 1/1: done in 1:00:00"


@pytest.fixture
def project(tmp_path):
    return Project.create(tmp_path / "project")


def test_a_run_shows_its_stages_and_keeps_the_rest_in_the_logs(project):
    target = "out/raw/miniature/miniature.json"
    output = project.snakemake(target, *LOGGER)
    lines = output.splitlines()
    assert len(lines) < 8 and any(re.search(r"100%  raw files 1/1: done in \d:\d\d", line) for line in lines), output
    assert "images generated" not in output and "Select jobs" not in output and "Traceback" not in output
    assert "images generated: 100% 90/90" in (project.folder / "out/logs/miniature.log").read_text()
    assert "Select jobs" in "".join(path.read_text() for path in (project.folder / ".snakemake/log").iterdir())
    assert "Nothing to be done" in project.snakemake(target, *LOGGER)
    assert "Job stats" in project.snakemake("-n", "data", *LOGGER), "a dry run is Snakemake's own"


def test_a_failure_shows_the_rule_the_message_and_the_log(project):
    project.configure(TINY | {"custom": {"mine": {"folder": "nowhere", "files": ["rows.json"]}}})
    output = project.snakemake("out/raw/mine/source.json", *LOGGER, check=False)
    assert re.search(r"^FAILED after \d:\d\d: Listing the raw files of mine \(rule fetch\)$", output, re.M), output
    assert output.count("error: custom.mine: the folder nowhere does not exist") == 1
    assert "  log: out/logs/fetch/mine.log" in output and "CalledProcessError" not in output
    assert len(output.splitlines()) < 10
    with pytest.raises(AssertionError):
        project.snakemake("out/raw/mine/source.json", *LOGGER)
