"""Validate raw data before anything is built from it: a source by itself, or a dataset across its sources.

Reads `raw/<source>` as written by fetch; images are looked up by name, not opened. Writes one JSON file with the
result, in which the rows that will be dropped are counted. Data from which nothing can be built (a damaged or empty
file, no usable row) is an error.
"""

from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from scripts.adapters.conversion import Conversion, dataset_entry
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import RawFiles
from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import read_json, read_table, write_json
from scripts.config.registry import image_prefix
from scripts.media.listing import IMAGES_TABLE, ListedFile, listed_files
from scripts.media.source_folders import add_folders, named_folders

_EXAMPLES = 20


def validate_source(source: str, raw: Path) -> dict[str, Any]:
    """The result for one source: its images counted, its annotation files parsed and compared with the published ones.

    Args:
        source: its name.
        raw: its folder `raw/<source>`.

    Raises:
        UserError: an annotation file is damaged, has another layout or no rows.
    """
    raw_files = RawFiles({source: raw})
    manifest = raw_files.manifest(source)
    listed = listed_files(raw, manifest["published"])
    images = read_table(raw / IMAGES_TABLE, columns=["path", "fault"])
    faults = {entry["values"]: entry["counts"] for entry in pc.value_counts(images["fault"]).to_pylist()}
    sets = {
        folder: {"images": pc.sum(pc.starts_with(images["path"], image_prefix(folder))).as_py() or 0, **entry}
        for folder, entry in manifest["image_sets"].items()
    }
    files = {
        path: {"rows": _count_rows(raw_files, path), "found": entry["found"]}
        for path, entry in manifest["annotations"].items()
    }
    notes = [*raw_files.listed_notes(), *raw_files.notes]
    synthetic = manifest["provided_by"] == "miniature"
    return {
        "v": 1,
        "name": source,
        "version": manifest["version"],
        "ok": True,
        "provided_by": manifest["provided_by"],
        "sha256": manifest["sha256"],
        "images_sha256": manifest["images_sha256"],
        "files": files,
        "images": images.num_rows,
        "image_sets": sets,
        "faults": {fault: count for fault, count in sorted(faults.items()) if fault},
        "notes": [f"{note.reason}: {note.example}" for note in notes[:_EXAMPLES]],
        "problems": [] if synthetic else [*_differences(manifest["published"], listed), *_shortfalls(sets)],
    }


def _count_rows(raw_files: RawFiles, path: str) -> int:
    """The number of rows of a file; of the notes about them only as many are kept as are shown."""
    rows = 0
    for _ in raw_files.rows(path):
        rows += 1
        del raw_files.notes[_EXAMPLES:]
    return rows


def _differences(published: dict[str, dict], listed: dict[str, ListedFile]) -> list[str]:
    """Files that differ from the published ones, which is worth knowing but no error."""
    problems = []
    for path, known in sorted(published.items()):
        found = listed[path]
        if known["bytes"] not in (None, found.bytes):
            problems.append(f"{path} is not the published file: it has {found.bytes} bytes instead of {known['bytes']}")
        elif found.sha256 and known["sha256"] not in (None, found.sha256):
            problems.append(f"{path} is not the published file (its sha256 is another)")
    return problems


def _shortfalls(sets: dict[str, dict]) -> list[str]:
    """Sets of images that have fewer images than the published ones."""
    return [
        f"{folder} has {entry['images']} images, {entry['expected']} are published"
        for folder, entry in sets.items()
        if entry["expected"] is not None and 0 < entry["images"] < entry["expected"]
    ]


def validate_dataset(
    dataset: str, folders: dict[str, Path], subset: dict[str, list[str]] | None = None
) -> dict[str, Any]:
    """The result for one dataset: a trial conversion in which every listed image counts as readable.

    Args:
        dataset: its name.
        folders: `raw/<source>` of every source that it reads.
        subset: paths of the only images to use, by source; None: all.

    Raises:
        UserError: a source is not given, or no row can be used.
    """
    raw = RawFiles(folders)
    images = ImageLookup.from_listing(raw, dataset_entry(dataset, raw).image_sources, subset)
    conversion = Conversion(dataset, raw, images)
    for _ in conversion:
        pass
    return {
        "v": 1,
        "name": dataset,
        "ok": True,
        # Conversion depends on this file alone: it differs whenever a row or a listed image does.
        "sources": {name: [raw.manifest(name)[key] for key in ("sha256", "images_sha256")] for name in sorted(folders)},
        "rows": conversion.rows,
        "expected": conversion.expected(),
        "records": conversion.records,
        "images_named": images.named,
        "images_present": images.found,
        "problems": conversion.dropped.as_dict(),
        "notes": conversion.noted.as_dict(),
    }


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--source", help="validate this source")
    what.add_argument("--dataset", help="validate this dataset")
    add_folders(arguments, "--raw", "raw/<source> of the source, or of every source that the dataset reads")
    arguments.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments.add_argument("--subset", type=Path, help="raw/subset.json: use only the images listed in it")
    args = arguments.parse_args()
    folders = named_folders(args.raw, "--raw")
    if args.source:
        if len(folders) != 1:
            raise UserError("--source needs exactly one folder after --raw")
        (folder,) = folders.values()
        result = validate_source(args.source, folder)
        print(f"{args.source}: {len(result['files'])} annotation files, {result['images']} images")
    else:
        result = validate_dataset(args.dataset, folders, read_json(args.subset)["images"] if args.subset else None)
        lost = sum(entry["count"] for entry in result["problems"].values())
        images = f"{result['images_present']} of {result['images_named']} images present"
        print(f"{args.dataset}: {result['rows']} rows, {lost} of them unusable; {images}")
    write_json(args.out, result)


if __name__ == "__main__":
    run_program(main)
