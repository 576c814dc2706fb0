"""How a program ends, and where what it says goes.

A program's `main` is run through `run_program`. `UserError` means that the input is at fault: its message says what is
wrong, where, and what to do, and it is all that is printed. Any other exception is a defect of ours and keeps its
traceback. The rules name a log file in `VISUALCHAT_LOG`; what is said on the terminal is then written there too, line
by line.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO


class UserError(Exception):
    """The input is at fault; the message names what, where and the remedy."""


class _Tee:
    """A text stream that also writes its whole lines to a log; redrawn progress lines (`\\r`) stay on the terminal."""

    def __init__(self, stream: TextIO, log: TextIO):
        self._stream, self._log, self._line = stream, log, ""

    def write(self, text: str) -> int:
        self._stream.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._log.write(line.rsplit("\r", 1)[-1].rstrip() + "\n")
        self._log.flush()
        return len(text)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def run_program(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its return value; a `UserError` becomes one line on standard error and exit status 1."""
    if log_path := os.environ.pop("VISUALCHAT_LOG", None):
        Path(log_path).parent.mkdir(parents=True, exist_ok=True)
        log = open(log_path, "a", encoding="utf-8")
        sys.stdout, sys.stderr = _Tee(sys.stdout, log), _Tee(sys.stderr, log)
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read the output (`head`, a pager) has seen enough. Flushing at the end would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except Exception:
        # Printed here and not by the interpreter, which would bypass the log.
        traceback.print_exc(file=sys.stderr)
        sys.exit(2)
    sys.exit(status or 0)
