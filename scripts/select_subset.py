"""Choose the images of a taste: a few that the datasets speak of, so that only these need to be there.

Reads `raw/<source>` of the annotations and no image. Every dataset names, in an order drawn by hash, the images of its
conversations, and they take turns until there are enough. Writes one file: the paths per source of images, which fetch
then looks for, and which validate and convert keep to: conversations that show any other image are left out as
`outside_subset`. As datasets share images, most images bring several kinds of conversation.
"""

from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

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


class Anything(ImageLookup):
    """Images as if every one that is asked for were there; an image's key is its path."""

    def __init__(self) -> None:
        super().__init__({}, {})

    def has(self, source: str, *paths: str) -> bool:
        return False

    def find(self, source: str, *paths: str) -> ImageRef:
        return ImageRef(source, paths[0])


def choose(datasets: list[str], raw: RawFiles, sources: list[str], settings: SubsetConfig) -> dict:
    """The paths of the chosen images of each of `sources`, and how many conversations each dataset chose them with.

    Raises:
        UserError: no dataset speaks of any image of `sources`.
    """
    chosen: dict[str, set[str]] = {source: set() for source in sources}
    counts = dict.fromkeys(datasets, 0)
    queues = [[(name, images) for images in _in_drawn_order(name, raw, sources, settings)] for name in datasets]
    for turn in (offer for turns in zip_longest(*queues) for offer in turns if offer):
        name, images = turn
        if sum(map(len, chosen.values())) >= settings.images:
            break
        counts[name] += 1
        for source, path in images:
            chosen[source].add(path)
    if not any(chosen.values()):
        raise UserError(
            f"a taste was asked for, but none of {', '.join(datasets)} shows an image of {', '.join(sources)}"
        )
    return {
        "v": 1,
        "seed": settings.seed,
        "images": {source: sorted(paths) for source, paths in chosen.items()},
        "conversations": counts,
    }


def _in_drawn_order(
    dataset: str, raw: RawFiles, sources: list[str], settings: SubsetConfig
) -> Iterator[tuple[ImageRef, ...]]:
    """The images of every conversation of `dataset` that shows images of `sources` alone."""
    entry = dataset_entry(dataset, raw)
    found = [item for item in load_adapter(entry).records(raw, Anything()) if isinstance(item, Record) and item.images]
    found = [record for record in found if all(image.source in sources for image in record.images)]
    uids = [f"{dataset}:{record.id}".encode() for record in found]
    keys = Draws(settings.seed, 0).keys(uids, np.zeros(len(uids), np.int64), "taste")
    for number in sorted(range(len(found)), key=lambda number: (keys[number], number)):
        yield found[number].images


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--settings", default="{}", help="section `subset` as JSON, or @file")
    arguments.add_argument("--datasets", nargs="+", required=True, help="which datasets choose, in this order")
    arguments.add_argument("--sources", nargs="+", required=True, help="sources of images to choose from")
    add_folders(arguments, "--raw", "raw/<source> of every source of annotations that the datasets read")
    arguments.add_argument("--out", type=Path, required=True, help="file to write: raw/subset.json")
    args = arguments.parse_args()
    raw = RawFiles(named_folders(args.raw, "--raw"))
    result = choose(args.datasets, raw, args.sources, load_settings(SubsetConfig, args.settings))
    write_json(args.out, result)
    print(f"taste: {sum(map(len, result['images'].values()))} images, chosen by {', '.join(args.datasets)}")


if __name__ == "__main__":
    run_program(main)
