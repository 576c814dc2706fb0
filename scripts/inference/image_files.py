"""Image files named by a person or a file: splitting a line of paths, resolving a path inside its folder, reading it.

Used by evaluation suites, whose paths come from files that may be untrusted, by the server and by the terminal chat.
"""

import shlex
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.common.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

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
    from PIL import Image, UnidentifiedImageError

    from scripts.media.opening import MAX_PIXELS, open_image

    if not data:
        raise UserError(f"image {name} is empty (zero bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(data) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UserError(f"image {name} is too large ({image.width} x {image.height} pixels)")
                image.load()
                return image.copy()
    except UnidentifiedImageError:
        raise UserError(f"{name} is not an image that can be read") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"image {name} is damaged: {error}") from None


def read_image_file(path: Path, name: str) -> bytes:
    """Read an image file; `name` is what error messages call it.

    Raises:
        UserError: it does not exist or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"image {name} does not exist (looked at {path})") from None
    except OSError as error:
        raise UserError(f"image {name} cannot be read: {error.strerror}") from None
