"""Walking a folder of images, in which there may be anything: links, pipes, devices, names that are not UTF-8.

Nothing is opened but regular files whose name does not show what they are; every other entry that looks like an image
gets a fault and costs itself alone.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from scripts.common.errors import UserError, is_results_root
from scripts.common.linked_folders import begin, inner_folder
from scripts.media.keys import is_hidden, is_image, is_image_data


def images_below(
    root: Path, data_path: Path, skip: Collection[str] = (), follow: bool = False
) -> Iterator[tuple[str, str]]:
    """The path of every image file below `root`, relative to `data_path`, and why it cannot be used, or "".

    Hidden files and folders, and folders with results of this project, are left out.

    Args:
        root: the folder.
        data_path: folder to which paths are relative.
        skip: folders, relative to `data_path`, that are left out.
        follow: follow links to folders, except those that lead back to a folder in which they lie.

    Raises:
        UserError: a folder cannot be read.
    """
    folders = [begin(root)]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder.path))
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if inner := inner_folder(folder, entry, follow):
                if not is_results_root(inner.path) and os.path.relpath(inner.path, data_path) not in skip:
                    folders.append(inner)
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
