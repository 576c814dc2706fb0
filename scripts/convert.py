"""Turn the raw rows of one dataset into records, and account for every row.

Reads `raw/<source>` and the media index of the images' sources. Writes, below --out, `<dataset>.parquet` (the records)
and, last, `<dataset>.report.json`: rows read and kept, and every dropped row under its reason with examples.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa

from scripts.adapters.base import Images, Raw
from scripts.adapters.run import Conversion
from scripts.common.errors import run_program
from scripts.common.files import table_sha256, write_json, write_table
from scripts.common.program import parser
from scripts.media.folders import add_folders, named_folders
from scripts.records_schema import SCHEMA, Record, to_batch
from scripts.sources import DATASETS

_BATCH = 4096


def convert(dataset: str, raw_folders: dict[str, Path], media: dict[str, Path], out: Path) -> dict:
    """Write the records of `dataset`; return the report.

    Raises:
        UserError: a source is missing, a file is broken, or no row can be used.
    """
    licence = DATASETS[dataset].licence if dataset in DATASETS else ""
    images = Images.of_media(media)
    conversion = Conversion(dataset, Raw(raw_folders), images)
    named = _with_uids(dataset, conversion)
    batches = []
    while rows := list(islice(named, _BATCH)):
        batches.append(to_batch(rows, licence))
    table = pa.Table.from_batches(batches, SCHEMA)
    write_table(out / f"{dataset}.parquet", table)
    report = {
        "v": 1,
        "dataset": dataset,
        "licence": licence,
        "rows": conversion.rows,
        "expected": conversion.expected(),
        "kept": conversion.kept,
        "records": conversion.records,
        "dropped": conversion.dropped.as_dict(),
        "notes": conversion.noted.as_dict(),
        "images": len(images.found),
        "sha256": table_sha256(table),
    }
    write_json(out / f"{dataset}.report.json", report)
    return report


def _with_uids(dataset: str, records: Iterable[Record]) -> Iterator[tuple[str, Record]]:
    """Give every record a unique name: `<dataset>:<raw id>`, and `#1`, `#2`, ... from the second of the same id on."""
    used: dict[str, int] = {}
    for record in records:
        plain = uid = f"{dataset}:{record.id}"
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
    args = arguments.parse_args()
    raw, media = named_folders(args.raw, "--raw"), named_folders(args.media, "--media")
    report = convert(args.dataset, raw, media, args.out)
    lost = report["rows"] - report["kept"]
    print(f"{args.dataset}: {report['rows']} rows, {report['records']} records, {lost} rows dropped")


if __name__ == "__main__":
    run_program(main)
