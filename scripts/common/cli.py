"""The shell of every step: long flags in, settings as JSON, one clear error for bad input.

A step reads its settings from `--settings`, a JSON object that needs to name only what differs from the defaults of its
section (`scripts/config/`). `@path` reads the object from a file, which is handy by hand.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from scripts.common.errors import UserError

if TYPE_CHECKING:
    # Many programs have no settings, and its import is a tenth of a short one's time.
    from pydantic import BaseModel

Section = TypeVar("Section", bound="BaseModel")


class _Absent:
    """Finder of modules that says of one that it is not installed."""

    def __init__(self, module: str):
        self._module = module

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self._module:
            raise ModuleNotFoundError(f"{name} is left out of this program", name=name)


def leave_out_pandas() -> None:
    """Let pyarrow believe that pandas is not installed: for programs that are done in a second or so.

    pyarrow imports it when it is first given a list, to see whether that is one of its kind, which takes a fifth of a
    second.
    """
    sys.meta_path.insert(0, _Absent("pandas"))


def parser(description: str | None, **options) -> argparse.ArgumentParser:
    """An argument parser that shows the program's own docstring with its line breaks kept."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
    )


def load_settings(section: type[Section], text: str) -> Section:
    """Validate `text` (JSON, or `@file`) as a `section`.

    Raises:
        UserError: not JSON, an unknown key or a bad value; the message lists each place.
    """
    from pydantic import ValidationError

    if text.startswith("@"):
        text = Path(text[1:]).read_text(encoding="utf-8")
    try:
        return section.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or '(settings)'}: {e['msg']}" for e in error.errors())
        raise UserError(f"bad --settings for {section.__name__}: {problems}") from None
