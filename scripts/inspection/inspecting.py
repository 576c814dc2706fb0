"""Inspecting own data: the first rows go through the adapter of the graph, and what becomes of them is collected."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from model.template import Template, encode, segments
from scripts.adapters.conversion import Conversion
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.own.image_values import ImageAddress, ImageName
from scripts.adapters.own.values import has_value
from scripts.blending.render import messages
from scripts.common.errors import UserError
from scripts.common.records import Record, to_batch
from scripts.config.custom import CustomDatasetConfig
from scripts.config.paths import is_archive
from scripts.inspection.first_rows import CurrentRow, FirstImages, FirstRows, list_first_rows
from scripts.inspection.hints import IMAGES_LINE, NO_FOLDER, better_folder, hint
from scripts.inspection.survey import InspectedFile, ShownConversation, ShownPart, Survey
from scripts.media.containers import ImageEntry
from scripts.media.opening import UnreadableImageError
from scripts.media.raw_images import RawImageReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS_PER_TOKEN = 4
"""Of English text, with usual tokenizers: the estimate where none is given."""
_MOST_UNREAD = 20
_MISSING = "missing_image"
_IGNORED = "ignored:"


class Limit(NamedTuple):
    """A limit of the recipe for one conversation, and the key that sets it."""

    value: int
    unit: str
    key: str


@dataclass(frozen=True)
class Reading:
    """How conversations become tokens: the template, the tokens of an image, and a tokenizer, if there is one.

    `sequence` and `max_images` are the limits of the recipe.
    """

    template: Template
    image_tokens: int
    sequence: Limit
    max_images: Limit
    tokenizer: "PreTrainedTokenizerBase | None" = None
    name: str = ""


@dataclass(frozen=True)
class _Kept:
    """A row that can be used: its name in messages, its form and its record."""

    origin: str
    form: str
    record: Record


def custom_section(path: Path, images: Sequence[str] = (), **more: object) -> CustomDatasetConfig:
    """The section `custom.<name>` that reads a path: a folder, a file of rows, an archive, or a pattern of files.

    Raises:
        UserError: there is nothing at the path.
    """
    if path.is_dir():
        return CustomDatasetConfig.model_validate({"folder": str(path), "images": list(images), **more})
    if not path.exists() and "*" not in str(path):
        raise UserError(f"{path} does not exist: give a file of rows, a folder, an archive, or a pattern in quotes")
    # A pattern may begin with folders without "*", which are then the dataset's folder.
    parts = path.parts
    first = next((number for number, part in enumerate(parts) if "*" in part), len(parts) - 1)
    folder = os.path.join(*parts[:first]) if first else "."
    below = "/".join(parts[first:])
    return CustomDatasetConfig.model_validate({"folder": folder, "files": [below], "images": list(images), **more})


def dataset_name(path: Path) -> str:
    """A valid name of a dataset, after its path."""
    plain = path.name.split(".")[0] if not path.is_dir() else path.resolve().name
    return re.sub(r"[^A-Za-z0-9_-]+", "-", plain).strip("-_")[:64] or "mine"


def inspect(
    path: str, name: str, config: CustomDatasetConfig, reading: Reading, limit: int = 1000, shown: int = 10
) -> Survey:
    """Read the first rows of own data as training would.

    Where no images are configured and a folder below, or the archive of the rows, has most of the missing ones, the
    survey is that with this folder or archive.

    Args:
        path: as the user gave it.
        name: of the dataset in the recipe.
        config: the section `custom.<name>`.
        reading: how conversations become tokens.
        limit: rows to read.
        shown: conversations to show.

    Raises:
        UserError: there are no rows, or a file is damaged.
    """
    survey = _inspected(path, name, config, reading, limit, shown)
    better = survey.hints.get(_MISSING)
    if config.images or not better:
        return survey
    archives = tuple(file.name for file in survey.files if is_archive(file.name))
    if archives:
        files = config.files or tuple(file.name for file in survey.files)
        changed = config.model_copy(update={"images": archives, "files": files})
        advice = f"with `{IMAGES_LINE}[{', '.join(archives)}]`, because the images are in the archive of the rows"
        other = _inspected(path, name, changed, reading, limit, shown)
        if other.lost < survey.lost:
            other.chosen_images = advice
            return other
    if better.line not in ("", NO_FOLDER):
        changed = config.model_copy(update={"images": (better.line.removeprefix(IMAGES_LINE),)})
        other = _inspected(path, name, changed, reading, limit, shown)
        if other.lost < survey.lost:
            other.chosen_images = f"with `{better.line}`, because {better.advice}"
            return other
    return survey


def _inspected(path: str, name: str, config: CustomDatasetConfig, reading: Reading, limit: int, shown: int) -> Survey:
    survey = Survey(path, name, config, tokenizer=reading.name)
    seen = _Seen()
    with tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary, name)
        rows, images = list_first_rows(name, config, raw, limit, lambda row: _count(survey, row, seen))
        conversion = Conversion(name, rows, ImageLookup.from_listing(rows, [name]))
        kept = list(_kept(rows, conversion))
    survey.files = [InspectedFile(file, *count) for file, count in rows.counts.items()]
    survey.dropped, survey.noted = conversion.dropped, conversion.noted
    survey.image_files = len(images.listed)
    _count_ignored(survey)
    _add_hints(survey, seen, images)
    for each in kept:
        tokens, count = _length(_messages(each.record), reading)
        survey.tokens.append(tokens)
        survey.n_images.append(count)
    for bound, values in ((reading.sequence, survey.tokens), (reading.max_images, survey.n_images)):
        if beyond := sum(value > bound.value for value in values):
            survey.beyond[f"{bound.value:,} {bound.unit} ({bound.key})"] = beyond
    survey.shown = list(_shown(_chosen(kept, shown), survey.folder, reading, images))
    return survey


@dataclass
class _Seen:
    """What hints are made of: the names of images in rows, and some rows that no form fits."""

    names: list[str] = field(default_factory=list)
    unread: list[dict[str, Any]] = field(default_factory=list)


def _count(survey: Survey, row: CurrentRow, seen: _Seen) -> None:
    """Count what a row has, and note it in `seen`."""
    if isinstance(row.value, dict):
        survey.members.update(str(member) for member, value in row.value.items() if has_value(value))
    if row.conversation is None:
        if isinstance(row.value, dict) and len(seen.unread) < _MOST_UNREAD:
            seen.unread.append(row.value)
        return
    survey.forms[row.conversation.form] += 1
    for turn in row.conversation.turns:
        survey.roles[turn.role] += 1
        survey.unsupervised += turn.role == "assistant" and not turn.supervised
    for value in row.conversation.image_values():
        if isinstance(value, ImageName):
            seen.names.append(value.name)
        kind = "named" if isinstance(value, ImageName) else "inside of rows"
        survey.images["at addresses" if isinstance(value, ImageAddress) else kind] += 1


def _kept(rows: FirstRows, conversion: Conversion) -> Iterator[_Kept]:
    """The rows that can be used."""
    try:
        for record in conversion:
            form = rows.current.conversation.form if rows.current.conversation else ""
            yield _Kept(rows.current.origin, form, record)
    except UserError:
        # Raised where no row can be used; then the survey says why.
        if conversion.records or not conversion.dropped.total:
            raise


def _count_ignored(survey: Survey) -> None:
    for reason, entry in survey.noted.as_dict().items():
        if reason.startswith(_IGNORED):
            survey.ignored[reason.removeprefix(_IGNORED)] = entry["count"]


def _add_hints(survey: Survey, seen: _Seen, images: FirstImages) -> None:
    """Add what to do about each reason for which rows are lost."""
    for reason in survey.dropped.as_dict():
        survey.hints[reason] = hint(reason, seen.unread)
    if _MISSING in survey.hints:
        files = [entry.path for entry in images.listed if not entry.fault]
        there = set(files)
        better = better_folder([name for name in seen.names if name not in there], files)
        survey.hints[_MISSING] = better or survey.hints[_MISSING]


def _messages(record: Record) -> list[dict[str, Any]]:
    """A record as the messages of a conversation of its own."""
    stored = to_batch([("", record)], "").to_pylist()[0]
    row = {"uids": [""], "choices": [[0] * len(record.groups)], "rounds": [list(range(len(record.rounds)))]}
    return messages(row | {"offsets": [0], "named": [False]}, {"": stored})


def _length(conversation: list[dict[str, Any]], reading: Reading) -> tuple[int, int]:
    """Tokens and images of a conversation."""
    if reading.tokenizer is not None:
        encoded = encode(conversation, reading.tokenizer, reading.template, reading.image_tokens)
        return len(encoded), len(encoded.image_indices)
    parts = segments(conversation, reading.template)
    images = sum(part.kind == "image" for part in parts)
    characters = sum(len(part.text) for part in parts)
    return -(-characters // CHARACTERS_PER_TOKEN) + images * reading.image_tokens, images


def _chosen(kept: list[_Kept], count: int) -> list[_Kept]:
    """Up to `count` rows, spread over all of them, with at least one of every kind, the rarest kind first."""
    kinds: dict[tuple[object, ...], list[int]] = {}
    for number, each in enumerate(kept):
        supervised = all(round_.supervised for round_ in each.record.rounds)
        kinds.setdefault((each.form, min(len(each.record.images), 2), supervised), []).append(number)
    numbers = [rows[0] for rows in sorted(kinds.values(), key=len)][:count]
    step = max(1, len(kept) // max(1, count))
    for number in range(0, len(kept), step):
        if len(numbers) < count and number not in numbers:
            numbers.append(number)
    return [kept[number] for number in sorted(numbers)]


def _shown(rows: list[_Kept], folder: Path, reading: Reading, images: FirstImages) -> Iterator[ShownConversation]:
    """Rows as they are trained on, with their images."""
    needed = {image.key for row in rows for image in row.record.images}
    entries = {entry.path: entry for entry in images.listed if entry.path in needed}
    sizes = {
        entry.container: (folder / entry.container).stat().st_size for entry in entries.values() if entry.container
    }
    reader = RawImageReader(folder, sizes, entries.values())
    for row in rows:
        conversation = _messages(row.record)
        paths = [image.key for image in row.record.images]
        found = [_read(reader, entries[path]) if path in entries else images.embedded.read(path) for path in paths]
        parts = tuple(_parts(conversation, reading.template, paths, found))
        tokens, count = _length(conversation, reading)
        yield ShownConversation(row.origin, row.form, parts, tokens, count)
    reader.close()


def _read(reader: RawImageReader, entry: ImageEntry) -> bytes | None:
    """The bytes of an image; None if it cannot be read."""
    try:
        return reader.read(entry)
    except UnreadableImageError:
        return None


def _parts(
    conversation: list[dict[str, Any]], template: Template, paths: list[str], found: list[bytes | None]
) -> Iterator[ShownPart]:
    """The stretches of a conversation."""
    for segment in segments(conversation, template):
        if segment.image is not None:
            yield ShownPart("image", paths[segment.image], found[segment.image])
        elif segment.kind == "end":
            yield ShownPart("answer" if segment.supervised else "header", template.answer_end or "</s>")
        elif segment.supervised:
            yield ShownPart("answer", segment.text)
        else:
            yield ShownPart("text" if segment.from_message else "header", segment.text)
