"""Image files that people name: splitting a line of paths, finding a file without leaving its folder, reading it.

Used by the dialogue suites, where paths come from a JSON file that somebody else may have written, and by the terminal
chat.
"""

import shlex
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.common.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

_ABOVE = 3


def split_paths(text: str) -> list[str]:
    """Split paths at spaces; quotes or a backslash keep a space inside a path, as terminals write dropped files.

    Raises:
        UserError: a quote is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError:
        raise UserError(f'a quote is not closed in {text!r}; write a path with spaces as "my image.jpg"') from None


def find_image_root(folder: Path, names: Iterable[str]) -> Path:
    """Where the paths of a suite in `folder` begin: there, or in a folder above it.

    The original's suites name their images from the project's folder, two above. A folder above counts only if all
    paths lead from it back into the suite's own.
    """
    names, own = list(names), folder.resolve()

    def leads_back(root: Path) -> bool:
        paths = [(root / name).resolve() for name in names]
        return bool(paths) and all(path.is_relative_to(own) and path.is_file() for path in paths)

    return next((root for root in own.parents[:_ABOVE] if leads_back(root)), folder)


def resolve_inside(root: Path, name: str, allow_outside: bool = False) -> Path:
    """Resolve `name` relative to `root`.

    Raises:
        UserError: the file lies outside `root`, also by way of a link, and `allow_outside` is not given.
    """
    path = (root / name).resolve()
    if not allow_outside and not path.is_relative_to(root.resolve()):
        raise UserError(f"image {name!r} lies outside of {root}")
    return path


def decode(data: bytes, name: str) -> "Image":
    """Decode an image completely; the processor of a model turns it upright and into RGB.

    Raises:
        UserError: the bytes are no readable image; the message names it and says what is wrong.
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


def read_file(path: Path, name: str) -> bytes:
    """Read a file that a person named `name`.

    Raises:
        UserError: it does not exist or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"image {name} does not exist (looked at {path})") from None
    except OSError as error:
        raise UserError(f"image {name} cannot be read: {error.strerror}") from None
