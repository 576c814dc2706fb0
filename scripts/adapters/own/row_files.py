"""Which files hold the rows of a custom dataset: those that the configuration names, or all that its folder holds.

A name is a path, a pattern with `*` and `**`, or a folder, which stands for all files of rows in it. A folder that the
`datasets` library has saved stands for the files that its `state.json` lists, in that order; their rows get the name of
their split as the member `__split__`.
"""

import os
import posixpath
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from scripts.adapters.own.archive_rows import is_hidden_below, zip_members
from scripts.adapters.own.byte_streams import COMPRESSIONS, DAMAGED, beginning, unpacked, utf8
from scripts.adapters.own.json_rows import NoRowsError, holds_rows
from scripts.adapters.own.row_readers import TABLE_ENDINGS, TEXT_ENDINGS, ZIP_ENDING, is_member, kind_of, read_rows
from scripts.adapters.own.splits import splits_by_name
from scripts.common.errors import UserError, is_results_root
from scripts.common.files import read_json
from scripts.config.registry import path_matches

STATE, SPLITS, INFO = "state.json", "dataset_dict.json", "dataset_info.json"
"""Files of a folder that the `datasets` library has saved: of a dataset, and of several splits."""
OTHER_FILES = frozenset(
    {STATE, SPLITS, INFO, "dataset_infos.json", "config.json", "configuration.json", "package.json"}
    | {"package-lock.json", "tsconfig.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    | {"preprocessor_config.json", "processor_config.json", "special_tokens_map.json", "added_tokens.json"}
)
"""Well-known files that are not of rows, whatever they hold."""

_OTHER_FOLDERS = frozenset({"node_modules", "__pycache__", "site-packages"})
_HEAD = 1 << 20
_LOOKED_AT = 1000
_SHOWN = 8
_EMPTY = "has no rows"


@dataclass
class RowFiles:
    """Files of rows.

    Attributes:
        splits: name of the split by path below the folder, in the order in which the files are read; "" for none.
        left_out: why other files with the ending of a file of rows are not among them, by path.
    """

    splits: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def find_row_files(folder: Path, names: Sequence[str], not_rows: Collection[str] = ()) -> RowFiles:
    """The files of rows below `folder` that `names` stand for.

    Args:
        folder: of the dataset.
        names: paths, patterns or folders below it; `./` is the folder itself.
        not_rows: archives that hold the images, which are not looked into.

    Raises:
        UserError: a name stands for no file, a file that is named holds no rows, a folder has the same rows in two
            forms, or a file's name is not UTF-8.
    """
    if not folder.is_dir():
        raise UserError(f"the folder {folder} does not exist: correct `folder`")
    found = RowFiles()
    for name in names:
        path = folder / name
        if path.is_dir():
            _add_folder(folder, posixpath.normpath(name), found, not_rows)
        elif "*" in name:
            matching = [each for each in _walk(folder, ".", found) if path_matches(each, name)]
            if not matching:
                raise UserError(f"no file in {folder} matches {name!r}{_what_is_there(folder)}")
            empty = {each for each in matching if _is_empty(folder / each)}
            found.left_out |= dict.fromkeys(sorted(empty), _EMPTY)
            found.splits |= dict.fromkeys((each for each in matching if each not in empty), "")
        elif _is_regular(path):
            found.splits[posixpath.normpath(name)] = ""
        else:
            raise UserError(f"{name} is not there (looked at {path}){_what_is_there(folder)}")
    if not found.splits:
        raise UserError(
            f"{folder} has no files of rows; known are {', '.join((*TEXT_ENDINGS, *TABLE_ENDINGS, '.tar', ZIP_ENDING))}"
            + "".join(f"; {path} {reason}" for path, reason in islice(found.left_out.items(), _SHOWN))
            + "".join(f"; {path} is one of `images`: if it holds rows, too, add it to `files`" for path in not_rows)
        )
    for file in found.splits:
        _encodable(file)
    return found


def _what_is_there(folder: Path) -> str:
    there = list(islice(_walk(folder, ".", RowFiles()), _SHOWN))
    return f"; files of rows that are there: {', '.join(there)}" if there else ""


def _add_folder(folder: Path, inner: str, found: RowFiles, not_rows: Collection[str]) -> None:
    """Add all files of rows of the folder `inner` below `folder`."""
    saved = _saved_files(folder, inner)
    if saved:
        found.splits |= saved
        return
    paths = []
    for path in _walk(folder, inner, found):
        if path in not_rows:
            continue
        if reason := _no_rows(folder / path):
            found.left_out[path] = reason
        else:
            paths.append(path)
    _refuse_two_forms(folder, paths)
    found.splits |= splits_by_name(paths)


def _saved_files(folder: Path, inner: str) -> dict[str, str]:
    """The files, and their splits, of a folder that the `datasets` library has saved; none if it is not one."""
    path = folder / inner
    if (path / SPLITS).is_file():
        index = read_json(path / SPLITS)
        names = index.get("splits") if isinstance(index, dict) else None
        if not isinstance(names, list) or not names:
            raise UserError(f"{path / SPLITS} names no splits: save the dataset again")
        parts = {str(name): _data_files(folder, _inside(inner, name, path / SPLITS), str(name)) for name in names}
        return {file: split for files in parts.values() for file, split in files.items()}
    if (path / STATE).is_file() and (path / INFO).is_file():
        return _data_files(folder, inner, None)
    return {}


def _data_files(folder: Path, inner: str, split: str | None) -> dict[str, str]:
    path = folder / inner / STATE
    state: Any = read_json(path)
    if not isinstance(state, dict) or not isinstance(state.get("_data_files"), list):
        raise UserError(f"{path} lists no files of data: save the dataset again with `save_to_disk`")
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise UserError(f"{path} selects rows by an index: save the dataset again with a newer version of `datasets`")
    name = split if split is not None else state.get("_split") or ""
    names = [each.get("filename") if isinstance(each, dict) else None for each in state["_data_files"]]
    files = [_inside(inner, name, path) for name in names]
    missing = [file for file in files if not _is_regular(folder / file)]
    if missing:
        raise UserError(f"{path} lists {missing[0]}, which is not there: save or copy the dataset again")
    return dict.fromkeys(files, str(name))


def _inside(inner: str, name: Any, listed_in: Path) -> str:
    """The path below the dataset's folder of a file or folder `name` in the folder `inner`.

    Raises:
        UserError: it is no name, or leads out of `inner`.
    """
    if not isinstance(name, str) or not name or name.startswith("/") or ".." in name.split("/"):
        raise UserError(f"{listed_in} lists {name!r:.80}, which is no path below its folder: save the dataset again")
    return posixpath.normpath(posixpath.join(inner, name))


def _walk(folder: Path, inner: str, found: RowFiles) -> Iterator[str]:
    """Paths of all files below the folder `inner` that have the ending of files of rows, sorted in every folder.

    Hidden files, links to folders and folders with results of this project are left out; what is no file that can be
    read is added to those that are left out.

    Raises:
        UserError: a folder cannot be read.
    """
    try:
        entries = sorted(os.scandir(folder / inner), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder / inner} cannot be read: {error.strerror}") from None
    for entry in entries:
        path = entry.name if inner == "." else f"{inner}/{entry.name}"
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in _OTHER_FOLDERS and not is_results_root(entry.path):
                yield from _walk(folder, path, found)
        elif kind_of(entry.name) and entry.name not in OTHER_FILES:
            if _is_regular(Path(entry.path)):
                yield path
            else:
                found.left_out[_shown(path)] = "is a link that leads nowhere, or no file"


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _encodable(path: str) -> None:
    if _shown(path) != path:
        raise UserError(f"the file name {path!r} is not valid UTF-8: rename the file")


def _shown(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def _no_rows(path: Path) -> str:
    """Why a file, which was not named, is taken for one without rows; "" if it is not."""
    kind = kind_of(path.name)
    if kind == ".json":
        head, whole = _text_beginning(path)
        return "" if holds_rows(head, whole, path.name) else "is JSON that is not one list of rows"
    if kind == ZIP_ENDING:
        return "" if _zip_has_rows(path) else "is an archive without rows"
    if kind == ".tar":
        return "" if _tar_has_rows(path) else "is an archive without rows"
    return _EMPTY if _is_empty(path) else ""


def _is_empty(path: Path) -> bool:
    """Whether a file is whole, but has no row; one that cannot be read is reported later."""
    try:
        next(read_rows(path, path.name, []), None)
    except NoRowsError:
        return True
    except UserError:
        return False
    return False


def _text_beginning(path: Path) -> tuple[bytes, bool]:
    """The first bytes of a text, and whether they are all; damaged ones are b"", and reported when they are read."""
    try:
        with open(path, "rb") as file:
            head, _ = beginning(utf8(unpacked(file)), _HEAD)
            return head, len(head) < _HEAD
    except (OSError, *DAMAGED):
        return b"[{", False


def _zip_has_rows(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            for member in zip_members(archive, is_member):
                if kind_of(member.filename) != ".json":
                    return True
                with archive.open(member) as content:
                    head, _ = beginning(utf8(content), _HEAD)
                if holds_rows(head, len(head) < _HEAD, member.filename):
                    return True
            return False
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError):
        return True


def _tar_has_rows(path: Path) -> bool:
    """Whether there are texts or files of rows among the first files of a tar; a damaged one is reported later."""
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=unpacked(file), mode="r|") as archive:
            names = [member.name for member in islice(archive, _LOOKED_AT) if member.isreg()]
    except (OSError, tarfile.TarError, *DAMAGED):
        return True
    return any(
        is_member(name) or name.endswith((".txt", ".text", ".caption")) for name in names if not is_hidden_below(name)
    )


def _refuse_two_forms(folder: Path, paths: Iterable[str]) -> None:
    """Raise UserError if two files differ only in their endings: they are likely to hold the same rows."""
    forms: dict[str, list[str]] = {}
    for path in paths:
        forms.setdefault(_stem(path), []).append(path)
    twice = [each for each in forms.values() if len(each) > 1]
    if twice:
        raise UserError(
            f"{folder} may hold the same rows more than once: {', '.join(twice[0][:_SHOWN])}. Name the files to read "
            "with `files:`"
        )


def _stem(path: str) -> str:
    """A path without the endings of files of rows and of compression."""
    while True:
        plain, ending = posixpath.splitext(path)
        if ending.lower() not in (*COMPRESSIONS, *TEXT_ENDINGS, *TABLE_ENDINGS, ".tar", ".tgz", ZIP_ENDING):
            return path
        path = plain
