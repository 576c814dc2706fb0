"""The documents of a task: rows of local files, one dictionary each.

`dataset_path` is as in HF `datasets` and lmms-eval: `json`, `csv`, `parquet` or `imagefolder` with `dataset_kwargs:
{data_files: ..., data_dir: ...}`, `dialogues` for the JSON format of the original, or the path of a file or a folder.
Paths are relative to the task file. Nothing is downloaded: a dataset on the hub must be downloaded first and named by
its folder.

    json, jsonl   a list of objects, one object per line, or a list under `field`
    csv, tsv      a header and rows; numbers become numbers, empty cells stay empty strings
    parquet       columns; images as {"bytes", "path"}, as the hub stores them
    imagefolder   metadata.jsonl or metadata.csv with a column `file_name`; without one, folders are classes: `label` is
                  the index of a folder in the order of their names
    dialogues     {"test name": [["question", "image.jpg ..."], ...]}: `test_name`, `messages`, `answers`
"""

import glob
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.common.errors import UserError
from scripts.common.files import read_json, read_json_lines, read_table
from scripts.evaluation.suites import ANSWERS_FILE, image_names
from scripts.inference.image_files import find_image_root, split_paths
from scripts.media.keys import is_image

BUILDERS = {"json": (".json", ".jsonl"), "csv": (".csv", ".tsv"), "parquet": (".parquet",)}
_SUFFIXES = [suffix for suffixes in BUILDERS.values() for suffix in suffixes]
IMAGEFOLDER, DIALOGUES = "imagefolder", "dialogues"
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
Documents = list[dict[str, Any]]


def read_documents(
    dataset_path: str, options: Mapping[str, Any], split: str, base: Path, where: str
) -> tuple[Documents, Path, list[Path]]:
    """Read the documents of one split.

    Args:
        dataset_path: see above.
        options: `dataset_kwargs`: data_files, data_dir, field.
        split: such as "test".
        base: folder that paths are relative to.
        where: the task, for error messages.

    Returns:
        The documents, the folder that image paths in them are relative to, and the files that were read.

    Raises:
        UserError: no files, or files of another format; the message names what was looked for.
    """
    folder = base / options["data_dir"] if options.get("data_dir") else None
    files = data_files(dataset_path, options, split, base, where)
    if dataset_path == IMAGEFOLDER or (not options and _is_image_folder(base / dataset_path)):
        return _image_folder(folder or base / dataset_path, files, where), folder or base / dataset_path, files
    documents = []
    for file in files:
        if dataset_path == DIALOGUES:
            documents += _dialogues(file)
        else:
            documents += _rows(file, options.get("field"), where)
    if not documents:
        raise UserError(f"{where}: there are no documents in {', '.join(map(str, files))}")
    if not all(isinstance(each, dict) for each in documents):
        raise UserError(f"{where}: every document in {files[0]} must be an object with named fields")
    if dataset_path == DIALOGUES and not folder:
        folder = find_image_root(files[0].parent, [name for file in files for name in image_names(read_json(file))])
    return documents, folder or files[0].parent, files


def data_files(dataset_path: str, options: Mapping[str, Any], split: str, base: Path, where: str) -> list[Path]:
    """The paths of the files that hold the documents, see `read_documents`; they are not read.

    Raises:
        UserError: there are none.
    """
    unknown = sorted(set(options) - {"data_files", "data_dir", "field"})
    if unknown:
        raise UserError(f"{where}: dataset_kwargs has {unknown[0]!r}; its keys are data_files, data_dir and field")
    if dataset_path == IMAGEFOLDER or (not options and _is_image_folder(base / dataset_path)):
        folder = base / (options.get("data_dir") or dataset_path)
        return [folder / name for name in _METADATA if (folder / name).is_file()][:1]
    if dataset_path in BUILDERS or dataset_path == DIALOGUES:
        named = options.get("data_files")
        if isinstance(named, Mapping):
            if split not in named:
                raise UserError(f"{where}: data_files has {', '.join(map(str, named))}, but not the split {split!r}")
            named = named[split]
        patterns = [named] if isinstance(named, str) else named
        if not patterns or not all(isinstance(each, str) for each in patterns):
            raise UserError(
                f"{where}: dataset_path {dataset_path} needs dataset_kwargs with data_files: {{{split}: FILE}}"
            )
        files = [file for each in patterns for file in _matching(base, each)]
        searched = ", ".join(patterns)
    else:
        path, name = base / dataset_path, glob.escape(split)
        files = [path] if path.is_file() else []
        for suffix in _SUFFIXES:
            if not files and path.is_dir():
                files = sorted([*path.glob(f"{name}{suffix}"), *path.glob(f"**/{name}-*{suffix}")])
        searched = f"{path}, {path}/{split}.json and similar names"
    missing = next((file for file in files if not file.is_file()), None)
    if not files or missing:
        raise UserError(
            f"{where}: there are no documents at {missing or searched}. Datasets are read from local files; "
            "one on the hub must be downloaded first and named by its folder"
        )
    return files


