"""Raw folders with hand-written annotation files, and a run of an adapter over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from scripts.adapters.base import Dropped
from scripts.adapters.conversion import load_adapter
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import Note, RawFiles
from scripts.common.records import Record, check
from scripts.config.registry import DATASETS, REGISTRY, SOURCES
from scripts.fetch import fetch

IMAGES = tuple(f"coco/train2017/{number:012d}.jpg" for number in (785, 40083, 196141, 197388))


def data_path(folder: Path, files: dict[str, Any], images=IMAGES) -> Path:
    """A data path with small images at `images` and `files`: text as it is, anything else as JSON."""
    for number, path in enumerate(images):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, 100, 100)).save(folder / path)
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def fetch_for(dataset: str, data: Path, out: Path) -> RawFiles:
    """Fetch what `dataset` reads from `data`."""
    folders = {}
    for source in REGISTRY.sources_of(dataset):
        folders[source] = out / source
        fetch(SOURCES[source], data, folders[source], REGISTRY.requirements(source, [dataset]))
    return RawFiles(folders)


def run(
    dataset: str, tmp_path: Path, files: dict[str, Any], images=IMAGES
) -> tuple[list[Record], list[Dropped], list[Note]]:
    """What the adapter of `dataset` makes of `files`, sorted by kind of result."""
    raw = fetch_for(dataset, data_path(tmp_path / "data", files, images), tmp_path / "raw")
    listed = ImageLookup.from_listing(raw, REGISTRY.image_sources(dataset))
    results = list(load_adapter(DATASETS[dataset]).records(raw, listed))
    records = [item for item in results if isinstance(item, Record)]
    for record in records:
        check(record)
    dropped = [item for item in results if isinstance(item, Dropped)]
    assert sum(record.raw_rows for record in records) + sum(item.rows for item in dropped) == raw.rows_read
    return records, dropped, [item for item in results if isinstance(item, Note)]


def texts(record: Record) -> list[tuple[str, str]]:
    """Question and answer of every round of a record without alternatives."""
    return [(*round_.question, *round_.answer) for round_ in record.rounds]
