"""How a program ends, and where its output goes.

A program's `main` is run through `run_program`. `UserError` means that the input is at fault: its message states what
is wrong, where, and what to do, and nothing else is printed. Errors of the machine (a full disk, no permission, too
many open files) become one such line too, see `machine_error`. Any other exception is a bug in this code and keeps its
traceback. The rules name a log file in `VISUALCHAT_LOG`; terminal output is then also written to that file, line by
line.
"""

import errno
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

_STAGES = {
    *("raw", "validated", "media", "split", "records", "tokens", "plan", "blend", "pixels", "features"),
    *("bases", "models", "replay", "train", "exported", "evaluate"),
}
"""The folders of a results root."""

_AGAIN = "then run the same command again: it continues"
_FREE_SPACE = f"Free some space, {_AGAIN}"
_REMEDIES = {
    errno.ENOSPC: _FREE_SPACE,
    errno.EDQUOT: f"Your quota is used up. {_FREE_SPACE}",
    errno.EFBIG: f"Raise the limit on the size of files (`ulimit -f`) or use another file system, {_AGAIN}",
    errno.EROFS: f"Mount the file system for writing or choose another folder, {_AGAIN}",
    errno.EACCES: f"Change the permissions of the file and of its folders, {_AGAIN}",
    errno.EPERM: f"Change the owner or the attributes of the file and of its folder, {_AGAIN}",
    errno.EMFILE: f"Raise the limit on open files (`ulimit -n`), {_AGAIN}",
    errno.ENFILE: f"The machine has no more open files to give: end other programs, {_AGAIN}",
    errno.ENAMETOOLONG: "Choose shorter names, or a results folder with a shorter path",
    errno.EIO: f"The disk or the connection to it is failing: check it, {_AGAIN}",
    errno.ESTALE: f"The connection to the disk was lost: check it, {_AGAIN}",
    errno.EISDIR: f"A folder lies where a file belongs: move it away, {_AGAIN}",
    errno.ENOTDIR: f"A file lies where a folder belongs: move it away, {_AGAIN}",
    errno.EEXIST: f"A file lies where a folder belongs: move it away, {_AGAIN}",
    errno.ELOOP: f"A link leads back to itself: remove it, {_AGAIN}",
    errno.ENOMEM: f"End other programs or use a machine with more memory, {_AGAIN}",
}
"""What to do about an error of the machine, by its number."""

