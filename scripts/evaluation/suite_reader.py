"""Reads a suite in either format: dialogues of the original (JSON) or a task file (YAML)."""

from pathlib import Path

from scripts.common.errors import UserError
from scripts.evaluation.suites import Suite, read_dialogues
from scripts.evaluation.task_files import read_task


def read_suite(
    path: str | Path, image_root: str | Path | None = None, allow_outside: bool = False, allow_code: bool = False
) -> Suite:
    """Read a suite with all of its images; the file's suffix decides the format.

    Raises:
        UserError: see `read_dialogues` and `read_task`, or another suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (".yaml", ".yml"):
        return read_task(path, image_root, allow_outside, allow_code)
    if suffix == ".json":
        return read_dialogues(path, image_root, allow_outside)
    raise UserError(f"{path}: a suite is a .json file of dialogues or a .yaml task file")
