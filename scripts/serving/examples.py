"""Content of the page's introduction: example images with questions, and what the model was trained on.

Read from the results root of an exported model: the dialogues of the miniature's evaluation (whose images no training
conversation shows), the plan of the run's blend, and its scores. A model folder outside of a results root has none.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.common.errors import UserError
from scripts.inference.image_files import resolve_inside, split_paths

_MAX_EXAMPLES = 8


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
    """At most eight examples of a results root, one of every kind of dialogue first."""
    suite = None if root is None else root / "raw/miniature/dialogues/dialogues.json"
    if suite is None or not suite.is_file():
        return []
    return read_examples(suite)


def read_examples(suite: Path) -> list[Example]:
    """At most eight examples of a suite of dialogues; the name of a dialogue is its kind, "_", and a number.

    Raises:
        UserError: the file cannot be read, or a path leaves its folder.
    """
    try:
        dialogues = json.loads(suite.read_text(encoding="utf-8"))
        kinds: dict[str, int] = {}
        ranked = []
        for name, rounds in dialogues.items():
            kind = name.rpartition("_")[0]
            kinds[kind] = kinds.get(kind, 0) + 1
            images = [path for turn in rounds[:1] for path in (split_paths(turn[1]) if len(turn) > 1 else [])]
            # The questions before the next round with images are about the images of the first round.
            next_images = next((n for n, turn in enumerate(rounds) if n and len(turn) > 1), None)
            questions = tuple(turn[0] for turn in rounds[:next_images])
            if images:
                paths = tuple(resolve_inside(suite.parent, path) for path in images)
                ranked.append((kinds[kind], Example(paths, questions)))
    except (OSError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{suite} holds no dialogues: {error}") from None
    ranked.sort(key=lambda pair: pair[0])
    return [example for _, example in ranked if all(path.is_file() for path in example.images)][:_MAX_EXAMPLES]


def training_summary(root: Path | None, run: str | None) -> dict[str, Any]:
    """The datasets of a run with the conversations of one epoch, its number of epochs, and its held-out accuracies.

    What cannot be read is left out.
    """
    if root is None or run is None:
        return {}
    summary: dict[str, Any] = {}
    finished = _json(root / "train" / run / "finished.json")
    settings = _json(root / "train" / run / str(finished.get("state", "")) / "settings.json")
    plan = _json(root / "plan" / str(settings.get("blend", "")) / "epoch-000.json")
    if plan:
        counts = {name: entry.get("realised", 0) for name, entry in plan.get("datasets", {}).items()}
        summary["datasets"] = {name: count for name, count in counts.items() if count}
        summary |= {"conversations": plan.get("conversations"), "epochs": finished.get("epochs")}
    for name, entry in _json(root / "evaluate" / run / "metrics.json").get("checkpoints", {}).items():
        groups = entry.get("heldout", {}).get("groups", {})
        summary.setdefault("accuracy", {})[name] = {
            group: [row["accuracy"], row.get("chance")] for group, row in groups.items() if row.get("n")
        }
    summary["miniature"] = (root / "raw/miniature").is_dir()
    return summary


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, empty if the file is missing or something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
