"""Rows: changed rows of every dataset through its adapter.

Every row that was read is in a record or counted under a reason, whatever is in it. A file that is no JSON any more is
one error.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.adapters.conversion import Conversion
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import RawFiles
from scripts.common.errors import UserError
from scripts.common.records import to_batch
from scripts.config.custom import CustomDatasetConfig
from scripts.config.registry import DATASETS, REGISTRY, SOURCES, custom_dataset, custom_source
from scripts.fetch import fetch
from tests.synthetic_data import make_synthetic_data
from tests.torture.adversary import Report
from tests.torture.batch import seen
from tests.torture.mutation import changed, changed_bytes, changed_json

FILES_OF_A_BATCH, ROWS_OF_A_FILE = 26, 60
ADAPTED = sorted(name for name, dataset in DATASETS.items() if dataset.adapter)
_FILES = {file.path: file for source in SOURCES.values() for file in source.files}
_SHARES = {"minigpt4": 0.5, "ocr_vqa": 0.5, "sparkles": 1.0, "aokvqa": 1.0, "mimicit": 1.0}
_IMAGE = {"type": "image", "image": "1.jpg"}
OWN = (
    {
        "id": "1",
        "image": "1.jpg",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}],
    },
    {
        "images": ["1.jpg", {"path": "4.jpg"}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Is <image> like <image>?"},
            {"role": "assistant", "content": "No."},
        ],
    },
    {
        "messages": [
            {"role": "user", "content": [_IMAGE, {"type": "text", "text": "Who?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Me."}]},
        ],
        "system": "Be kind.",
    },
)
"""Rows of a custom dataset."""


def batch(draw: random.Random, folder: Path, report: Report, begin: Callable[[str], None]) -> None:
    """Change files of the datasets in turn, and of a custom one."""
    world = make_synthetic_data(folder, images=15, rows=_SHARES, seed=draw.randrange(1000))
    drawn = [name for name in ADAPTED if all((world / path).exists() for path in DATASETS[name].files)]
    names = [*drawn, "own", "own"]
    for number in range(FILES_OF_A_BATCH):
        name = names[(number + draw.randrange(2)) % len(names)]
        attack = _own if name == "own" else _published
        attack(draw, name, world, folder / str(number), report, begin)


def _published(draw: random.Random, name: str, world: Path, folder: Path, report: Report, begin: Any) -> None:
    """Change one of the files of a dataset of the registry."""
    target = draw.choice(DATASETS[name].files)
    data, written = folder / "data", 0
    for path in DATASETS[name].files:
        content = json.loads((world / path).read_text())
        key = _FILES[path].key
        rows = content if key is None else content[key]
        if not rows:
            return  # so small a world does not have all of them
        rows = _many(draw, rows) if path == target else _first(rows)
        text = json.dumps(rows if key is None else content | {key: rows}).encode()
        written += len(rows)
        if path == target and draw.random() < 0.15:
            written = -1_000_000
            text = changed_json(draw, _first(rows)) if draw.random() < 0.5 else changed_bytes(draw, text)
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        (data / path).write_bytes(text)
    for source in REGISTRY.image_sources(name):
        for images in SOURCES[source].images:
            there = [path for path in (images.folder.rstrip("/"), *images.containers) if (world / path).exists()]
            for path in there[:1]:
                (data / path).parent.mkdir(parents=True, exist_ok=True)
                (data / path).symlink_to(world / path)

    def listed() -> RawFiles:
        folders = {source: folder / "raw" / source for source in REGISTRY.sources_of(name)}
        for source, out in folders.items():
            fetch(SOURCES[source], data, out, REGISTRY.requirements(source, [name]))
        return RawFiles(folders)

    _check(name, target, listed, REGISTRY.image_sources(name), written, report, begin)


def _own(draw: random.Random, name: str, world: Path, folder: Path, report: Report, begin: Any) -> None:
    """Change the file of a custom dataset."""
    data, form = folder / "data", draw.choice((".json", ".jsonl"))
    data.mkdir(parents=True)
    rows = _many(draw, list(OWN))
    if form == ".json":
        text, written = json.dumps(rows).encode(), len(rows)
    else:
        lines = [changed_json(draw, row) if draw.random() < 0.2 else json.dumps(row).encode() for row in rows]
        text, written = b"\n".join(line.replace(b"\n", b" ") for line in lines), len(lines)
    if draw.random() < 0.1:
        text, written = changed_bytes(draw, text), -1
    (data / f"rows{form}").write_bytes(text)
    (data / "pictures").symlink_to(world / "OCR_VQA/images")
    settings = CustomDatasetConfig(folder=str(data), files=(f"rows{form}",), images="pictures/")

    def listed() -> RawFiles:
        entry = custom_dataset("own", settings)
        fetch(custom_source("own", settings), data, folder / "raw", dataset=entry)
        return RawFiles({"own": folder / "raw"})

    _check("own", f"rows{form}", listed, ["own"], written, report, begin)


def _check(
    name: str, file: str, listed: Callable[[], RawFiles], sources: list[str], written: int, report: Report, begin: Any
) -> None:
    """Convert what `listed` gives, and compare what was read with what became of it.

    `written`: how many rows there are; negative if damaged text leaves that open.
    """
    begin(f"{name}, {file}")
    report.attacks -= 1  # rows are counted below
    try:
        raw = listed()
        conversion = Conversion(name, raw, ImageLookup.from_listing(raw, sources))
        records = list(conversion)
        to_batch(((record.id, record) for record in records), "")
    except UserError as error:
        # A file that is damaged as a whole, or none of whose rows can be used, is one error.
        report.attacks += 1
        report.note("files refused")
        if "\n" in str(error).strip() or len(str(error)) > 4000:
            report.violation("other", f"{name}, {file}: an error of more than one line: {str(error)[:500]}")
        return
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        report.violation("tracebacks", f"{name}, {file}: {seen(error)}")
        return
    dropped = sum(entry["count"] for entry in conversion.dropped.as_dict().values())
    report.attacks += raw.rows_read
    report.note("rows kept", conversion.kept)
    report.note("rows dropped with a reason", dropped)
    if conversion.kept + dropped != raw.rows_read or sum(record.raw_rows for record in records) != conversion.kept:
        text = f"{name}, {file}: of {raw.rows_read} rows {conversion.kept} are kept and {dropped} dropped"
        report.violation("lost", text)
    if written >= 0 and raw.rows_read != written:
        report.violation("lost", f"{name}, {file}: {written} rows were written and {raw.rows_read} read")


def _first(rows: Any, count: int = 5) -> Any:
    return rows[:count] if isinstance(rows, list) else dict(list(rows.items())[:count])


def _many(draw: random.Random, rows: Any) -> Any:
    """A few rows as they are and many changed copies of them."""
    few = _first(rows)
    if isinstance(few, list):
        return few + [changed(draw, draw.choice(few)) for _ in range(ROWS_OF_A_FILE)]
    copies = {f"{key}{number:04d}": changed(draw, few[key]) for number, key in _cycled(draw, list(few))}
    return few | copies


def _cycled(draw: random.Random, keys: list[str]) -> list[tuple[int, str]]:
    return [(number, draw.choice(keys)) for number in range(ROWS_OF_A_FILE)]
