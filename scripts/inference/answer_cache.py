"""The outputs of a model, batch by batch, on the disk: an evaluation that was killed continues where it stopped.

The file has one line per batch: `key`, a hash of the request (the prompts and how they are answered), `outputs`, and
`sha256`, a hash of both. A line that does not have its hash is left out, and its batch is computed again. The first
line identifies the model, code, libraries and device; a file with another identity is discarded. Batches are
formed over all prompts of a suite, so an evaluation that continues computes exactly the missing batches and gives the
numbers of one that was never interrupted. Changing metrics or references, or adding a suite, recomputes no answer.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.common.files import atomic, canonical_json, text_sha256


class AnswerCache:
    """The cached outputs of one checkpoint."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        """Open the file at `path` or create it.

        Args:
            path: a JSONL file; its folder is created.
            identity: what outputs depend on besides the request (JSON).
        """
        self.path = path
        self._outputs: dict[str, list] = {}
        header = canonical_json({"v": 3, "identity": text_sha256(canonical_json(identity))})
        complete = _complete_lines(path)
        kept = [line for line in complete[1:] if _entry(line)] if complete and complete[0] == header else []
        # Rewritten, because a line that was cut off by a kill must not run into the next one.
        with atomic(path, "w") as file:
            file.write("".join(f"{line}\n" for line in [header, *kept]))
        self._outputs |= dict(filter(None, map(_entry, kept)))
        self._used: set[str] = set()

    def get_or_compute(self, request: Any, compute: Callable[[str], list]) -> list:
        """Return the outputs of `request` (JSON), from the cache or by calling `compute` with its key."""
        key = text_sha256(canonical_json(request))
        self._used.add(key)
        if key not in self._outputs:
            outputs = compute(key)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_line(key, outputs))
                file.flush()
                os.fsync(file.fileno())
            # As JSON returns them (tuples become lists), so that a first and a second evaluation get the same.
            self._outputs[key] = json.loads(json.dumps(outputs))
        return self._outputs[key]

    def prune(self) -> None:
        """Remove outputs that this evaluation did not request, when it is complete: earlier settings and suites."""
        header = self.path.read_text(encoding="utf-8").split("\n", 1)[0]
        with atomic(self.path, "w") as file:
            file.write(header + "\n")
            for key in sorted(self._used):
                file.write(_line(key, self._outputs[key]))


def _line(key: str, outputs: list) -> str:
    value = {"key": key, "outputs": outputs}
    return json.dumps(value | {"sha256": text_sha256(canonical_json(value))}, ensure_ascii=False) + "\n"


def _entry(line: str) -> tuple[str, list] | None:
    """Key and outputs of a line, or None if it is damaged."""
    try:
        value = json.loads(line)
        sha256 = value.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        return None
    return (value["key"], value["outputs"]) if sha256 == text_sha256(canonical_json(value)) else None


def _complete_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().decode("utf-8", "replace").split("\n")
    return lines
