"""The command line of every program: long flags, settings as JSON, one clear error for bad input.

A program reads its settings from `--settings`, a JSON object that has to contain only what differs from the defaults of
its section (`scripts/config/`). `@path` reads the object from a file.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scripts.common.errors import UserError

if TYPE_CHECKING:
    # Many programs have no settings, and importing pydantic takes a tenth of a short program's time.
    from pydantic import BaseModel

Section = TypeVar("Section", bound="BaseModel")


class _HiddenModule:
    """A module finder that reports one module as not installed."""

    def __init__(self, module: str) -> None:
        self._module = module

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == self._module:
            raise ModuleNotFoundError(f"{name} is hidden from this program", name=name)


def hide_pandas() -> None:
    """Make pandas look as if it were not installed, in programs that finish within about a second.

    pyarrow imports pandas when it first converts a list, to check whether the list is a pandas object; the import takes
    a fifth of a second.
    """
    sys.meta_path.insert(0, _HiddenModule("pandas"))


def parser(description: str | None, **options: Any) -> argparse.ArgumentParser:
    """An argument parser that shows the docstring of the program, line breaks included, as its description."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options
    )


def load_settings(section: type[Section], *texts: str) -> Section:
    """Validate `texts` (each a JSON object, or `@file`) together as a `section`.

    Raises:
        UserError: the text is not JSON, or has an unknown key or a bad value; the message lists each of them.
    """
    from pydantic import ValidationError

    parts = [Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text for text in texts]
    try:
        if len(parts) == 1:
            return section.model_validate_json(parts[0])
        merged = {key: value for part in parts for key, value in json.loads(part).items()}
        return section.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or '(settings)'}: {e['msg']}" for e in error.errors())
        raise UserError(f"bad --settings for {section.__name__}: {problems}") from None
