"""Judge raw data before anything is built of it: a source by itself, or a dataset across its sources.

Reads `raw/<source>` as fetch left it; images are looked up by name, not opened. Writes one verdict. What cannot be
built at all (a broken or empty file, no usable row) ends with an error instead; rows that will be dropped are counted
in the verdict.
"""

from collections import Counter
from pathlib import Path

from scripts.adapters.conversion import Conversion, dataset_entry
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.raw import IMAGES, LISTING, RawFiles
from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import read_json, read_table, write_json
from scripts.media.source_folders import add_folders, named_folders

_EXAMPLES = 20


def validate_source(source: str, raw: Path) -> dict:
    """The verdict on one source: its images counted, its annotation files parsed and compared with the published ones.

    Raises:
        UserError: an annotation file is damaged, has another layout or no rows.
    """
    found = RawFiles({source: raw})
    card = found.card(source)
    listing = {row["path"]: row for row in read_table(raw / LISTING).to_pylist()}
    images = read_table(raw / IMAGES, columns=["path", "fault"])
    faults = Counter(fault for fault in images["fault"].to_pylist() if fault)
    sets = {
        folder: {"images": sum(path.startswith(folder) for path in images["path"].to_pylist()), **entry}
        for folder, entry in card["image_sets"].items()
    }
    files = {
        path: {"rows": len(found.rows(path)), "found": card["annotations"][path]["found"]}
        for path in card["annotations"]
    }
    drawn = card["provided_by"] == "miniature"
    return {
        "v": 1,
        "name": source,
        "version": card["version"],
        "ok": True,
        "provided_by": card["provided_by"],
        "sha256": card["sha256"],
        "files": files,
        "images": images.num_rows,
        "image_sets": sets,
        "faults": dict(sorted(faults.items())),
        "notes": [f"{note.reason}: {note.example}" for note in found.notes[:_EXAMPLES]],
        "problems": [] if drawn else [*_differences(card["published"], listing), *_shortfalls(sets)],
    }


def _differences(published: dict[str, dict], listing: dict[str, dict]) -> list[str]:
    """Files that are not the published ones: worth knowing, not wrong."""
    problems = []
    for path, known in sorted(published.items()):
        found = listing[path]
        if known["bytes"] not in (None, found["bytes"]):
            problems.append(
                f"{path} is not the published file: it has {found['bytes']} bytes instead of {known['bytes']}"
            )
        elif found["sha256"] and known["sha256"] not in (None, found["sha256"]):
            problems.append(f"{path} is not the published file (its sha256 is another)")
    return problems


def _shortfalls(sets: dict[str, dict]) -> list[str]:
    """Sets of images that have fewer than the published ones."""
    return [
        f"{folder} has {entry['images']} images, {entry['expected']} are published"
        for folder, entry in sets.items()
        if entry["expected"] is not None and 0 < entry["images"] < entry["expected"]
    ]


def validate_dataset(dataset: str, folders: dict[str, Path], wanted: dict[str, list[str]] | None = None) -> dict:
    """The verdict on one dataset: a trial conversion in which every listed image counts as readable.

    `wanted` holds paths of images by source, where only a taste is asked for.

    Raises:
        UserError: a source is not given, or no row can be used.
    """
    raw = RawFiles(folders)
    images = ImageLookup.from_listing(raw, dataset_entry(dataset, raw).image_sources, wanted)
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
    what.add_argument("--source", help="judge this source")
    what.add_argument("--dataset", help="judge this dataset")
    add_folders(arguments, "--raw", "raw/<source> of the source, or of every source that the dataset reads")
    arguments.add_argument("--out", type=Path, required=True, help="verdict to write")
    arguments.add_argument("--subset", type=Path, help="raw/subset.json, where only a taste is asked for")
    args = arguments.parse_args()
    folders = named_folders(args.raw, "--raw")
    if args.source:
        if len(folders) != 1:
            raise UserError("--source needs exactly one folder after --raw")
        verdict = validate_source(args.source, *folders.values())
        print(f"{args.source}: {len(verdict['files'])} annotation files, {verdict['images']} images")
    else:
        verdict = validate_dataset(args.dataset, folders, read_json(args.subset)["images"] if args.subset else None)
        lost = sum(entry["count"] for entry in verdict["problems"].values())
        images = f"{verdict['images_present']} of {verdict['images_named']} images there"
        print(f"{args.dataset}: {verdict['rows']} rows, {lost} of them unusable; {images}")
    write_json(args.out, verdict)


if __name__ == "__main__":
    run_program(main)