_NO_TEMPORARY_FOLDER = "No usable temporary directory"
"""How Python's error begins where none of the usual folders can be written."""
_ONLY_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_WRITING = "while writing"
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust (safetensors, tokenizers) name an error of the operating system."""


class UserError(Exception):
    """The input is at fault; the message names what, where and the remedy."""


class PermanentError(UserError):
    """Running again with the same settings and data would end the same way."""


def damaged(path: str | Path, what: str, needed_by: str = "") -> UserError:
    """The error for a file of a results root that is missing or damaged, with the command that mends it.

    Args:
        path: of the file.
        what: is wrong with it: a sentence whose subject is the file, such as "is missing".
        needed_by: who wanted what of it; a sentence without full stop.
    """
    needed = f" ({needed_by})" if needed_by else ""
    return UserError(f"{path} {what}{needed}. {repair_hint(path)}")


def repair_hint(path: str | Path) -> str:
    """How a missing or damaged file is built again; one that lies below no results root has to be got again."""
    root = results_root(path)
    if root is None:
        return "Get or make it again (of a results folder ROOT: `python -m scripts.verify --root ROOT --repair`)"
    command = f"python -m scripts.verify --root {shlex.quote(str(root))} --repair"
    return f"Run `{command}`, then snakemake: it builds again what the command has removed"


def results_root(path: str | Path) -> Path | None:
    """The results root that a file lies below; None if it lies below none."""
    path = Path(path)
    candidates = [parent.parent for parent in reversed(path.parents) if parent.name in _STAGES]
    # A folder above the root or a blend may have the name of a stage: the root has most of them.
    return max(candidates, key=lambda root: sum((root / stage).is_dir() for stage in _STAGES), default=None)


def is_results_root(folder: str | Path) -> bool:
    """Whether a folder holds results of a configuration, which are no data of the user."""
    return Path(folder, "configuration.json").is_file() and any(Path(folder, stage).is_dir() for stage in _STAGES)


def mark_writing(error: OSError, path: str | Path) -> None:
    """Record in `error` that the file `path` could not be written."""
    error.filename, error.filename2 = str(path), None
    error.add_note(_WRITING)


@contextmanager
def naming_target(draft: Path, target: Path) -> Iterator[None]:
    """In a block that writes below `draft`, which will be renamed: let errors name the files as they would be called.

    Raises:
        OSError: a file cannot be written, also where a library raises an error of its own.
    """
    try:
        yield
    except OSError as error:
        name = draft if not isinstance(error.filename, str | bytes) else Path(os.fsdecode(error.filename))
        if name.is_relative_to(draft):
            mark_writing(error, target / name.relative_to(draft))
        raise
    except Exception as error:
        match = _RUST_ERROR.search(str(error))
        if match is None:
            raise
        translated = OSError(int(match[1]), os.strerror(int(match[1])))
        mark_writing(translated, target)
        raise translated from None


def machine_error(error: BaseException) -> str | None:
    """What a person reads about an error of the machine: file, what was wanted, what to do. None for other errors."""
    if isinstance(error, MemoryError):
        return f"There is not enough memory{f' ({error})' if str(error) else ''}. {_REMEDIES[errno.ENOMEM]}"
    if not isinstance(error, OSError):
        return None
    if str(error.strerror).startswith(_NO_TEMPORARY_FOLDER):
        return f"{error.strerror}. Free some space there, or set TMPDIR to a folder that can be written, {_AGAIN}"
    name = error.filename if error.filename is not None else "a file"
    name = os.fsdecode(name) if isinstance(name, (bytes, str)) else f"file {name}"
    if isinstance(error, FileNotFoundError):
        return f"{name} is missing. {repair_hint(name)}" if results_root(name) else None
    if error.errno not in _REMEDIES:
        return None
    writing = error.errno in _ONLY_WRITING or _WRITING in getattr(error, "__notes__", ())
    verb = "written" if writing else "opened, read or written"
    return f"{name} cannot be {verb}: {error.strerror}. {_REMEDIES[error.errno]}"


class _Tee:
    """A text stream that also writes complete lines to a log.

    Of a progress line that is redrawn in place (carriage return), the log gets the last state only.
    """

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log, self._line = stream, log, ""

    def write(self, text: str) -> int:
        self._stream.write(text)
        if not self._log.closed:
            *lines, self._line = (self._line + text).split("\n")
            try:
                for line in lines:
                    self._log.write(line.rsplit("\r", 1)[-1].rstrip() + "\n")
                self._log.flush()
            except OSError as error:
                _without_log(self._stream, self._log.name, error)
                with suppress(OSError):
                    self._log.close()
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _without_log(stream: TextIO, path: str, error: OSError) -> None:
    stream.write(f"warning: the log {path} cannot be written ({error.strerror}); its lines appear here only\n")


def _start_log(path: str) -> None:
    """Write standard output and error to the log `path` too; a program does its work without a log as well."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        log = open(path, "a", encoding="utf-8")  # noqa: SIM115 - it stays open until the interpreter exits
    except OSError as error:
        _without_log(sys.stderr, path, error)
        return
    sys.stdout, sys.stderr = _Tee(sys.stdout, log), _Tee(sys.stderr, log)


def run_program(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its return value.

    A `UserError` and an error of the machine become one line on standard error and exit status 1.
    """
    if log_path := os.environ.pop("VISUALCHAT_LOG", None):
        _start_log(log_path)
    # Outside of the handlers, in which an error keeps what its functions had open: a reader of a table that is closed
    # while the interpreter shuts down may abort.
    sys.exit(_status(main))


def _status(main: Callable[[], int | None]) -> int:
    """Run `main`, print its error if it has one, and return the exit status."""
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of the output (`head`, a pager) has closed it. Flushing at exit would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except Exception as error:  # noqa: BLE001 - every traceback has to reach the log, which the interpreter would bypass
        if message := machine_error(error):
            print(f"error: {message}", file=sys.stderr)
            return 1
        traceback.print_exc(file=sys.stderr)
        return 2
