"""Turn the raw rows of one dataset into records, and account for every row.

Reads `raw/<source>` and the media index of the images' sources. Writes, below --out, `<dataset>.parquet` (the records)
and, last, `<dataset>.report.json`: rows read and kept, and every dropped row under its reason with examples.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from scripts.adapters.conversion import Conversion
from scripts.adapters.image_lookup import OUTSIDE_SUBSET, ImageLookup
from scripts.adapters.raw import RawFiles
from scripts.adapters.statistics import Statistics
from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import read_json, table_sha256, write_json, write_table
from scripts.common.records import RECORD_SCHEMA, Record, to_batch
from scripts.media.source_folders import add_folders, named_folders

_BATCH = 4096


def convert(
    dataset: str,
    raw_folders: dict[str, Path],
    media: dict[str, Path],
    out: Path,
    tolerated: float = 1.0,
    wanted: dict[str, list[str]] | None = None,
) -> dict:
    """Write the records of `dataset`; return the report.

    Args:
        tolerated: the share of rows that may be dropped.
        wanted: paths of images by source, where only a taste is asked for.

    Raises:
        UserError: a source is missing, a file is broken, or too few rows can be used.
    """
    images = ImageLookup.from_media(media, wanted)
    conversion = Conversion(dataset, RawFiles(raw_folders), images)
    licence = conversion.entry.licence
    statistics = Statistics()
    named = statistics.of(_with_uids(dataset, conversion))
    batches = []
    while rows := list(islice(named, _BATCH)):
        batches.append(to_batch(rows, licence))
    _check_losses(conversion, tolerated)
    table = pa.Table.from_batches(batches, RECORD_SCHEMA)
    write_table(out / f"{dataset}.parquet", table)
    report = {
        "v": 1,
        "dataset": dataset,
        "licence": licence,
        "terms": list(conversion.entry.terms),
        "rows": conversion.rows,
        "expected": conversion.expected(),
        "kept": conversion.kept,
        "records": conversion.records,
        "dropped": conversion.dropped.as_dict(),
        "notes": conversion.noted.as_dict(),
        "images": len(images.found),
        "statistics": statistics.as_dict(),
        "sha256": table_sha256(table),
    }
    write_json(out / f"{dataset}.report.json", report)
    return report


def _check_losses(conversion: Conversion, tolerated: float) -> None:
    """Raise UserError if a larger share of rows than `tolerated` was dropped."""
    outside = conversion.dropped.as_dict().get(OUTSIDE_SUBSET, {"count": 0})["count"]
    lost, rows = conversion.rows - conversion.kept - outside, conversion.rows - outside
    if lost > tolerated * rows:
        first = next(iter(conversion.dropped.as_dict().values()))["examples"][0]
        raise UserError(
            f"dataset {conversion.dataset!r}: {lost} of {rows} rows cannot be used, more than the share of "
            f"{tolerated:g} that `tolerance.rows` allows ({conversion.dropped}). For example {first}. "
            "Repair the data, or raise the tolerance"
        )


def _with_uids(dataset: str, conversion: Conversion) -> Iterator[tuple[str, Record]]:
    """Give every record a unique name: `<dataset>:<raw id>`, and `#1`, `#2`, ... from the second of the same id on."""
    used: dict[str, int] = {}
    for record in conversion:
        plain = uid = f"{dataset}:{record.id}"
        if uid in used:
            conversion.noted.add("duplicate_id", f"{uid} is the name of more than one conversation")
        while uid in used:
            uid = f"{plain}#{used[plain]}"
            used[plain] += 1
        used[uid] = 1
        yield uid, record


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--dataset", required=True, help="which dataset to convert")
    add_folders(arguments, "--raw", "raw/<source> of every source that the dataset reads")
    add_folders(arguments, "--media", "media/<source> of every source of its images")
    arguments.add_argument("--out", type=Path, required=True, help="folder to write into: records")
    arguments.add_argument("--tolerance", type=float, default=1.0, help="share of rows that may be dropped")
    arguments.add_argument("--subset", type=Path, help="raw/subset.json, where only a taste is asked for")
    args = arguments.parse_args()
    raw, media = named_folders(args.raw, "--raw"), named_folders(args.media, "--media")
    wanted = read_json(args.subset)["images"] if args.subset else None
    report = convert(args.dataset, raw, media, args.out, args.tolerance, wanted)
    lost = report["rows"] - report["kept"]
    print(f"{args.dataset}: {report['rows']} rows, {report['records']} records, {lost} rows dropped")


if __name__ == "__main__":
    run_program(main)
