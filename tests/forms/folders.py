"""Writes the folder of a case: its images, archives, and files of rows in the form that their names' endings say."""

import base64
import bz2
import csv
import gzip
import io
import json
import lzma
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from PIL import Image

from tests.forms.cases import Case, Drawing, File

_REFERENCE = re.compile(r"\$(path|bytes|base64|data_url)\(([^)]*)\)")
_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
_FORMATS = {"jpg": "JPEG", "jpeg": "JPEG", "jfif": "JPEG", "jpe": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}
_EXTENSIONS = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "TIFF": "tiff"}


def draw(name: str, drawing: Drawing) -> bytes:
    """The encoded bytes of an image. The colours of a case's images differ, so that its images do."""
    ending = Path(name).suffix.removeprefix(".").lower()
    format_ = drawing.format or _FORMATS.get(ending, ending.upper())
    buffer = io.BytesIO()
    Image.new("RGB", drawing.size, drawing.colour).convert(drawing.mode).save(buffer, format_)
    data = buffer.getvalue()
    return data[: len(data) // 2] if drawing.damaged else data


def write_folder(case: Case, folder: Path) -> dict[str, bytes]:
    """Write the folder of `case`; return the bytes of its images by name."""
    images = {name: draw(name, drawing) for name, drawing in case.drawings().items()}
    assert len(set(images.values())) == len(images), f"{case.name}: two images are the same"
    for name in case.images:
        _write(folder / name, images[name])
    for archive, members in case.archives.items():
        _write(folder / archive, _archive(archive, {path: images[f"{archive}/{path}"] for path in members}))
    for name, file in case.files.items():
        _write_rows(folder, name, file, _References(images, folder))
    return images


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


class _References:
    """Replaces the references in values of rows."""

    def __init__(self, images: Mapping[str, bytes], folder: Path) -> None:
        self._images, self._folder = images, folder

    def replaced(self, value: Any) -> Any:
        if isinstance(value, str):
            whole = _REFERENCE.fullmatch(value)
            if whole and whole[1] == "bytes":
                return self._images[whole[2]]
            return _REFERENCE.sub(lambda match: self._text(match[1], match[2]), value)
        if isinstance(value, Mapping):
            return {self.replaced(key): self.replaced(member) for key, member in value.items()}
        if isinstance(value, list | tuple):
            return [self.replaced(member) for member in value]
        return value

    def _text(self, kind: str, name: str) -> str:
        if kind == "path":
            return str(self._folder / name)
        data = base64.b64encode(self._images[name]).decode()
        if kind == "base64":
            return data
        ending = Path(name).suffix.removeprefix(".").lower()
        return f"data:image/{_EXTENSIONS[_FORMATS.get(ending, ending.upper())]};base64,{data}"


def _write_rows(folder: Path, name: str, file: File, references: _References) -> None:
    path = folder / name
    if file.kind == "dataset dict":
        _write(path / "dataset_dict.json", json.dumps({"splits": list(file.splits)}).encode())
        for split, rows in file.splits.items():
            _save_dataset(path / split, references.replaced(rows), split)
        return
    if file.kind == "dataset":
        _save_dataset(path, references.replaced(file.rows), "train")
        return
    compress = _COMPRESSORS.get(path.suffix)
    kind = file.kind or Path(path.name.removesuffix(path.suffix) if compress else path.name).suffix.removeprefix(".")
    if file.text is not None:
        text = references.replaced(file.text)
        assert isinstance(text, str)
        data = text.encode(file.encoding)
    else:
        data = _encoded(kind, references.replaced(file.rows), file.encoding)
    _write(path, compress(data) if compress else data)


def _encoded(kind: str, rows: Sequence[Any], encoding: str) -> bytes:
    """The bytes of a file of rows."""
    if kind == "json":
        return json.dumps(rows, ensure_ascii=False, indent=1).encode(encoding)
    if kind in ("jsonl", "ndjson"):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding)
    if kind in ("csv", "tsv"):
        return _table_text(rows, "," if kind == "csv" else "\t").encode(encoding)
    if kind == "tar":
        return _samples(rows)
    table = pa.Table.from_pylist(list(rows))
    buffer = io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, buffer)
    else:
        new = pa.ipc.new_stream if kind == "arrow stream" else pa.ipc.new_file
        with new(buffer, table.schema) as writer:
            writer.write_table(table)
    return buffer.getvalue()


def _table_text(rows: Sequence[Any], delimiter: str) -> str:
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: json.dumps(cell) if isinstance(cell, list | dict) else cell for name, cell in row.items()}
        )
    return text.getvalue()


def _samples(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A WebDataset tar: every row is a sample with its `__key__`, and members by their extension."""
    members = {}
    for row in rows:
        for extension, value in row.items():
            if extension != "__key__":
                encoded = value.encode() if isinstance(value, str) else value
                data = encoded if isinstance(encoded, bytes) else json.dumps(encoded).encode()
                members[f"{row['__key__']}.{extension}"] = data
    return _archive("samples.tar", members)


def _archive(name: str, members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(buffer, "w") as archive:
            for path, data in members.items():
                archive.writestr(zipfile.ZipInfo(path), data)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w:gz" if name.endswith("gz") else "w") as tar:
        for path, data in members.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _save_dataset(folder: Path, rows: Sequence[Any], split: str) -> None:
    """A folder as `Dataset.save_to_disk` of the package `datasets` writes it: Arrow streams and two JSON files."""
    _write(folder / "data-00000-of-00001.arrow", _encoded("arrow stream", rows, "utf-8"))
    state: dict[str, Any] = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0" * 16}
    state |= {"_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False}
    _write(folder / "state.json", json.dumps(state | {"_split": split}).encode())
    features = {name: {"_type": "Value"} for name in rows[0]}
    info = {"citation": "", "description": "", "features": features, "homepage": "", "license": ""}
    _write(folder / "dataset_info.json", json.dumps(info).encode())
