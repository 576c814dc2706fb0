"""The time and memory of listing images: once in fetch, and the part that one shard job reads.

    python -m benchmarks.listing [--images 100000 1000000 5000000] [--shards 1000] [--folder DIR]

Lists that many images of containers as fetch does: entries that are yielded one by one, keys, order, and the table that
is written. Then the middle one of `--shards` shard jobs reads its part. For comparison, a job that reads, keys and
sorts all images, as every shard job would have to without the sorted list ("all", up to a million images). The order in
which a container holds its images is random. Each measurement is a process of its own; times are CPU times without the
start of the interpreter, memory is the peak of the process, with some 100 MB for Python and pyarrow.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from tabulate import tabulate

from scripts.common.files import read_table, write_table
from scripts.media.containers import STORED, ImageEntry
from scripts.media.keys import keys_of
from scripts.media.listing import (
    ENTRY_SCHEMA,
    FILES_SCHEMA,
    FILES_TABLE,
    IMAGES_TABLE,
    entries_table,
    image_listing,
    listed_files,
    share,
)

CONTAINER = "images/all.zip"
_MOST_OF_ALL = 1_000_000


def entries(images: int) -> Iterator[ImageEntry]:
    """Entries in a random order, without keeping them: a multiplication modulo a prime is a permutation."""
    prime = next(number for number in range(images, 2 * images + 2) if _is_prime(number))
    drawn = random.Random(0)
    for step in range(1, prime + 1):
        number = step * 7919 % prime
        if number < images:
            yield ImageEntry(
                f"images/train/{number:012d}.jpg", CONTAINER, STORED, step, drawn.randrange(10_000, 300_000)
            )


def _is_prime(number: int) -> bool:
    return number > 7919 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def list_images(folder: Path, images: int, _shards: int) -> None:
    """What fetch does with the entries of a source."""
    write_table(folder / IMAGES_TABLE, image_listing(entries_table(entries(images))))
    files = pa.Table.from_pylist([{"path": CONTAINER, "bytes": 1, "sha256": ""}], FILES_SCHEMA)
    write_table(folder / FILES_TABLE, files)


def read_part(folder: Path, _images: int, shards: int) -> None:
    """What one shard job does before its first image."""
    rows = share(folder, shards, shards // 2)
    listed_files(folder, {entry.container or entry.path for _, entry in rows})


def read_all(folder: Path, _images: int, _shards: int) -> None:
    """What a shard job would do with a list that is neither keyed nor sorted."""
    table = read_table(folder / IMAGES_TABLE, schema=ENTRY_SCHEMA)
    keys = keys_of(pa.concat_arrays(table["path"].chunks)).to_pylist()
    rows = zip(keys, map(ImageEntry._make, zip(*table.to_pydict().values(), strict=True)), strict=True)
    sorted(rows)


STEPS = {"list": list_images, "part": read_part, "all": read_all}


def _measure(step: str, folder: Path, images: int, shards: int) -> dict[str, float]:
    """Run one step in a process of its own; return its CPU seconds and its peak memory in MB."""
    command = [sys.executable, "-m", "benchmarks.listing", "--step", step, "--folder", str(folder)]
    command += ["--images", str(images), "--shards", str(shards)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Run the program."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, nargs="+", default=[100_000, 1_000_000, 5_000_000])
    arguments.add_argument("--shards", type=int, default=1000, help="number of shards of the source")
    arguments.add_argument("--folder", type=Path, help="keep the tables here; default: a temporary folder")
    arguments.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.step:
        begin = time.process_time()
        STEPS[args.step](args.folder, args.images[0], args.shards)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": time.process_time() - begin, "megabytes": peak}))
        return
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for images in args.images:
            folder = (args.folder or Path(temporary)) / str(images)
            folder.mkdir(parents=True, exist_ok=True)
            row: list[object] = [f"{images:,}"]
            for step in STEPS:
                if step == "all" and images > _MOST_OF_ALL:
                    row += ["", ""]
                    continue
                found = _measure(step, folder, images, args.shards)
                row += [f"{found['seconds']:.2f}", f"{found['megabytes']:.0f}"]
            rows.append(row)
    titles = ["images", "fetch, s", "MB", f"one of {args.shards} shard jobs, s", "MB", "a job that sorts all, s", "MB"]
    print(tabulate(rows, titles, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
