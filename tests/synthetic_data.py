"""A small synthetic data set and what the programs build from it, for every test that needs data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from scripts.config.holdout import HoldoutConfig
from scripts.config.miniature import MiniatureConfig
from scripts.config.registry import DATASETS as REGISTERED
from scripts.config.registry import REGISTRY, SOURCES
from scripts.convert import convert
from scripts.fetch import fetch
from scripts.holdout import write_split
from scripts.media_index import write_index
from scripts.miniature import write_world
from scripts.shard import write_shard

DATASETS = tuple(name for name, dataset in REGISTERED.items() if dataset.adapter)


def make_synthetic_data(folder: Path, images: int = 60, **settings) -> Path:
    """Draw a miniature world of `images` images at `folder`/raw/miniature and return that folder, a data path."""
    out = Path(folder) / "raw" / "miniature"
    write_world(MiniatureConfig(images=images, **settings), out)
    return out


def fetch_all(data_path: Path, folder: Path, sources: Iterable[str] = tuple(SOURCES)) -> dict[str, Path]:
    """Fetch `sources` into `folder`/raw; return the folder of each."""
    raw = {source: Path(folder) / "raw" / source for source in sources}
    for source, out in raw.items():
        fetch(SOURCES[source], Path(data_path), out)
    return raw


def build_media(data_path: Path, folder: Path, shards: int = 2, sources=("coco",)) -> dict[str, Path]:
    """Shard the images of `data_path` below `folder`; return the media folder of each source."""
    media = {}
    for source, raw in fetch_all(data_path, folder, sources).items():
        media[source] = Path(folder) / "media" / source
        for index in range(shards):
            write_shard(source, raw, shards, index, media[source])
        write_index(source, shards, raw, media[source])
    return media


def build_records(data_path: Path, folder: Path, datasets: Iterable[str] = DATASETS, shards: int = 2) -> Path:
    """Build media and the records of `datasets` below `folder`; return `folder`/records."""
    datasets = list(datasets)
    media = build_media(
        data_path, folder, shards, sorted({s for each in datasets for s in REGISTRY.image_sources(each)})
    )
    raw = fetch_all(data_path, folder, sorted({s for each in datasets for s in REGISTRY.sources_of(each)}))
    out = Path(folder) / "records"
    for dataset in datasets:
        convert(dataset, raw, media, out)
    return out


def build_split(folder: Path, share: float = 0.1, seed: int = 0) -> Path:
    """Hold images out of the media that `build_media` left below `folder`; return `folder`/split."""
    out = Path(folder) / "split"
    write_split(HoldoutConfig(share=share, seed=seed), {"coco": Path(folder) / "media" / "coco"}, out)
    return out
