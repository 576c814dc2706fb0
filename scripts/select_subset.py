"""Select a small subset of the images, from the annotations alone, so that only these have to be downloaded.

Reads `raw/<source>` of the annotations, and no image. The datasets take turns: each selects the images of its next
conversation, in a random order given by a hash, until there are enough images. Writes one file with the selected paths
by source of images. Afterwards fetch lists only these images, and validate and convert drop conversations that show any
other image, with the reason `outside_subset`. Because datasets share images, most of the images have conversations of
several kinds.
"""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from scripts.adapters.conversion import dataset_entry, load_adapter
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import RawFiles
from scripts.blending.randomness import Draws
from scripts.common.cli import load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import write_json
from scripts.common.records import ImageRef, Record
from scripts.config.subset import SubsetConfig
from scripts.media.source_folders import add_folders, named_folders


class AssumeAllImages(ImageLookup):
    """A lookup that finds every image; the key of an image is its path."""

    def __init__(self) -> None:
        super().__init__({}, {})

    def has(self, source: str, *paths: str) -> bool:
        """False: no adapter has to choose between two names of an image."""
        return False

    def find(self, source: str, *paths: str) -> ImageRef:
        """The image at the first of `paths`."""
        return ImageRef(source, paths[0])


def select_images(datasets: list[str], raw: RawFiles, sources: list[str], settings: SubsetConfig) -> dict[str, Any]:
    """Select images of `sources` by the conversations of `datasets`.

    Returns:
        `images`, the selected paths by source, and `conversations`, the number of those that each dataset has selected.

    Raises:
        UserError: no dataset shows any image of `sources`.
    """
    selected: dict[str, set[str]] = {source: set() for source in sources}
    counts = dict.fromkeys(datasets, 0)
    queues = [[(name, images) for images in _shuffled_images(name, raw, sources, settings)] for name in datasets]
    for name, images in (turn for turns in zip_longest(*queues) for turn in turns if turn):
        if sum(map(len, selected.values())) >= settings.images:
            break
        counts[name] += 1
        for source, path in images:
            selected[source].add(path)
    if not any(selected.values()):
        raise UserError(
            f"no subset can be selected: none of {', '.join(datasets)} shows an image of {', '.join(sources)}; "
            "add another dataset to the blend, or remove `subset`"
        )
    return {
        "v": 1,
        "seed": settings.seed,
        "images": {source: sorted(paths) for source, paths in selected.items()},
        "conversations": counts,
    }


def _shuffled_images(
    dataset: str, raw: RawFiles, sources: list[str], settings: SubsetConfig
) -> Iterator[tuple[ImageRef, ...]]:
    """The images of every conversation of `dataset` that shows images of `sources` only, in random order."""
    results = load_adapter(dataset_entry(dataset, raw)).records(raw, AssumeAllImages())
    records = [item for item in results if isinstance(item, Record) and item.images]
    records = [record for record in records if all(image.source in sources for image in record.images)]
    uids = [f"{dataset}:{record.id}".encode() for record in records]
    # Another name of this random stream would select other images.
    keys = Draws(settings.seed, 0).keys(uids, np.zeros(len(uids), np.int64), "taste")
    for number in sorted(range(len(records)), key=lambda number: (keys[number], number)):
        yield records[number].images


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--settings", default="{}", help="section `subset` as JSON, or @file")
    arguments.add_argument("--datasets", nargs="+", required=True, help="datasets that take turns, in this order")
    arguments.add_argument("--sources", nargs="+", required=True, help="sources of images to select from")
    add_folders(arguments, "--raw", "raw/<source> of every annotation source of the datasets")
    arguments.add_argument("--out", type=Path, required=True, help="file to write: raw/subset.json")
    args = arguments.parse_args()
    raw = RawFiles(named_folders(args.raw, "--raw"))
    result = select_images(args.datasets, raw, args.sources, load_settings(SubsetConfig, args.settings))
    write_json(args.out, result)
    print(f"subset: {sum(map(len, result['images'].values()))} images, selected by {', '.join(args.datasets)}")


if __name__ == "__main__":
    run_program(main)
