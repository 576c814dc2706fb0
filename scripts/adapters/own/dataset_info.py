"""LLaMA-Factory's `dataset_info.json`: an entry names the files of a dataset, and what its columns mean.

Keys and their defaults are those of the file `data/README.md` of LLaMA-Factory. An entry with a repository instead of a
file, preference data, and columns of videos, audios and the like are refused by name.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scripts.adapters.raw import Note
from scripts.common.errors import UserError
from scripts.common.files import read_json
from scripts.config.custom import ColumnsConfig

FILE = "dataset_info.json"

_REMOTE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")
_ORIGINS = (*_REMOTE, "file_name")
_ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
_KNOWN = frozenset({*_ORIGINS, "file_sha1", "formatting", "ranking", "subset", "split", "folder", "num_samples"})
_COLUMNS = {
    "prompt": "question",
    "query": "context",
    "response": "answer",
    "history": "history",
    "messages": "messages",
    "system": "system",
    "images": "images",
}
"""The settings of `columns` by the keys of LLaMA-Factory."""
_USUAL = (("system", "system"), ("history", "history"), ("images", "images"))
_PREFERENCES = ("chosen", "rejected", "kto_tag")
_MEDIA = ("videos", "audios")
_IGNORED_TAGS = ("observation_tag", "function_tag")


class Described(NamedTuple):
    """What an entry says.

    Attributes:
        name: of the entry.
        file: the file or folder with its rows, below the folder.
        columns: what its columns mean.
        notes: about keys that change nothing here.
    """

    name: str
    file: str
    columns: ColumnsConfig
    notes: list[Note]


def is_dataset_info(folder: Path) -> bool:
    """Whether `folder` has LLaMA-Factory's `dataset_info.json`; the `datasets` library has a file of that name too."""
    if not (folder / FILE).is_file():
        return False
    value = read_json(folder / FILE)
    return isinstance(value, dict) and any(
        isinstance(entry, dict) and any(key in entry for key in _ORIGINS) for entry in value.values()
    )


