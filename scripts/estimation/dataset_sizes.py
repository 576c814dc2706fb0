"""How many conversations a dataset has and how long they are, from the best source that is there.

    records     records/<dataset>.parquet of the results root
    rows        the files of own data, whose first rows go through the adapter of the graph
    miniature   the settings of the miniature, and the lengths of its texts
    replay      the settings of a dataset of a decoder's own answers
    published   the numbers of the published datasets, or a guess

The lengths come from a sample. They are those of the tokenizer and template where both are on this machine, and else a
token for every four characters.
"""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from model.template import Template, encode, segments
from scripts.adapters.conversion import Conversion
from scripts.adapters.image_lookup import ImageLookup
from scripts.blending.corpus import PERMUTE
from scripts.blending.render import messages
from scripts.common.errors import UserError
from scripts.common.records import to_batch
from scripts.config.custom import CustomDatasetConfig
from scripts.config.miniature import MiniatureConfig
from scripts.config.replay import ReplayConfig
from scripts.config.settings import Settings
from scripts.config.tokens import TemplateTexts, TokensConfig
from scripts.inspection.first_rows import CurrentRow, list_first_rows
from scripts.inspection.inspecting import CHARACTERS_PER_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = 2000
"""Conversations whose lengths are taken."""
_ROWS_READ = 20_000
_GROUPS_READ = 8
# An earlier version may have written tables without one of them.
_COLUMNS = {"images", "rounds", "groups", "system", "split"}
_LINES = (".jsonl", ".ndjson", ".csv", ".tsv")


class Lengths(NamedTuple):
    """Tokens of the text, tokens that are supervised, and images of the conversations of a sample, each (n,)."""

    text: np.ndarray
    labels: np.ndarray
    images: np.ndarray

    @classmethod
    def constant(cls, text: float, labels: float, images: float) -> "Lengths":
        """A sample of one conversation."""
        return cls(np.array([text]), np.array([labels]), np.array([images]))


@dataclass(frozen=True)
class DatasetSize:
    """The conversations of a dataset that may be trained on, but for the images that are held out.

    `guessed`: the number is no count. `concatenated`: it is that of the paper, after concatenation. `held_out_alone`:
    conversations without images may be held out too.
    """

    conversations: float
    lengths: Lengths
    source: str
    guessed: bool = False
    concatenated: bool = False
    held_out_alone: bool = False


class Reading(NamedTuple):
    """How texts become tokens: the template, and the tokenizer if it is on this machine."""

    template: Template
    tokenizer: "PreTrainedTokenizerBase | None"


# Conversations after concatenation: table 1 of the paper (arXiv 2309.14327) for its nine; for the others, rows of the
# published training files. The second number: images of a conversation.
_PUBLISHED = {
    "llava": (49_924, 2.0),
    "llava_dial": (37_818, 1.5),
    "otter_mimicit_cgd": (70_940, 2.2),
    "otter_mimicit_sd": (8_006, 2.2),
    "otter_mimicit_sn": (487, 2.2),
    "otter_mimicit_tvc": (2, 2.2),
    "otter_mimicit_vst": (115, 2.2),
    "llava_otter_blend": (48_869, 2.2),
    "sparkles_dialogue": (6_520, 2.2),
    "aokvqa": (17_056, 1.0),
    "coco_caption": (113_287, 1.0),
    "minigpt4": (3_439, 1.0),
    "ocr_vqa": (165_746, 1.0),
}
_UNKNOWN = (10_000, 2.2)
_TEXT_TOKENS, _LABEL_TOKENS = 350, 130
_PROMPT_CHARACTERS = 80


def dataset_size(configuration: Settings, name: str, parts: list[str], reading: Reading) -> DatasetSize:
    """The size of the blend's entry `name`, whose conversations are those of the datasets `parts` (several: a join)."""
    records = Path(configuration.results) / "records" / f"{name}.parquet"
    if len(parts) == 1 and records.is_file() and _COLUMNS.issubset(pq.read_schema(records).names):
        return _of_records(records, reading)
    if name in configuration.custom:
        return _of_rows(name, configuration.custom[name], reading)
    if name in configuration.replay:
        return _of_replay(configuration.replay[name], reading)
    if not configuration.data_path and not set(parts) & set(configuration.custom):
        size = _of_miniature(name, configuration.miniature)
        if size is not None:
            return size
    published = _PUBLISHED.get(name)
    number, images = published or _UNKNOWN
    lengths = Lengths.constant(_TEXT_TOKENS, _LABEL_TOKENS, images)
    return DatasetSize(number, lengths, "published" if published else "unknown", True, bool(published))


