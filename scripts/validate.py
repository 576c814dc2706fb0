"""Judge raw data before anything is built of it: a source by itself, or a dataset across its sources.

Reads `raw/<source>` as fetch left it; images are looked up by name, not opened. Writes one verdict. What cannot be
built at all (a broken or empty file, no usable row) ends with an error instead; rows that will be dropped are counted
in the verdict.
"""

from pathlib import Path

import pyarrow.parquet as pq

from scripts.adapters.base import FILES, LISTING, Images, Raw, read_listed, read_rows
from scripts.adapters.run import Conversion
from scripts.common.errors import UserError, run_program
from scripts.common.files import write_json
from scripts.common.program import parser
from scripts.media.folders import add_folders, named_folders
from scripts.sources import DATASETS, SOURCES, image_sources


def validate_source(source: str, raw: Path) -> dict:
    """The verdict on one source: its images counted, its annotation files parsed and compared with the published ones.

    Raises:
        UserError: an annotation file is not JSON, has another layout or no rows.
    """
    card = Raw({source: raw}).card(source)
    listing = {row["path"]: row for row in pq.read_table(raw / LISTING).to_pylist()}
    folders = SOURCES[source].folders
    files = {}
    for file in SOURCES[source].files:
        if file.path in listing:
            row = listing[file.path]
            place = raw / FILES / file.path
            rows = len(read_rows(read_listed(place, row["sha256"]), place, file))
            files[file.path] = {"rows": rows, "bytes": row["bytes"], "sha256": row["sha256"], "published": file.sha256}
    return {
        "v": 1,
        "name": source,
        "ok": True,
        "provided_by": card["provided_by"],
        "sha256": card["sha256"],
        "files": files,
        "images": sum(path.startswith(folders) for path in listing) if folders else 0,
        "problems": _differences(files) if card["provided_by"] == "data_path" else [],
    }


def _differences(files: dict[str, dict]) -> list[str]:
    """Files that are not the published ones: worth knowing, not wrong."""
    return [
        f"{path} is not the published file (its sha256 is another)"
        for path, file in files.items()
        if file["published"] not in (None, file["sha256"])
    ]


def validate_dataset(dataset: str, folders: dict[str, Path]) -> dict:
    """The verdict on one dataset: a trial conversion in which every listed image counts as readable.

    Raises:
        UserError: a source is not given, or no row can be used.
    """
    raw = Raw(folders)
    images = Images.of_listing(raw, image_sources(dataset))
    conversion = Conversion(dataset, raw, images)
    for _ in conversion:
        pass
    return {
        "v": 1,
        "name": dataset,
        "ok": True,
        "rows": conversion.rows,
        "expected": conversion.expected(),
        "records": conversion.records,
        "images_named": len(images.named),
        "images_present": len(images.found),
        "problems": conversion.dropped.as_dict(),
        "notes": conversion.noted.as_dict(),
    }


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--source", choices=sorted(SOURCES), help="judge this source")
    what.add_argument("--dataset", choices=sorted(DATASETS), help="judge this dataset")
    add_folders(arguments, "--raw", "raw/<source> of the source, or of every source that the dataset reads")
    arguments.add_argument("--out", type=Path, required=True, help="verdict to write")
    args = arguments.parse_args()
    folders = named_folders(args.raw, "--raw")
    if args.source:
        if len(folders) != 1:
            raise UserError("--source needs exactly one folder after --raw")
        verdict = validate_source(args.source, *folders.values())
        print(f"{args.source}: {len(verdict['files'])} annotation files, {verdict['images']} images")
    else:
        verdict = validate_dataset(args.dataset, folders)
        lost = sum(entry["count"] for entry in verdict["problems"].values())
        images = f"{verdict['images_present']} of {verdict['images_named']} images there"
        print(f"{args.dataset}: {verdict['rows']} rows, {lost} of them unusable; {images}")
    write_json(args.out, verdict)


if __name__ == "__main__":
    run_program(main)
