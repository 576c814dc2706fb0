"""How a program ends, and where its output goes.

A program's `main` is run through `run_program`. `UserError` means that the input is at fault: its message states what
is wrong, where, and what to do, and nothing else is printed. Any other exception is a bug in this code and keeps its
traceback. The rules name a log file in `VISUALCHAT_LOG`; terminal output is then also written to that file, line by
line.
"""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO


class UserError(Exception):
    """The input is at fault; the message names what, where and the remedy."""


class _Tee:
    """A text stream that also writes complete lines to a log.

    Of a progress line that is redrawn in place (carriage return), the log gets the last state only.
    """

    def __init__(self, stream: TextIO, log: TextIO) -> None:
        self._stream, self._log, self._line = stream, log, ""

    def write(self, text: str) -> int:
        self._stream.write(text)
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._log.write(line.rsplit("\r", 1)[-1].rstrip() + "\n")
        self._log.flush()
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def run_program(main: Callable[[], int | None]) -> None:
    """Run `main` and exit with its return value; a `UserError` becomes one line on standard error and exit status 1."""
    if log_path := os.environ.pop("VISUALCHAT_LOG", None):
        Path(log_path).parent.mkdir(parents=True, exist_ok=True)
        log = open(log_path, "a", encoding="utf-8")  # noqa: SIM115 - it stays open until the interpreter exits
        sys.stdout, sys.stderr = _Tee(sys.stdout, log), _Tee(sys.stderr, log)
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of the output (`head`, a pager) has closed it. Flushing at exit would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)
    except Exception:  # noqa: BLE001 - every traceback has to reach the log, which the interpreter would bypass
        traceback.print_exc(file=sys.stderr)
        sys.exit(2)
    sys.exit(status or 0)
