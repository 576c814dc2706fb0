"""A program that is forked from the preloading server is the program that is started anew: to itself and to others."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.preload import client as preload

pytestmark = pytest.mark.skipif(not preload.available(), reason="programs are preloaded on Linux without a GPU")
WITNESS = """
import json, os, random, signal, subprocess, sys, threading, time
from pathlib import Path

what = sys.argv[1]
if what == "look":
    import numpy, torch

    ignored = [int(n) for n in signal.valid_signals() if signal.getsignal(n) == signal.SIG_IGN]
    seen = {"argv": sys.argv[1:], "name": __name__, "file": os.path.basename(__file__), "folder": os.getcwd()}
    seen |= {"variables": sorted(os.environ.items()), "path": sys.path, "ignored": ignored, "input": sys.stdin.read()}
    seen |= {"parent": os.getppid(), "leader": os.getsid(0) == os.getpid(), "threads": threading.active_count()}
    seen |= {"computing": torch.get_num_threads(), "open": len(os.listdir("/proc/self/fd"))}
    seen |= {"blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])]}
    seen |= {"line": sys.stdout.line_buffering, "own": [name for name in sys.modules if name.startswith("tests")]}
    print(json.dumps(seen))
    print("a word", file=sys.stderr)
elif what == "draw":
    import numpy, torch

    print(random.random(), numpy.random.random(), torch.rand(()).item())
elif what == "parent":
    print(os.getppid())
elif what == "exit":
    sys.exit(json.loads(sys.argv[2]))
elif what == "raise":
    raise ValueError("no")
elif what == "interrupt":
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
elif what == "stop":
    signal.signal(signal.SIGTERM, lambda *given: sys.exit(7))
    print("ready", flush=True)
    time.sleep(60)
elif what == "start":
    signal.signal(signal.SIGTERM, lambda *given: None)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    command = [sys.executable, "-m", "witness", "look"]
    child = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
    print(os.getpid(), flush=True)
    sys.exit(child.wait())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the program `witness` lies."""
    folder = tmp_path_factory.mktemp("witness")
    (folder / "witness.py").write_text(WITNESS)
    return folder


def start(popen: type, folder: Path, *arguments: str, **options) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "/nowhere", "SHOWN": "yes"}
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | options
    command = [sys.executable, "-m", "witness", *arguments]
    process = popen(command, cwd=folder, env=environment, text=True, **streams)
    assert getattr(process, "preloaded", False) == (popen is preload.Popen)
    return process


BOTH = [subprocess.Popen, preload.Popen]


@pytest.mark.parametrize("new_session", [False, True])
def test_a_program_finds_what_one_that_is_started_finds(folder: Path, new_session: bool):
    seen = []
    for popen in BOTH:
        process = start(popen, folder, "look", "a word", start_new_session=new_session)
        out, err = process.communicate("typed")
        assert process.returncode == 0 and err == "a word\n"
        seen.append(json.loads(out))
    assert seen[1] == seen[0]
    assert seen[0]["parent"] == os.getpid() and seen[0]["leader"] == new_session and seen[0]["input"] == "typed"


def test_what_it_starts_is_its_child_and_knows_nothing_of_it(folder: Path):
    """Its handlers are gone, what it ignores stays ignored, and no descriptor is left open."""
    seen = []
    for popen in BOTH:
        out, _ = start(popen, folder, "start").communicate()
        number, line = out.splitlines()
        seen.append(json.loads(line))
        assert seen[-1].pop("parent") == int(number)
    assert seen[1] == seen[0] and signal.SIGUSR1 in seen[0]["ignored"] and seen[0]["leader"]


@pytest.mark.parametrize(
    "arguments", [("exit", "0"), ("exit", "3"), ("exit", "null"), ("exit", '"why"'), ("raise",), ("interrupt",)]
)
def test_it_ends_with_the_same_status_and_words(folder: Path, arguments: tuple[str, ...]):
    ends = []
    for popen in BOTH:
        process = start(popen, folder, *arguments)
        out, err = process.communicate()
        ends.append((process.returncode, out, err.splitlines()[-1:]))
    assert ends[1] == ends[0]


def test_signals_reach_it_and_killing_it_is_seen(folder: Path):
    for number, status in ((signal.SIGTERM, 7), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(preload.Popen, folder, "stop")
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait() == status
        process.communicate()


def test_no_two_programs_draw_the_same_numbers(folder: Path):
    drawn = [start(preload.Popen, folder, "draw").communicate()[0].split() for _ in range(2)]
    assert not set(drawn[0]) & set(drawn[1])


def test_other_variables_of_a_library_have_it_started_anew(folder: Path):
    for name, value in (("OMP_NUM_THREADS", "2"), ("HF_HOME", "/elsewhere"), ("PYTHONHASHSEED", "0")):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "", name: value}
        command = [sys.executable, "-m", "witness", "exit", "0"]
        with preload.Popen(command, cwd=folder, env=environment) as process:
            assert process.wait() == 0 and not process.preloaded


@pytest.mark.parametrize("command", ["exit 3", "raise", "draw"])
def test_a_shell_starts_it_by_the_name_of_python(folder: Path, command: str):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | preload.in_shells()
    script = (
        f"set -euo pipefail; export PYTHONSAFEPATH=1 PYTHONPATH={folder}; GIVEN=1 python -m witness {command} | cat"
    )
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    expected = {"exit 3": 3, "raise": 1, "draw": 0}[command]
    assert done.returncode == expected, done.stderr
    assert len(done.stdout.split()) == (3 if command == "draw" else 0)


def test_a_rules_shell_has_its_program_forked(folder: Path):
    """With the variables that Snakemake sets for a job."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "GOTO_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, "1") | {"PYTHONPATH": str(folder)} | preload.in_shells()
    done = subprocess.run(
        ["bash", "-c", "python -m witness parent"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == f"{preload.server().process.pid}\n", done.stderr


def test_a_program_that_a_shell_started_ends_with_its_stub(folder: Path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)} | preload.in_shells()
    for number in (signal.SIGTERM, signal.SIGKILL):
        shell = subprocess.Popen(
            ["bash", "-c", "python -m witness stop; exit $?"], env=environment, stdout=subprocess.PIPE
        )
        assert shell.stdout.readline() == b"ready\n"
        (stub,) = psutil.Process(shell.pid).children()
        stub.send_signal(number)
        # The pipe ends once the program has ended too.
        assert shell.communicate()[0] == b""
        assert shell.returncode == (7 if number == signal.SIGTERM else 128 + number)
