"""Records written by hand, and what plans need around them: small enough to see every case with the eye.

Token tables are made by the real program with a real tokenizer; only the media are reduced to a list of keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from scripts.blending.corpus import load_corpus
from scripts.blending.plan_writing import write_plan
from scripts.common.files import write_json, write_table
from scripts.common.records import RECORD_SCHEMA
from scripts.common.table_hash import table_sha256
from scripts.config.blend import PlanConfig
from scripts.config.tokens import TokensConfig
from scripts.count_tokens import count_tokens
from tests.tiny_models import IMAGE_TOKENS, make_tokenizer

TOKENS = TokensConfig(tokenizer="tiny", image_tokens=IMAGE_TOKENS)


def turn(
    question: str | Sequence[str],
    answer: str | Sequence[str],
    images: Sequence[int] = (),
    question_group: int = -1,
    answer_group: int = -1,
    supervised: bool = True,
) -> dict[str, Any]:
    """One round of a record; a list of texts is a list of alternatives."""
    return {
        "images": list(images),
        "question": [question] if isinstance(question, str) else list(question),
        "question_group": question_group,
        "answer": [answer] if isinstance(answer, str) else list(answer),
        "answer_group": answer_group,
        "supervised": supervised,
    }


def record(
    uid: str,
    images: Sequence[str],
    rounds: Iterable[dict[str, Any]],
    groups: Sequence[tuple[str, str, int]] = (),
    split: str = "train",
    system: str = "",
) -> dict[str, Any]:
    """One record; images are keys of the source coco, groups are (name, kind, size)."""
    return {
        "uid": uid,
        "images": [{"source": "coco", "key": key} for key in images],
        "rounds": list(rounds),
        "system": system,
        "groups": [dict(zip(("name", "kind", "size"), group, strict=True)) for group in groups],
        "licence": "free",
        "split": split,
    }


def llava(number: int, image: str) -> dict[str, Any]:
    """A single-image record of one round."""
    return record(f"llava:{number}", [image], [turn(f"What is in picture {number}?", f"Thing {number}.", [0])])


def llava_dial(number: int, image: str, rounds: int = 3) -> dict[str, Any]:
    """A single-image record of several rounds."""
    turns = [turn(f"Is it {number} or {i}?", f"It is {i}.", [0] * (i == 0)) for i in range(rounds)]
    return record(f"llava_dial:{number}", [image], turns)


def pair(number: int, first: str, second: str, rounds: int = 3) -> dict[str, Any]:
    """A record that compares two images, whose rounds come in a drawn order."""
    turns = [
        turn(f"Compare {number}.{i}: <|image:0|> and <|image:1|>?", f"<|image:{i % 2}:ordinal|>.", [0, 1] * (i == 0))
        for i in range(rounds)
    ]
    groups = [("order", "permute", rounds)] if rounds > 1 else []
    return record(f"otter_mimicit_cgd:{number}", [first, second], turns, groups)


def caption(number: int, image: str, split: str = "train") -> dict[str, Any]:
    """A record with alternative prompts and captions."""
    prompts = [f"Describe it, way {i}." for i in range(7)]
    captions = [f"Caption {i} of {image}" for i in range(5)]
    return record(
        f"coco_caption:{number}",
        [image],
        [turn(prompts, captions, [0], 0, 1)],
        [("prompt", "pick", 7), ("caption", "pick", 5)],
        split,
    )


class PlanWorkspace:
    """A folder with records, token tables, media index and hold-out, in which plans are made."""

    def __init__(self, folder: Path, records: Iterable[dict[str, Any]], held_out: Iterable[str] = ()):
        self.folder = Path(folder)
        self.records = {row["uid"]: row for row in records}
        self.tokenizer = make_tokenizer(self.folder / "tokenizer")
        by_dataset: dict[str, list[dict[str, Any]]] = {}
        for row in self.records.values():
            by_dataset.setdefault(row["uid"].partition(":")[0], []).append(row)
        self.datasets = sorted(by_dataset)
        for name, rows in by_dataset.items():
            self.write_records(name, rows)
            self.count(name)
        keys = sorted({image["key"] for row in self.records.values() for image in row["images"]})
        # A key such as "a=b" names a copy of the image "b".
        columns = {"key": keys, "sha256": [key.rsplit("=", 1)[-1] for key in keys]}
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        write_table(self.folder / "media/coco/index.parquet", table)
        self.hold_out(held_out)

    def write_records(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Write one dataset's records and report, as `convert` does."""
        table = pa.Table.from_pylist(rows, RECORD_SCHEMA)
        write_table(self.folder / f"records/{name}.parquet", table)
        write_json(self.folder / f"records/{name}.report.json", {"v": 1, "sha256": table_sha256(table)})

    def count(self, name: str, settings: TokensConfig = TOKENS) -> dict:
        """Count one dataset's tokens with the real program."""
        records = self.folder / "records"
        return count_tokens(
            name,
            records / f"{name}.parquet",
            records / f"{name}.report.json",
            str(self.tokenizer),
            settings,
            self.folder / "tokens",
            followups=name.startswith("llava"),
        )

    def hold_out(self, keys: Iterable[str]) -> None:
        """Keep these images for evaluation."""
        keys = sorted(keys)
        columns = {"source": ["coco"] * len(keys), "key": keys, "sha256": ["0"] * len(keys)}
        table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
        write_table(self.folder / "split/heldout.parquet", table)

    def corpus(self, *datasets: str):
        """The corpus of some datasets, or of all."""
        return load_corpus(self.folder / "records", self.folder / "tokens", sorted(datasets) or self.datasets)

    def plan(self, datasets: dict[str, dict], epoch: int | None = 0, name: str = "blend", **settings) -> list[dict]:
        """The rows of a plan; batches of one by default, so that the order is that of the shuffle."""
        self.manifest = self.plan_file(datasets, epoch, name, **settings)
        return self.table(name, epoch).to_pylist()

    def plan_file(self, datasets: dict[str, dict], epoch: int | None = 0, name: str = "blend", **settings) -> dict:
        """Make a plan and return its manifest."""
        return write_plan(
            name,
            PlanConfig(**{"tokens": "tiny", "global_batch": 1, "datasets": datasets, **settings}),
            epoch,
            records=self.folder / "records",
            tokens=self.folder / "tokens",
            split=self.folder / "split",
            media={"coco": self.folder / "media/coco"},
            out=self.folder / "plan" / name,
        )

    def path(self, name: str = "blend", epoch: int | None = 0) -> Path:
        """Where a plan lies."""
        return self.folder / "plan" / name / ("heldout.parquet" if epoch is None else f"epoch-{epoch:03d}.parquet")

    def table(self, name: str = "blend", epoch: int | None = 0) -> pa.Table:
        """A plan as a table."""
        import pyarrow.parquet as pq

        return pq.read_table(self.path(name, epoch))


def mixed_records() -> list[dict[str, Any]]:
    """Some of everything: 12 images, each with two single-image records, 12 pairs, 12 captions."""
    images = [f"i{number:02d}" for number in range(12)]
    rows = [llava(number, image) for number, image in enumerate(images)]
    rows += [llava_dial(number, image, 2 + number % 3) for number, image in enumerate(images)]
    rows += [pair(number, image, images[(number + 1) % 12], 1 + number % 4) for number, image in enumerate(images)]
    return rows + [caption(number, image) for number, image in enumerate(images)]


ALL = {"llava": {}, "llava_dial": {}, "otter_mimicit_cgd": {}, "llava_otter_blend": {}, "coco_caption": {}}
