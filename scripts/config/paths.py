"""Types of the configuration's keys that are paths, and what such a path may not hold.

Paths are handed to programs and to Snakemake as they are, so almost every character is fine: spaces, quotes, `$`, `*`,
braces, any script. What cannot work is refused when the configuration is read:

* control characters and broken Unicode, which no line of a log or of a message can show;
* "-" at the beginning, which every program takes for an option, and "~", which only an interactive shell replaces;
* in paths of which Snakemake makes patterns, `{word}` (a wildcard) and `<word>` (a path variable).

Every key that is a path has one of these types; the tests find such keys by them.
"""

import posixpath
import re
import unicodedata
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

_BROKEN = {"Cc": "a control character", "Cs": "half of a surrogate pair", "Zl": "a line break", "Zp": "a line break"}
_WILDCARD = re.compile(r"\{\s*[.\w]+\s*(,[^{}]*(\{\d+(,\d+)?\}[^{}]*)*)?\}")
_PATH_VARIABLE = re.compile(r"<[a-z][a-z0-9_]*>")


@dataclass(frozen=True)
class PathKey:
    """Marks a key of the configuration as a path; `kind` is one of results, given, below, hub and declared."""

    kind: str


def _check(path: str) -> str:
    if not path.strip():
        raise ValueError("should be a path, but it is empty")
    for character in path:
        if problem := _BROKEN.get(unicodedata.category(character)):
            raise ValueError(f"contains {problem} ({character!a}); rename the file or folder")
    return path


def _given(path: str) -> str:
    """A file or folder that the configuration names and programs get as it is."""
    _check(path)
    if path[0] == "-":
        raise ValueError(f"begins with '-', as options do; write ./{path}")
    if path[0] == "~":
        raise ValueError("begins with '~', which is not replaced by a home folder here; write that folder's full path")
    return path


def declared(path: str) -> str:
    """A path that Snakemake gets as a pattern, unchanged.

    Raises:
        ValueError: Snakemake would read a part of it as a wildcard or as a path variable.
    """
    for pattern, meaning in ((_WILDCARD, "a wildcard"), (_PATH_VARIABLE, "a path variable")):
        if found := pattern.search(path):
            raise ValueError(f"contains {found[0]!r}, which Snakemake reads as {meaning}; rename it")
    return path


def _results(path: str) -> str:
    """The results root without "." and doubled or final slashes, so that each of its files has one path."""
    if "://" in path:
        raise ValueError("is an address; results are written to a folder")
    if ".." in path.split("/"):
        raise ValueError("contains '..', and files need one path each; write the folder's full path")
    normal = posixpath.normpath(path)
    if normal in (".", "/", "//"):
        raise ValueError("is a folder of other things; name a folder of its own, such as results")
    if normal[0] in "-~" or normal[0].isspace():
        raise ValueError(f"begins with {normal[0]!r}; write the folder's full path")
    return f"/{normal.lstrip('/')}" if normal.startswith("/") else normal


def _below(path: str) -> str:
    _check(path)
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError("should be a path below `folder`: relative and without '..'")
    return path


Results = Annotated[str, AfterValidator(_check), AfterValidator(declared), AfterValidator(_results), PathKey("results")]
"""The results root."""
Given = Annotated[str, AfterValidator(_given), PathKey("given")]
"""A folder of the user."""
FolderOrName = Annotated[str, AfterValidator(_given), PathKey("hub")]
"""A folder, a name on the Hugging Face hub, or `miniature`."""
Declared = Annotated[str, AfterValidator(_given), AfterValidator(declared), PathKey("declared")]
"""A file that is an input of a rule."""
Below = Annotated[str, AfterValidator(_below), PathKey("below")]
"""A path below the folder that another key names."""

_ARCHIVES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tar", ".zip")


def is_archive(path: str) -> bool:
    """Whether a file has the extension of an archive that may hold images."""
    return path.lower().endswith(_ARCHIVES)


def without_archive_extension(path: str) -> str:
    """The folder, ending in "/", that an archive stands for; a folder is itself."""
    extension = next((each for each in _ARCHIVES if path.lower().endswith(each)), "")
    return path[: -len(extension)] + "/" if extension else path
