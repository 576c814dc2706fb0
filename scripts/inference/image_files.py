"""Image files named by a person or a file: splitting a line of paths, resolving a path inside its folder, reading it.

Used by evaluation suites, whose paths come from files that may be untrusted, by the server and by the terminal chat.
"""

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.common.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

    from scripts.media.opening import UnreadableImageError

_MAX_LEVELS_UP = 3


def split_paths(text: str) -> list[str]:
    """Split a line into paths at spaces; quotes or a backslash keep a space inside a path, as in a shell.

    Raises:
        UserError: a quote is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError:
        raise UserError(f'a quote is not closed in {text!r}; write a path with spaces as "my image.jpg"') from None


def find_image_root(folder: Path, names: Iterable[str]) -> Path:
    """The folder that the image paths of a suite in `folder` are relative to: `folder` or one above it.

    The suites of the original name their images relative to the project's folder, two levels up. A folder above is
    taken only if all paths lead from it to files inside `folder`.
    """
    names, base = list(names), folder.resolve()

    def leads_back(root: Path) -> bool:
        paths = [(root / name).resolve() for name in names]
        return bool(paths) and all(path.is_relative_to(base) and path.is_file() for path in paths)

    return next((root for root in base.parents[:_MAX_LEVELS_UP] if leads_back(root)), folder)


def resolve_inside(root: Path, name: str, allow_outside: bool = False) -> Path:
    """Resolve `name` relative to `root`.

    Raises:
        UserError: the file lies outside `root` (symbolic links are followed), and `allow_outside` is false.
    """
    path = (root / name).resolve()
    if not allow_outside and not path.is_relative_to(root.resolve()):
        raise UserError(f"image {name!r} lies outside of {root}")
    return path


def decode_image(data: bytes, name: str) -> "Image":
    """Decode an image completely. Orientation and mode are left as they are; a model's processor converts them.

    Raises:
        UserError: the bytes are not a readable image; the message names it and the reason.
    """
    from scripts.media.opening import UnreadableImageError
    from scripts.media.opening import decode_image as decode

    try:
        return decode(data)
    except UnreadableImageError as error:
        raise unreadable(error, name) from None


def unreadable(error: "UnreadableImageError", name: str) -> UserError:
    """The message for an image that cannot be read; it names the image and the reason."""
    messages = {
        "zero_bytes": f"image {name} is empty (zero bytes), not an image",
        "too_large": f"image {name} is too large ({error.detail})",
        "not_an_image": f"{name} is not an image that can be read",
        "not_a_file": f"image {name} is not a file, but a folder, pipe, socket or device",
        "unsupported_format": f"image {name} has a format that is not supported ({error.detail})",
    }
    return UserError(messages.get(error.reason, f"image {name} is damaged: {error.detail}"))


def read_image_file(path: Path, name: str) -> bytes:
    """Read an image file; `name` is what error messages call it.

    Raises:
        UserError: it does not exist, cannot be read, is not a file or too large.
    """
    from scripts.media.opening import UnreadableImageError, read_image

    try:
        return read_image(path)
    except UnreadableImageError as error:
        raise unreadable(error, name) from None
    except FileNotFoundError:
        raise UserError(f"image {name} does not exist (looked at {path})") from None
    except OSError as error:
        raise UserError(f"image {name} cannot be read: {error.strerror}") from None
