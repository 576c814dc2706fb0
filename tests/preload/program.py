"""Becoming another program without starting an interpreter: what `exec` and the interpreter's start would have done.

After the fork a process takes the new program's variables, folder, streams, session, arguments and search path, and has
no other open files; handlers of signals, exit functions, modules of this project, log handlers and random states are
those of a new interpreter. Then it runs the module as `__main__` and ends as an interpreter does. What it starts itself
with `python -m MODULE` is forked from it in the same way, so parents stay parents.

What stays different: the libraries are imported already, the address space is the server's, and /proc shows the
server's command line and variables.
"""

import atexit
import contextlib
import ctypes
import fcntl
import importlib
import inspect
import io
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

# Libraries read such variables when they are imported, the interpreter when it starts.
_READ_AT_IMPORT = ("DS_", "HF_", "HUGGINGFACE_", "KMP_", "GOMP_", "LD_", "LC_", "LANG", "MKL_", "OMP_", "OPENBLAS_")
_READ_AT_IMPORT += ("PYTHON", "TORCH_", "TRANSFORMERS_", "XDG_CACHE_HOME")
_READ_LATER = {"PYTHONPATH", "PYTHONSAFEPATH", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "TORCH_NCCL_ASYNC_ERROR_HANDLING"}
# These start others and compute nothing, so they may have any number of threads.
_STARTERS = {"snakemake", "scripts.train", "scripts.training.node_launcher", "torch.distributed.run"}
_OWN_PACKAGES = {"benchmarks", "model", "scripts", "tests"}
_PR_SET_CHILD_SUBREAPER = 36
_start_anew = subprocess.Popen._execute_child
_NAMES = list(inspect.signature(_start_anew).parameters)[1:]
_paths: list[str] = []
_variables: dict[str, str] = {}


@dataclass
class Start:
    """A program to become: `python -m module arguments`, in `folder` with `variables`."""

    command: list[str]
    module: str
    arguments: list[str]
    unbuffered: bool
    folder: str
    variables: dict[str, str]
    new_session: bool
    umask: int

    @classmethod
    def asked(cls, command: list[str], folder: str, variables: dict[str, str], umask: int) -> "Start | None":
        """In the server: the program that a command line asks for, or None if it cannot be had by forking."""
        words = command[1:]
        if unbuffered := words[:1] == ["-u"]:
            words = words[1:]
        if command[:1] != [sys.executable] or words[:1] != ["-m"] or not _alike(words[1], variables, _variables):
            return None
        return cls(command, words[1], words[2:], unbuffered, folder, variables, False, umask)


def options_of(values: Sequence[Any]) -> dict[str, Any]:
    """The arguments of `Popen._execute_child` by name."""
    return dict(zip(_NAMES, values, strict=True))


def parse(options: Mapping[str, Any]) -> Start | None:
    """The program that `Popen` was asked for, or None if it cannot be had by forking."""
    args = options["args"]
    command = [] if isinstance(args, (str, bytes, os.PathLike)) else [os.fspath(word) for word in args]
    folder = os.path.abspath(options["cwd"] or os.getcwd())
    plain = {"preexec_fn": None, "shell": False, "gid": None, "gids": None, "uid": None, "process_group": -1}
    if (
        options["executable"] not in (None, sys.executable)
        or any(options[name] != value for name, value in plain.items())
        or options["pass_fds"]
        or not os.path.isdir(folder)
    ):
        return None
    variables = dict(os.environ if options["env"] is None else options["env"])
    umask = options["umask"]
    if umask < 0:
        os.umask(umask := os.umask(0o077))
    start = Start.asked(command, folder, variables, umask)
    if start is not None:
        start.new_session = bool(options["start_new_session"])
    return start


def _alike(module: str, variables: Mapping[str, str], loaded: Mapping[str, str]) -> bool:
    """Whether the libraries would be imported in the same way with these variables."""
    for name in {*variables, *loaded} - _READ_LATER:
        expected = loaded.get(name)
        if name.endswith("_NUM_THREADS"):
            # Without a variable of its own a library goes by OMP_NUM_THREADS.
            expected = loaded.get("OMP_NUM_THREADS") if name in variables or name == "OMP_NUM_THREADS" else None
            if module in _STARTERS:
                continue
        if name.startswith(_READ_AT_IMPORT) and variables.get(name) != expected:
            return False
    return True


def streams_of(options: Mapping[str, Any]) -> list[int]:
    """The file descriptors that become the standard streams."""
    given = [options[name] for name in ("p2cread", "c2pwrite", "errwrite")]
    return [number if descriptor < 0 else descriptor for number, descriptor in enumerate(given)]