def reading_of(tokens: TokensConfig, root: Path) -> Reading:
    """How texts become tokens; nothing is downloaded for it."""
    name = str(root / "bases/miniature/tokenizer") if tokens.tokenizer == "miniature" else tokens.tokenizer
    if Path(name).is_dir():
        from scripts.blending.tokens_identity import load_tokenizer, template_of

        tokenizer = load_tokenizer(name)
        return Reading(template_of(tokens, tokenizer), tokenizer)
    texts = tokens.template
    return Reading(texts.template() if isinstance(texts, TemplateTexts) else Template(), None)


def tokens_to_start(reading: Reading) -> float:
    """Tokens with which every conversation begins, and which are not repeated where several are concatenated."""
    one = _example()
    (alone, *_), (twice, *_) = _measure(one, reading), _measure([*one, *one], reading)
    return 2 * alone - twice


def _of_records(path: Path, reading: Reading) -> DatasetSize:
    """Rows of the table of records; lengths and splits are those of rows from all over it."""
    file = pq.ParquetFile(path)
    groups = np.unique(np.linspace(0, file.num_row_groups - 1, _GROUPS_READ).astype(int)).tolist()
    sample: list[dict[str, Any]] = []
    for group in groups if file.metadata.num_rows else ():
        table = file.read_row_group(group)
        step = max(1, table.num_rows * len(groups) // SAMPLE)
        sample += table.take(np.arange(0, table.num_rows, step)).to_pylist()
    train = [row for row in sample if row["split"] == "train"]
    share = len(train) / max(1, len(sample))
    return DatasetSize(share * file.metadata.num_rows, _lengths(train, reading), "records")


def _of_rows(name: str, config: CustomDatasetConfig, reading: Reading) -> DatasetSize:
    """Rows of own data: those that the adapter keeps of the first ones, and the others by the size of their files."""
    sizes: list[int] = []

    def see(row: CurrentRow) -> None:
        sizes.append(len(str(row.value)))

    kept = train = 0
    sample: list[dict[str, Any]] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows, _ = list_first_rows(name, config, Path(folder, name), _ROWS_READ, see)
            for record in Conversion(name, rows, ImageLookup.from_listing(rows, [name])):
                kept += 1
                train += record.split == "train"
                if record.split == "train" and len(sample) < SAMPLE:
                    sample += to_batch([("", record)], "").to_pylist()
    except UserError:
        if not kept:
            return DatasetSize(_UNKNOWN[0], Lengths.constant(_TEXT_TOKENS, _LABEL_TOKENS, _UNKNOWN[1]), "unknown", True)
    mean = sum(sizes) / max(1, len(sizes))
    files = [(Path(config.folder, file), *count) for file, count in rows.counts.items()]
    numbers = [read if complete else max(read, _rows_in(path, mean)) for path, read, complete in files]
    read = sum(count for count, _ in rows.counts.values())
    complete = all(whole for _, whole in rows.counts.values())
    share = train / max(1, read)
    if config.split and config.split.rows:
        # The adapter does not know of it: convert selects these rows.
        share *= 1 - config.split.rows
    number, alone = share * sum(numbers), config.split is None
    return DatasetSize(number, _lengths(sample, reading), "rows", not complete, held_out_alone=alone)


def _rows_in(path: Path, mean: float) -> int:
    """How many rows a file has: its lines or the number in its footer, else by its size and the mean of a row."""
    if path.suffix.lower() == ".parquet":
        rows: int = pq.ParquetFile(path).metadata.num_rows
        return rows
    if path.suffix.lower() in _LINES:
        with open(path, "rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return round(path.stat().st_size / max(mean, 1.0)) if path.is_file() else 0


def _of_replay(config: ReplayConfig, reading: Reading) -> DatasetSize:
    """At most so many answers, each of about half of the tokens that it may have."""
    parts = [part for part in segments(_example(), reading.template) if not part.supervised]
    answer = config.max_new_tokens / 2
    prompt = sum(len(part.text) for part in parts) / CHARACTERS_PER_TOKEN
    return DatasetSize(config.samples, Lengths.constant(prompt + answer, answer, 0), "replay", True)


def _of_miniature(name: str, settings: MiniatureConfig) -> DatasetSize | None:
    """Rows by the settings. The texts of the default configuration have so many tokens; others differ a little."""
    rows, images = settings.rows, settings.images
    # Per dataset: conversations, tokens of the text, those supervised, images.
    sizes: Mapping[str, tuple[float, float, float, float]] = {
        "llava": (images * (rows.llava_reasoning + rows.llava_detail), 17.7, 2.5, 1),
        "llava_dial": (images * rows.llava_dial, 14.9 * rows.dial_rounds, 2.4 * rows.dial_rounds, 1),
        "otter_mimicit_cgd": (images * rows.cgd, 20.1 * rows.cgd_rounds, 2.7 * rows.cgd_rounds, 2),
        "llava_otter_blend": (images * rows.cgd, 61.8, 9.0, 2),
        # A twelfth of the captions is of the official validation and test splits.
        "coco_caption": (images * rows.coco_caption * 11 / 12, 42.2, 11.4, 1),
        "aokvqa": (images * rows.aokvqa, 97.0, 68.7, 1),
        "otter_mimicit_sd": (images * rows.mimicit / 2, 39.8, 5.4, 2),
        "otter_mimicit_sn": (images * rows.mimicit / 3, 45.2, 4.6, 3),
        "otter_mimicit_tvc": (images * rows.mimicit / 3, 45.3, 5.1, 3),
        "otter_mimicit_vst": (images * rows.mimicit / 3, 28.6, 2.4, 3),
        "minigpt4": (images * rows.minigpt4, 55.8, 20.4, 1),
        # A fifth of the covers is of the official validation and test splits.
        "ocr_vqa": (images * rows.ocr_vqa * 0.8, 17.5, 2.3, 1),
        "sparkles_dialogue": (2 * images * rows.sparkles / 3, 77.2, 5.6, 3),
    }
    if name not in sizes:
        return None
    number, *lengths = sizes[name]
    return DatasetSize(number, Lengths.constant(*lengths), "miniature", True)


def _example() -> list[dict[str, Any]]:
    """A round of usual length."""
    text = [{"type": "text", "text": "x" * _PROMPT_CHARACTERS}]
    return [{"role": role, "content": text} for role in ("user", "assistant")]


def _lengths(rows: Iterable[dict[str, Any]], reading: Reading) -> Lengths:
    """The lengths of conversations as the tables of records hold them, each alone."""
    measured = [_measure(_conversation(row, number), reading) for number, row in enumerate(rows)]
    columns = zip(*(measured or [(_TEXT_TOKENS, _LABEL_TOKENS, 1)]), strict=True)
    return Lengths(*(np.array(column, float) for column in columns))


def _conversation(row: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """The record `row` as messages, with one of its alternatives by `number`."""
    choices = [0 if group["kind"] == PERMUTE else number % group["size"] for group in row["groups"]]
    order = {"uids": [""], "choices": [choices], "rounds": [list(range(len(row["rounds"])))]}
    return messages(order | {"offsets": [0], "named": [False]}, {"": row})


def _measure(conversation: list[dict[str, Any]], reading: Reading) -> tuple[float, float, int]:
    """Tokens of the text, tokens that are supervised, and images of a conversation."""
    if reading.tokenizer is not None:
        encoded = encode(conversation, reading.tokenizer, reading.template, 1)
        images = len(encoded.image_indices)
        return len(encoded) - images, sum(label >= 0 for label in encoded.labels), images
    parts = segments(conversation, reading.template)
    supervised = sum(len(part.text) for part in parts if part.supervised) / CHARACTERS_PER_TOKEN
    text = sum(len(part.text) for part in parts) / CHARACTERS_PER_TOKEN
    return text, supervised, sum(part.kind == "image" for part in parts)
