"""Saving a model's folder with the code it needs, so that it loads where this package is not installed.

AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
AutoProcessor.from_pretrained(folder, trust_remote_code=True)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .configuration import VisualChatConfig
from .modeling import VisualChatForConditionalGeneration
from .processing import VisualChatProcessor

# The classes of `transformers` whose `register_for_auto_class` these inherit.
_AUTO_CLASSES: dict[Any, str] = {
    VisualChatConfig: "AutoConfig",
    VisualChatForConditionalGeneration: "AutoModelForImageTextToText",
    VisualChatProcessor: "AutoProcessor",
}


def save_with_code(model: VisualChatForConditionalGeneration, processor: VisualChatProcessor, folder: Path) -> None:
    """Save model, processor and the files of this package that they import to `folder`."""
    with _code_included():
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


@contextmanager
def _code_included() -> Iterator[None]:
    """Make `save_pretrained` write the names of these classes into the configuration, and copy their files."""
    for cls, auto_class in _AUTO_CLASSES.items():
        cls.register_for_auto_class(auto_class)
    try:
        yield
    finally:
        for cls in _AUTO_CLASSES:
            cls._auto_class = None
