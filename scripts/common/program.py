"""The shell of every step: long flags in, settings as JSON, one clear error for bad input.

A step reads its settings from `--settings`, a JSON object that needs to name only what differs from the defaults of its
section (`scripts/sections/`). `@path` reads the object from a file, which is handy by hand.
"""

import argparse
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from scripts.common.errors import UserError

Section = TypeVar("Section", bound=BaseModel)


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
    if text.startswith("@"):
        text = Path(text[1:]).read_text(encoding="utf-8")
    try:
        return section.model_validate_json(text)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or '(settings)'}: {e['msg']}" for e in error.errors())
        raise UserError(f"bad --settings for {section.__name__}: {problems}") from None
