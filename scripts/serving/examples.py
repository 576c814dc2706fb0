"""What the page shows a newcomer: pictures to begin with, questions that fit them, and what the model was trained on.

Read from the results root that a model was exported below: the dialogues that the miniature world drew for its
evaluation (which no training conversation shows), the plan of the run's blend, and its scores. Where a folder stands
alone there is simply less to tell.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.common.errors import UserError
from scripts.inference.image_files import resolve_inside, split_paths

_MOST = 8


@dataclass(frozen=True)
class Example:
    """Images to show (file paths) and questions about them, in order."""

    images: tuple[Path, ...]
    questions: tuple[str, ...]


def results_root(folder: Path) -> Path | None:
    """The results root of an exported model: exported/RUN/CHECKPOINT lies below it."""
    folder = folder.resolve()
    root = folder.parents[2] if len(folder.parents) > 2 else folder
    return root if folder.parents[1].name == "exported" else None


def find_examples(root: Path | None) -> list[Example]:
    """Examples of a results root: one dialogue of every kind first (their names end in a number), few in all."""
    suite = None if root is None else root / "raw/miniature/dialogues/dialogues.json"
    if suite is None or not suite.is_file():
        return []
    return read_examples(suite)


def read_examples(suite: Path) -> list[Example]:
    """Examples of a suite of dialogues in the original's form.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        dialogues = json.loads(suite.read_text(encoding="utf-8"))
        kinds: dict[str, int] = {}
        ranked = []
        for name, rounds in dialogues.items():
            kind = name.rpartition("_")[0]
            kinds[kind] = kinds.get(kind, 0) + 1
            images = [path for turn in rounds[:1] for path in (split_paths(turn[1]) if len(turn) > 1 else [])]
            # Later rounds may bring images of their own; up to there the questions are about those of the first.
            questions = [
                turn[0] for turn in rounds[: next((n for n, t in enumerate(rounds) if n and len(t) > 1), None)]
            ]
            if images:
                found = tuple(resolve_inside(suite.parent, path) for path in images)
                ranked.append((kinds[kind], Example(found, tuple(questions))))
    except (OSError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{suite} holds no dialogues: {error}") from None
    ranked.sort(key=lambda pair: pair[0])
    return [example for _, example in ranked if all(path.is_file() for path in example.images)][:_MOST]


def training_summary(root: Path | None, run: str | None) -> dict[str, Any]:
    """What a run was trained on and how well it answers: datasets with counts, and shares of right answers."""
    if root is None or run is None:
        return {}
    told: dict[str, Any] = {}
    finished = _json(root / "train" / run / "finished.json")
    settings = _json(root / "train" / run / str(finished.get("state", "")) / "settings.json")
    plan = _json(root / "plan" / str(settings.get("blend", "")) / "epoch-000.json")
    if plan:
        counts = {name: entry.get("realised", 0) for name, entry in plan.get("datasets", {}).items()}
        told["datasets"] = {name: count for name, count in counts.items() if count}
        told |= {"conversations": plan.get("conversations"), "epochs": finished.get("epochs")}
    for name, entry in _json(root / "evaluate" / run / "metrics.json").get("checkpoints", {}).items():
        groups = entry.get("heldout", {}).get("groups", {})
        told.setdefault("right", {})[name] = {
            group: [row["accuracy"], row.get("chance")] for group, row in groups.items() if row.get("n")
        }
    told["miniature"] = (root / "raw/miniature").is_dir()
    return told


def _json(path: Path) -> dict[str, Any]:
    """A JSON object that is nice to have."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
