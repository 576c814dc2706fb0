"""Convert the raw rows of one dataset to records, and account for every row.

Reads `raw/<source>` and the media indexes of the image sources. Writes, below --out, `<dataset>.parquet` (the records)
and, last, `<dataset>.report.json`: rows read and kept, and the dropped rows counted by reason, with examples.
"""

import gc
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from scripts.adapters.conversion import MEANT, Conversion, Reasons
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import RawFiles, own_splits
from scripts.adapters.statistics import Statistics
from scripts.common.cli import load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import read_json, write_json, writing_table
from scripts.common.records import RECORD_SCHEMA, Record, to_batch
from scripts.common.table_hash import TableHash
from scripts.common.text_set import TextSet
from scripts.config.holdout import KeptRowsConfig
from scripts.config.tolerance import ToleranceConfig
from scripts.media.source_folders import add_folders, named_folders

_BATCH = 4096
_CHARACTERS = 16 << 20
_OBJECTS = 100_000
"""New objects after which Python looks for unreachable cycles."""
_QUOTED = 3
"""The most frequent reasons, which an error names with an example of each."""


def convert(
    dataset: str,
    raw_folders: dict[str, Path],
    media: dict[str, Path],
    out: Path,
    tolerance: float | None = 1.0,
    subset: dict[str, list[str]] | None = None,
    kept_rows: KeptRowsConfig | None = None,
) -> dict[str, Any]:
    """Write the records of `dataset`; return the report.

    Args:
        dataset: its name.
        raw_folders: `raw/<source>` of every source that it reads.
        media: `media/<source>` of every source of its images.
        out: folder to write into.
        tolerance: share of rows that may be dropped, in [0, 1]; None: the usual one of own or of published data.
        subset: paths of the only images to use, by source; None: all.
        kept_rows: which rows of own data are kept for evaluation, by a share; None: none.

    Raises:
        UserError: a source is missing, a file is damaged, or too few rows can be used.
    """
    images = ImageLookup.from_media(media, subset)
    conversion = Conversion(dataset, RawFiles(raw_folders), images)
    licence = conversion.entry.licence
    statistics = Statistics()
    judged = own_splits().keep_rows(conversion, kept_rows, conversion.noted.add) if kept_rows else conversion
    batches = _bounded(_with_uids(dataset, judged, conversion.noted))
    # Made before the table is opened: where no row can be used, this raises, and nothing is written.
    first = next(batches, [])
    path = out / f"{dataset}.parquet"
    with writing_table(path, RECORD_SCHEMA) as table, TableHash(RECORD_SCHEMA, path) as content:
        for rows in chain([first], batches):
            statistics.add([record for _, record in rows])
            batch = to_batch(rows, licence)
            table.write(batch)
            content.update(batch)
        _check_losses(conversion, tolerance)
        sha256 = content.hexdigest()
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
        "images": images.found,
        "statistics": statistics.as_dict(),
        "sha256": sha256,
    }
    write_json(out / f"{dataset}.report.json", report)
    return report


def _bounded(records: Iterable[tuple[str, Record]]) -> Iterator[list[tuple[str, Record]]]:
    """Lists of successive records: `_BATCH`, or fewer whose texts are long."""
    rows: list[tuple[str, Record]] = []
    characters = 0
    for uid, record in records:
        rows.append((uid, record))
        for round_ in record.rounds:
            for text in (*round_.question, *round_.answer):
                characters += len(text)
        if len(rows) == _BATCH or characters > _CHARACTERS:
            yield rows
            rows, characters = [], 0
    if rows:
        yield rows


def _check_losses(conversion: Conversion, tolerance: float | None) -> None:
    """Raise UserError if more than the share `tolerance` of the rows was dropped, those apart that are meant to be."""
    dropped = {reason: entry for reason, entry in conversion.dropped.as_dict().items() if reason not in MEANT}
    meant = conversion.dropped.total - sum(entry["count"] for entry in dropped.values())
    lost, rows = conversion.rows - conversion.kept - meant, conversion.rows - meant
    own = conversion.entry.own is not None
    allowed = ToleranceConfig(rows=tolerance).rows_of(own)
    if lost > allowed * rows:
        frequent = sorted(dropped.items(), key=lambda item: (-item[1]["count"], item[0]))
        reasons = [f"{entry['count']} {reason}, such as {entry['examples'][0]}" for reason, entry in frequent]
        more = f"; and {len(reasons) - _QUOTED} further reasons" if len(reasons) > _QUOTED else ""
        look = "look at it with `python -m scripts.inspect_data`, " if own else ""
        raise UserError(
            f"dataset {conversion.dataset!r}: {lost} of {rows} rows cannot be used, more than the share of "
            f"{allowed:g} that `tolerance.rows` allows: {'; '.join(reasons[:_QUOTED])}{more}. "
            f"Repair the data, {look}or raise the tolerance"
        )


def _with_uids(dataset: str, judged: Iterable[Record], noted: Reasons) -> Iterator[tuple[str, Record]]:
    """Give every record a unique id: `<dataset>:<raw id>`, and for repeated ids also `#1`, `#2`, ..."""
    used = TextSet()
    repeated: dict[str, int] = {}
    for record in judged:
        plain = uid = f"{dataset}:{record.id}"
        is_new = used.add(uid)
        if not is_new:
            noted.add("duplicate_id", f"{uid} is the id of more than one conversation")
        while not is_new:
            repeated[plain] = repeated.get(plain, 0) + 1
            uid = f"{plain}#{repeated[plain]}"
            is_new = used.add(uid)
        yield uid, record


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--dataset", required=True, help="which dataset to convert")
    add_folders(arguments, "--raw", "raw/<source> of every source that the dataset reads")
    add_folders(arguments, "--media", "media/<source> of every image source of the dataset")
    arguments.add_argument("--out", type=Path, required=True, help="folder to write into: records")
    arguments.add_argument(
        "--tolerance", type=float, help="share of rows that may be dropped (default: 0.05 of own data, 0.5 of others)"
    )
    arguments.add_argument("--subset", type=Path, help="raw/subset.json: use only the images listed in it")
    arguments.add_argument("--kept-rows", metavar="JSON", help="own data: share of rows kept for evaluation, or @file")
    args = arguments.parse_args()
    # Rows leave no cycles behind, so that looking for some among all living objects is mostly in vain.
    gc.freeze()
    gc.set_threshold(_OBJECTS)
    kept_rows = load_settings(KeptRowsConfig, args.kept_rows) if args.kept_rows else None
    raw, media = named_folders(args.raw, "--raw"), named_folders(args.media, "--media")
    subset = read_json(args.subset)["images"] if args.subset else None
    report = convert(args.dataset, raw, media, args.out, args.tolerance, subset, kept_rows)
    lost = report["rows"] - report["kept"]
    print(f"{args.dataset}: {report['rows']} rows, {report['records']} records, {lost} rows dropped")
    if lost:
        reasons = ", ".join(f"{entry['count']} {reason}" for reason, entry in report["dropped"].items())
        print(
            f"WARNING: {lost} of {report['rows']} rows of {args.dataset} ({lost / report['rows']:.1%}) are not used: "
            f"{reasons}. Examples: {args.out / args.dataset}.report.json"
        )


if __name__ == "__main__":
    run_program(main)
