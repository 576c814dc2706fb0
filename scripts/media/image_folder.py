"""Walking a folder of images, in which there may be anything: links, pipes, devices, names that are not UTF-8.

Nothing is opened but regular files whose name does not show what they are; every other entry that looks like an image
gets a fault and costs itself alone.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from scripts.common.errors import UserError
from scripts.media.keys import is_hidden, is_image, is_image_data


def images_below(root: Path, data_path: Path) -> Iterator[tuple[str, str]]:
    """The path of every image file below `root`, relative to `data_path`, and why it cannot be used, or "".

    Raises:
        UserError: a folder cannot be read.
    """
    folders = [root]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
                continue
            fault = _fault(entry)
            if is_image(entry.name) or (not fault and is_image_data(_beginning(entry.path))):
                path = Path(entry.path).relative_to(data_path).as_posix()
                # Bytes that are not UTF-8 are written as escapes, so that tables can list the file.
                yield path.encode("utf-8", "backslashreplace").decode(), fault or _undecodable(path)


def _fault(entry: os.DirEntry[str]) -> str:
    """Why an entry of a folder is not a file that can be read, or ""; neither a pipe nor a device is opened."""
    try:
        return "" if entry.is_file() else "broken_link" if not os.path.exists(entry.path) else "not_a_file"
    except OSError:
        # Links that lead to each other.
        return "broken_link"


def _undecodable(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        return "invalid_utf8"
    return ""


def _beginning(path: str) -> bytes:
    """The first bytes of a file; b"" if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read(32)
    except OSError:
        return b""
