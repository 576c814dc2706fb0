"""Runs the steps of the product on the folder of a case, and reads the records as a person would."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import ValidationError

from scripts.adapters.conversion import Conversion
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import RawFiles
from scripts.common.errors import UserError
from scripts.common.files import bytes_sha256, read_json
from scripts.config.custom import CustomDatasetConfig
from scripts.config.registry import custom_dataset, custom_source
from scripts.convert import convert
from scripts.fetch import fetch
from scripts.media.store import INDEX
from scripts.media_index import write_index
from scripts.shard import write_shard
from tests.forms.cases import Case
from tests.forms.folders import write_folder

NAME = "pets"
_SLOT = re.compile(r"<\|image:(\d+)(:shown)?\|>")


@dataclass
class Outcome:
    """What became of the rows: the fields of `Expected`; `examples` are those of the report."""

    conversations: list[list[dict[str, Any]]] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)
    error: str = ""


def run(case: Case, folder: Path) -> Outcome:
    """Fetch, shard and convert the folder of a case, as the rules of the same names do."""
    images = write_folder(case, folder / "mine")
    try:
        config = CustomDatasetConfig.model_validate({"folder": str(folder / "mine")} | case.config)
        return _convert(config, folder, {bytes_sha256(data): name for name, data in images.items()})
    except (UserError, ValidationError) as error:
        return Outcome(error=str(error))


def _convert(config: CustomDatasetConfig, folder: Path, names: Mapping[str, str]) -> Outcome:
    dataset = custom_dataset(NAME, config)
    raw, media = folder / "raw", {}
    fetch(custom_source(NAME, config), Path(config.folder), raw, dataset=dataset)
    if dataset.image_sources:
        media = {NAME: folder / "media"}
        write_shard(NAME, raw, 1, 0, media[NAME])
        write_index(NAME, 1, raw, media[NAME])
    try:
        report = convert(NAME, {NAME: raw}, media, folder / "records")
    except UserError:
        return _without_records(raw, media)
    assert read_json(folder / "records" / f"{NAME}.report.json") == report
    rows = pq.read_table(folder / "records" / f"{NAME}.parquet").to_pylist()
    index = pq.read_table(media[NAME] / INDEX).to_pylist() if media else []
    keys = {entry["key"]: names[entry["sha256"]] for entry in index if entry["sha256"] in names}
    outcome = _counted(report["dropped"], report["notes"])
    outcome.conversations = [_turns(row, keys) for row in rows]
    outcome.splits = [row["split"] for row in rows]
    return outcome


def _without_records(raw: Path, media: Mapping[str, Path]) -> Outcome:
    """The counts of a dataset of which no row can be used, which is an error of `convert`.

    Raises:
        UserError: it is another one.
    """
    conversion = Conversion(NAME, RawFiles({NAME: raw}), ImageLookup.from_media(media))
    try:
        list(conversion)
    except UserError:
        if not conversion.dropped.total or conversion.records:
            raise
    return _counted(conversion.dropped.as_dict(), conversion.noted.as_dict())


def _counted(dropped: Mapping[str, Any], notes: Mapping[str, Any]) -> Outcome:
    examples = [example for counts in (dropped, notes) for entry in counts.values() for example in entry["examples"]]
    counted = [{reason: entry["count"] for reason, entry in counts.items()} for counts in (dropped, notes)]
    return Outcome(dropped=counted[0], notes=counted[1], examples=examples)


def _turns(row: Mapping[str, Any], keys: Mapping[str, str]) -> list[dict[str, Any]]:
    """The turns of a record, its images by the names that the case gives them."""
    images = [keys[image["key"]] for image in row["images"]]
    turns: list[dict[str, Any]] = [{"system": row["system"]}] if row["system"] else []
    for round_ in row["rounds"]:
        (question,), (answer,) = round_["question"], round_["answer"]
        turns.append({"user": _parts(question, round_["images"], images)})
        turns.append({"assistant": answer} | ({} if round_["supervised"] else {"supervised": False}))
    return turns


def _parts(question: str, of_round: list[int], images: list[str]) -> str | list[str | dict[str, str]]:
    """A question's texts and images in their places; images without a place stand before it."""
    shown = {int(match[1]) for match in _SLOT.finditer(question) if match[2]}
    parts: list[str | dict[str, str]] = [{"image": images[index]} for index in of_round if index not in shown]
    end = 0
    for match in _SLOT.finditer(question):
        parts += [question[end : match.start()], {"image" if match[2] else "name of": images[int(match[1])]}]
        end = match.end()
    parts = [part for part in (*parts, question[end:]) if part]
    return parts[0] if len(parts) == 1 and isinstance(parts[0], str) else parts
