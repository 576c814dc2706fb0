"""Which links to folders are followed where folders of a user are walked.

People keep images on another disk and put a link to them beside their rows. A link that leads back to a folder in which
it lies would never end, so it is left out.
"""

import os
from pathlib import Path
from typing import NamedTuple

_MAX_DEPTH = 40


class Walked(NamedTuple):
    """A folder that is walked: its path, and device and number of it and of all folders above it."""

    path: str
    identities: tuple[tuple[int, int], ...]


def begin(folder: str | Path) -> Walked:
    """The folder in which a walk begins."""
    return Walked(str(folder), (_identity(str(folder)),))


def inner_folder(above: Walked, entry: os.DirEntry[str], follow: bool) -> Walked | None:
    """The folder that an entry of the folder `above` is or, with `follow`, leads to, if it is to be walked."""
    try:
        if not entry.is_dir(follow_symlinks=follow):
            return None
        identity = _identity(entry.path)
    except OSError:
        return None
    if entry.is_symlink() and (identity in above.identities or len(above.identities) > _MAX_DEPTH):
        return None
    return Walked(entry.path, (*above.identities, identity))


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
