"""A blend of the miniature world, made by the real programs: records, tokens, plans and shards below one folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from scripts.blend import write_shard
from scripts.blend_manifest import write_manifest
from scripts.blending.plan_writing import write_plan
from scripts.config.blend import BlendStorageConfig, PlanConfig
from scripts.config.tokens import TokensConfig
from scripts.count_tokens import count_tokens
from tests.synthetic_data import DATASETS, build_records, build_split, make_synthetic_data
from tests.tiny_models import IMAGE_TOKENS, make_tokenizer

TOKENS = TokensConfig(tokenizer="tiny", image_tokens=IMAGE_TOKENS)
ENTRIES = {
    "llava": {"concat": 3},
    "llava_dial": {"concat": 2},
    "otter_mimicit_cgd": {},
    "llava_otter_blend": {"samples": 20},
    "coco_caption": {"repeat": 2},
    "aokvqa": {},
}


@dataclass
class World:
    """Where everything lies; `root` is the results root."""

    root: Path
    entries: dict = field(default_factory=lambda: dict(ENTRIES))

    @classmethod
    def build(cls, root: Path, images: int = 40) -> World:
        """Draw the world and run all steps before the plan."""
        world = cls(Path(root))
        build_records(make_synthetic_data(world.root, images), world.root)
        build_split(world.root, 0.2)
        make_tokenizer(world.tokenizer)
        for dataset in DATASETS:
            table = world.root / f"records/{dataset}.parquet"
            report = world.root / f"records/{dataset}.report.json"
            followups = dataset.startswith("llava")
            count_tokens(dataset, table, report, str(world.tokenizer), TOKENS, world.root / "tokens/tiny", followups)
        return world

    @property
    def tokenizer(self) -> Path:
        """The tokenizer's folder."""
        return self.root / "tokenizer"

    @property
    def media(self) -> dict[str, Path]:
        """The media folders by source."""
        return {"coco": self.root / "media/coco"}

    def plan(self, epoch: int | None = 0, **settings) -> Path:
        """Plan an epoch, or the held-out part; return the plan's path."""
        write_plan(
            "demo",
            PlanConfig(**{"tokens": "tiny", "sequence": 400, "global_batch": 8, "datasets": self.entries, **settings}),
            epoch,
            records=self.root / "records",
            tokens=self.root / "tokens/tiny",
            split=self.root / "split",
            media=self.media,
            out=self.root / "plan/demo",
        )
        return self.root / "plan/demo" / ("heldout.parquet" if epoch is None else f"epoch-{epoch:03d}.parquet")

    def blend(self, plan: Path, out: Path, images: str = "embedded", shards: int = 3, tokens: str = "tiny") -> dict:
        """Write the shards of a plan; return the manifest."""
        return write_blend(plan, self.root / "records", self.media, out, self.root, images, shards, tokens)


def write_blend(
    plan: Path,
    records: Path,
    media: dict[str, Path],
    out: Path,
    root: Path,
    images: str = "referenced",
    shards: int = 1,
    tokens: str = "tiny",
) -> dict:
    """Write all shards of a plan, in no particular order, and their manifest."""
    settings = BlendStorageConfig(tokens=tokens, images=images, shards=shards)
    shards = 1 if plan.stem == "heldout" else shards
    for index in reversed(range(shards)):
        write_shard(plan, records, media, settings, root, out, index, shards)
    return write_manifest(plan, shards, out)