def _matching(base: Path, pattern: str) -> list[Path]:
    """The files that match a pattern; a path without wildcards is returned whether or not it exists."""
    if (base / pattern).is_file() or not any(mark in pattern for mark in "*?["):
        return [base / pattern]
    return sorted(Path(base.anchor or ".").glob(pattern.lstrip("/")) if pattern.startswith("/") else base.glob(pattern))


def _rows(file: Path, field: str | None, where: str) -> Documents:
    suffix = file.suffix.lower()
    if suffix == ".jsonl":
        return _json_lines(file)
    if suffix == ".json":
        value = _json_or_lines(file)
        value = value.get(field) if field and isinstance(value, dict) else value
        if not isinstance(value, list):
            raise UserError(f"{where}: {file} must hold a JSON list of objects; `field` names one inside an object")
        return value
    if suffix in (".csv", ".tsv"):
        import pandas as pd

        # A cell "None" or "NA" is an answer and not a missing value.
        table = pd.read_csv(file, sep="\t" if suffix == ".tsv" else ",", keep_default_na=False)
        return json.loads(table.to_json(orient="records"))
    if suffix == ".parquet":
        return read_table(file).to_pylist()
    raise UserError(f"{where}: {file} has none of the suffixes {', '.join(_SUFFIXES)}")


def _json_or_lines(file: Path) -> Any:
    """Parse a `.json` file, which may hold JSON lines instead."""
    try:
        return read_json(file)
    except UserError:
        lines = [line for line in file.read_bytes().split(b"\n", 1)[0].splitlines() if line.strip()]
        if lines and lines[0].lstrip()[:1] == b"{" and lines[0].rstrip()[-1:] == b"}":
            return _json_lines(file)
        raise


def _json_lines(file: Path) -> Documents:
    return read_json_lines(file)


def _is_image_folder(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in _METADATA)


def _image_folder(folder: Path, metadata: list[Path], where: str) -> Documents:
    if not folder.is_dir():
        raise UserError(f"{where}: there is no folder {folder}")
    if metadata:
        rows = _rows(metadata[0], None, where)
        if not all(isinstance(row, dict) and row.get("file_name") for row in rows):
            raise UserError(f"{where}: every row of {metadata[0]} needs a file_name")
        return [row | {"image": row["file_name"]} for row in rows]
    images = sorted(path for path in folder.rglob("*") if is_image(path.name) and path.is_file())
    if not images:
        raise UserError(f"{where}: there are no images and no metadata in {folder}")
    names = [path.relative_to(folder).as_posix() for path in images]
    classes = sorted({name.split("/")[0] for name in names if "/" in name})
    documents: Documents = [{"image": name, "file_name": name} for name in names]
    for document in documents:
        if "/" in document["file_name"]:
            document["label"] = classes.index(document["file_name"].split("/")[0])
    return documents


def _dialogues(file: Path) -> Documents:
    """The format of the original as conversations; `answers` are those of the file beside it, or none."""
    tests = read_json(file)
    answers = read_json(file.parent / ANSWERS_FILE) if (file.parent / ANSWERS_FILE).exists() else {}
    if not isinstance(answers, dict):
        raise UserError(f"{file.parent / ANSWERS_FILE} must be a JSON object with the answers of each test")
    documents = []
    for name, rounds in tests.items() if isinstance(tests, dict) else ():
        if not isinstance(rounds, list):
            raise UserError(f"{file}: test {name!r} must be a list of rounds, not {type(rounds).__name__}")
        messages = []
        for number, entry in enumerate(rounds, start=1):
            if not isinstance(entry, list) or not 1 <= len(entry) <= 2 or not all(isinstance(e, str) for e in entry):
                raise UserError(f"{file}: test {name!r}, round {number} must be [question] or [question, images]")
            shown = [{"type": "image", "url": path} for path in split_paths(entry[1])] if len(entry) == 2 else []
            messages.append({"role": "user", "content": [*shown, {"type": "text", "text": entry[0].strip()}]})
        documents.append({"test_name": name, "messages": messages, "answers": answers.get(name, [None] * len(rounds))})
    return documents