def close_theirs(process: subprocess.Popen, options: Mapping[str, Any]) -> None:
    """Close the child's ends of the pipes, as `Popen` does once there is a child."""
    names = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
    process._close_pipe_fds(*(options[name] for name in names))


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Meanwhile processes below this one whose parent ends become children of this one."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def wait_for_other_parent(parent: Callable[[], int], first: int) -> None:
    """Return when `parent()` is another process than `first`, which may have ended before this is called."""
    while parent() == first:
        time.sleep(0.0005)


def loaded_with(variables: Mapping[str, str]) -> None:
    """Remember the variables with which the libraries are imported."""
    _variables.clear()
    _variables.update(variables)


def remember_start(paths: list[str]) -> None:
    """In the server: the search path without a folder and PYTHONPATH, and what programs find at their start."""
    _paths[:] = paths
    loaded_with({name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"})
    _root_handlers[:] = logging.root.handlers
    _root_level[:] = [logging.root.level]


def become(start: Start, streams: list[int]) -> NoReturn:
    """In a forked process: run the program to its end, with these descriptors as its standard streams."""
    _reset_signals()
    _take_streams(streams, start.unbuffered)
    if start.new_session:
        os.setsid()
    os.umask(start.umask)
    os.chdir(start.folder)
    os.environ.clear()
    os.environ.update(start.variables)
    for name in [name for name in sys.modules if name.partition(".")[0] in _OWN_PACKAGES]:
        del sys.modules[name]
    given = filter(None, start.variables.get("PYTHONPATH", "").split(os.pathsep))
    first = [] if start.variables.get("PYTHONSAFEPATH") else [start.folder]
    sys.path[:] = [*first, *map(os.path.abspath, given), *_paths]
    sys.path_importer_cache.clear()
    importlib.invalidate_caches()
    sys.argv[:] = ["-m", *start.arguments]
    sys.orig_argv[:] = start.command
    logging.root.handlers[:] = _root_handlers
    logging.root.setLevel(*_root_level)
    atexit._clear()
    _draw_seeds()
    subprocess.Popen._execute_child = _execute_child
    main = types.ModuleType("__main__")
    main.__builtins__ = __builtins__
    sys.modules["__main__"] = main
    _end(_run(start.module))


def _draw_seeds() -> None:
    """Begin at random places, as in each new process; `random` does this by itself."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()


def _run(module: str) -> int:
    """Run a module as the interpreter does for `-m`; return the exit status."""
    try:
        try:
            runpy._run_module_as_main(module)
        finally:
            threading._shutdown()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        sys.excepthook(*sys.exc_info())
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 (as the interpreter: whatever ends a program is printed)
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(status: int) -> NoReturn:
    """End the process; the frames below belong to another program and must not run on."""
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 120
    os._exit(status)


def _reset_signals() -> None:
    """Handlers as at the start of an interpreter: ignored signals stay ignored, across `exec` too."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(handler := signal.getsignal(number)) or handler is None:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _take_streams(streams: list[int], unbuffered: bool) -> None:
    """Make these descriptors the standard streams, close all others, and put new text streams on them."""
    safe = [fcntl.fcntl(stream, fcntl.F_DUPFD, 10) for stream in streams]
    for number, stream in enumerate(safe):
        os.dup2(stream, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    _old.extend((sys.stdin, sys.stdout, sys.stderr))
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 (open as long as the program)
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = io.FileIO(number, "w", closefd=False)
        raw.name = f"<{name}>"
        binary = raw if unbuffered else io.BufferedWriter(raw)
        options = {"write_through": unbuffered, "line_buffering": number == 2 or os.isatty(number)}
        errors = "strict" if number == 1 else "backslashreplace"
        stream = io.TextIOWrapper(binary, encoding="utf-8", errors=errors, **options)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


# Streams of the process that was forked. What they hold was flushed there, and must not be closed here.
_old: list[Any] = []
_root_handlers: list[logging.Handler] = []
_root_level: list[int] = [logging.WARNING]


def _execute_child(self: subprocess.Popen, *values: Any) -> None:
    """`Popen._execute_child` of a process that was forked: it forks what it can, as well."""
    options = options_of(values)
    start = parse(options)
    if start is None:
        _start_anew(self, *values)
        return
    streams = streams_of(options)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # No handler of this program may run in the child before it has its own.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if not child:
            _become_child(start, streams, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    self.pid = child
    self._child_created = True
    close_theirs(self, options)


def _become_child(start: Start, streams: list[int], mask: set[signal.Signals]) -> NoReturn:
    try:
        _reset_signals()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        become(start, streams)
    except BaseException:  # noqa: BLE001 (as the interpreter: whatever ends a program is printed)
        # Nothing of the parent's may run on here.
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(255)
