"""What a model was already asked: batches of outputs on the disk, so that a killed evaluation goes on where it stopped.

One line per batch: `key`, a hash of everything that was asked and how, and `outputs`. The first line names the model,
code, libraries and device; a journal of others is thrown away. Batches are cut over all prompts of a suite, so an
evaluation that goes on computes the very batches that were missing, and its numbers are those of one that was never
stopped. Nor is anything asked twice when only metrics or references change, or a suite is added.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.common.files import atomic, canonical_json, text_sha256


class AnswerCache:
    """The journal of one checkpoint."""

    def __init__(self, path: Path, identity: dict[str, Any]):
        """Open the journal at `path`, or begin one. `identity` is what outputs depend on besides what is asked."""
        self.path, self._known = path, {}
        header = canonical_json({"v": 1, "identity": text_sha256(canonical_json(identity))})
        whole = _whole_lines(path)
        kept = whole if whole and whole[0] == header else [header]
        # Written anew: a line that a kill cut off must not run into the next one.
        with atomic(path, "w") as file:
            file.write("".join(f"{line}\n" for line in kept))
        for line in kept[1:]:
            entry = json.loads(line)
            self._known[entry["key"]] = entry["outputs"]
        self._used: set[str] = set()

    def get_or_compute(self, asked: Any, answer: Callable[[str], list]) -> list:
        """The outputs for `asked` (JSON): those noted earlier, or those of `answer`, called with the key and noted."""
        key = text_sha256(canonical_json(asked))
        self._used.add(key)
        if key not in self._known:
            outputs = answer(key)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "outputs": outputs}, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            # As JSON gives it back, so that a first and a second evaluation see the same.
            self._known[key] = json.loads(json.dumps(outputs))
        return self._known[key]

    def prune(self) -> None:
        """Forget what nobody asked for this time: earlier settings and suites. Called when an evaluation is whole."""
        header = self.path.read_text(encoding="utf-8").split("\n", 1)[0]
        with atomic(self.path, "w") as file:
            file.write(header + "\n")
            for key in sorted(self._used):
                file.write(json.dumps({"key": key, "outputs": self._known[key]}, ensure_ascii=False) + "\n")


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    *lines, _ = path.read_bytes().decode("utf-8", "replace").split("\n")
    return lines