def described(folder: Path, entry: str | None, dataset: str) -> Described:
    """What an entry of the `dataset_info.json` in `folder` says.

    Args:
        folder: of the dataset.
        entry: its name; None: the entry with the name of the custom dataset, or the only one with a local file.
        dataset: name of the custom dataset.

    Raises:
        UserError: there is no such entry, or it says what cannot be done here.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"custom.{dataset}.entry: there is no {FILE} in {folder}")
    entries = read_json(path)
    if not isinstance(entries, dict):
        raise UserError(f"{path} should be an object of datasets by name, it is of type {type(entries).__name__}")
    name = _chosen(entries, entry, dataset, path)
    value, where = entries[name], f"{path}, entry {name!r}"
    if not isinstance(value, dict):
        raise UserError(f"{where} should be an object, it is of type {type(value).__name__}")
    _refuse(value, where)
    file = _file(value["file_name"], folder, where)
    columns, notes = _columns(value, name, where)
    return Described(name, file, columns, notes)


def _chosen(entries: Mapping[str, Any], entry: str | None, dataset: str, path: Path) -> str:
    if entry is not None:
        if entry not in entries:
            raise UserError(f"custom.{dataset}.entry: {path} has no entry {entry!r}; it has {_listed(entries)}")
        return entry
    if dataset in entries:
        return dataset
    local = [name for name, value in entries.items() if isinstance(value, dict) and "file_name" in value]
    if len(local) != 1:
        raise UserError(
            f"{path} has {len(local)} entries with a file ({_listed(local)}), and none is named {dataset!r}: choose "
            f"one with `custom.{dataset}.entry`, or name the files with `files`"
        )
    return local[0]


def _listed(names: Any) -> str:
    shown = [str(name) for name in names][:20]
    return ", ".join(shown) or "none"


def _refuse(value: Mapping[str, Any], where: str) -> None:
    """Raise UserError for what cannot be done here."""
    remote = next((key for key in _REMOTE if value.get(key)), None)
    if remote is not None:
        raise UserError(
            f"{where} names {value[remote]!r} as its {remote}, which is not fetched: download its files into the "
            "folder and name them with `files`"
        )
    if not isinstance(value.get("file_name"), str) or not value["file_name"]:
        raise UserError(f"{where} has no `file_name`")
    columns = _section(value, "columns", where)
    preferences = [key for key in _PREFERENCES if columns.get(key)]
    if value.get("ranking") or preferences:
        reason = "ranking" if value.get("ranking") else f"columns.{preferences[0]}"
        raise UserError(
            f"{where} is preference data ({reason}), and training here needs one answer: to train on one of the "
            "answers, name the file with `files` and its column with `columns`"
        )
    formatting = value.get("formatting", "alpaca")
    if formatting not in ("alpaca", "sharegpt", "openai"):
        raise UserError(f"{where} has the formatting {formatting!r:.40}; known are alpaca, sharegpt and openai")
    unknown = sorted(value.keys() - _KNOWN - {"columns", "tags"})
    if unknown:
        raise UserError(f"{where} has the key {unknown[0]!r:.40}, which is not known here; remove it")
    if value.get("num_samples"):
        raise UserError(
            f"{where} takes num_samples {value['num_samples']!r} of its rows: remove the key, and take a part of the "
            "rows with `samples` in the blend"
        )


def _section(value: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    section = value.get(key) or {}
    if not isinstance(section, dict) or not all(isinstance(each, str | None) for each in section.values()):
        raise UserError(f"{where}: `{key}` should be an object of texts")
    return section


def _file(name: str, folder: Path, where: str) -> str:
    """The file or folder, below `folder`."""
    below = Path(name)
    if below.is_absolute():
        try:
            below = below.resolve().relative_to(folder.resolve())
        except ValueError:
            raise UserError(f"{where} names {name}, which is not below {folder}: move it there") from None
    if ".." in below.parts:
        raise UserError(f"{where} names {name}, which leads out of {folder}: move the file there")
    return below.as_posix()


def _columns(value: Mapping[str, Any], entry: str, where: str) -> tuple[ColumnsConfig, list[Note]]:
    """What the columns mean, as the setting `columns`, and notes about keys that change nothing.

    Notes stand in the report of the records, which names files below the dataset's folder.
    """
    source = f"{FILE}, entry {entry!r:.60}"
    columns, tags = _section(value, "columns", where), _section(value, "tags", where)
    unknown = sorted(columns.keys() - {*_COLUMNS, *_PREFERENCES, *_MEDIA, "tools"})
    if unknown:
        raise UserError(f"{where} has the column {unknown[0]!r:.40}, which is not known here")
    notes = [
        Note(f"ignored:{key}", f"{source}: the column {columns[key]!r:.40} of {key}; rows that have some are dropped")
        for key in _MEDIA
        if columns.get(key)
    ]
    if columns.get("tools"):
        notes.append(Note("ignored:tools", f"{source}: the column {columns['tools']!r:.40} of descriptions of tools"))
    if value.get("split") not in (None, "train"):
        notes.append(Note("ignored:split", f"{source}: the split {value['split']!r:.40}; all rows are read"))
    # An entry often names columns that no row has a value in; those with their usual names are found without it.
    settings = {
        _COLUMNS[key]: name for key, name in columns.items() if key in _COLUMNS and name and (key, name) not in _USUAL
    }
    if value.get("formatting", "alpaca") == "alpaca":
        settings.pop("messages", None)
        usual = {_COLUMNS[key]: name for key, name in _ALPACA.items()}
        if {**usual, **settings}.items() >= usual.items():
            settings = {key: name for key, name in settings.items() if key not in usual}
        else:
            settings = {**{key: name for key, name in usual.items() if key != "context"}, **settings}
        return ColumnsConfig.model_validate(settings), notes
    openai = value.get("formatting") == "openai"
    default = ("role", "content", "user", "assistant") if openai else ("from", "value", "human", "gpt")
    role, content, user, assistant = (
        tags.get(tag) or usual
        for tag, usual in zip(("role_tag", "content_tag", "user_tag", "assistant_tag"), default, strict=True)
    )
    settings.setdefault("messages", "messages" if openai else "conversations")
    roles = {user: "user", assistant: "assistant", tags.get("system_tag") or "system": "system"}
    return ColumnsConfig.model_validate(settings | {"role": role, "content": content, "roles": roles}), notes
