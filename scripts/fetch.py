"""List the raw files and images of one source and, if asked to, download the missing ones first.

Reads the files of --source below --data-path, where they stay; with --download, missing files are downloaded there
first. Writes, below --out, `files` (a link to the data path), `files.parquet` (path, bytes and sha256 of every file),
`images.parquet` (every image with its key, also inside of archives, sorted by key) and, last, `source.json`, the
manifest of the source.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from scripts.adapters.raw import DATA_LINK, SOURCE_MANIFEST, own_images, own_rows
from scripts.common.atomic_folder import point_link
from scripts.common.cli import hide_pandas, load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import file_sha256, read_json, write_json, write_table
from scripts.common.progress import track
from scripts.common.table_hash import table_sha256
from scripts.config.custom import CustomDatasetConfig
from scripts.config.registry import (
    SOURCES,
    WHOLE_FOLDER,
    AnnotationFile,
    Dataset,
    ImageSet,
    Source,
    custom_dataset,
    custom_source,
    image_prefix,
)
from scripts.fetching.found_images import FoundImages, find_images, find_rows, matching_files
from scripts.fetching.receipts import recorded, valid
from scripts.media.containers import FILE, ImageEntry, archive_root, list_container
from scripts.media.listing import (
    FILES_SCHEMA,
    FILES_TABLE,
    IMAGES_TABLE,
    entries_table,
    image_listing,
    separate_images,
)

if TYPE_CHECKING:
    # The download libraries take a second to import, and most runs find all files present.
    from scripts.fetching.connection import FetchOptions

_ROWS_AT_ONCE = 1 << 14


def fetch(
    source: Source,
    data_path: Path,
    out: Path,
    require: Sequence[str] = (),
    dataset: Dataset | None = None,
    subset: Collection[str] | None = None,
    download: "FetchOptions | None" = None,
) -> dict[str, Any]:
    """List the files of `source` below `data_path`; return the manifest.

    Args:
        source: its entry in the registry.
        data_path: folder with the raw files of all sources.
        out: folder to write into.
        require: files, and folders ending in "/", below `data_path`; empty: all that belong to the source.
        dataset: the entry of the dataset, for a custom source, whose dataset is not in the registry.
        subset: paths of the only images to list; None: all.
        download: options for downloading missing files; None: do not download.

    Raises:
        UserError: something required is missing or damaged, or a folder contains no image.
    """
    required = sorted(set(require)) or source.paths()
    unknown = sorted(set(required) - set(source.paths()))
    if unknown:
        raise UserError(f"{unknown[0]!r} does not belong to the source {source.name!r}, which has {source.paths()}")
    files = [file for file in source.files if file.path in required]
    sets = [images for images in source.images if images.folder in required]
    if download is not None:
        _download_missing(source, data_path, files, sets, subset, download)
    if dataset is None:
        annotations = {file.path: _annotation(file, find_rows(source, data_path, file)) for file in files}
    else:
        archives = tuple(path for images in sets for path in images.containers)
        dataset, annotations, notes = own_rows().found_rows(dataset, data_path, archives)
    optional = [path for path in source.optional_files if (data_path / path).is_file()]
    rows = {path for annotation in annotations.values() for path in annotation["found"]} | set(optional)
    entries = []
    if dataset is not None:
        in_rows = own_images().EmbeddedImages(data_path, dataset.model_dump(mode="json"), annotations)
        entries.append(entries_table(in_rows.entries()))
        if not in_rows.names_images:
            # Images that happen to lie below a folder belong to its rows only if these name any.
            sets = [images for images in sets if images.folder != WHOLE_FOLDER]
    found_sets = [find_images(source, data_path, images, subset) for images in sets]
    if dataset is not None:
        # Rows of a user name images as their archive does; published ones name them without its folders.
        paths = [[data_path / path for path in found.containers] for found in found_sets]
        found_sets = [found._replace(root=archive_root(each)) for found, each in zip(found_sets, paths, strict=True)]

    with_receipt = recorded(data_path)
    separate = {path for found in found_sets for path in found.separate}
    hashed, unreadable = _hashed(source.name, data_path, sorted(rows | separate), with_receipt, separate - rows)
    others = pa.array(sorted(rows - separate), pa.string())
    entries.append(separate_images(hashed.filter(pc.invert(pc.is_in(hashed["path"], others)))))
    faults = dict.fromkeys(unreadable, "cannot_be_read")
    faults |= {path: fault for found in found_sets for path, fault in found.faults.items()}
    entries.append(entries_table(ImageEntry(path, "", FILE, 0, 0, fault=fault) for path, fault in faults.items()))
    containers = []
    for found in found_sets:
        for container in found.containers:
            in_container = list_container(data_path / container, container, image_prefix(found.folder), found.root)
            entries.append(entries_table(entry for entry in in_container if subset is None or entry.path in subset))
            if container not in rows:
                containers.append(_container(source, data_path, container))
    table = pa.concat_tables([hashed, pa.Table.from_pylist(containers, FILES_SCHEMA)]).sort_by("path")
    images = image_listing(pa.concat_tables(entries))
    write_table(out / FILES_TABLE, table)
    write_table(out / IMAGES_TABLE, images)
    point_link(data_path, out / DATA_LINK)
    manifest = {
        "v": 1,
        "source": source.name,
        "version": source.version,
        "licence": source.licence,
        "terms": list(source.terms),
        "provided_by": "miniature" if (data_path / "miniature.json").is_file() else "data_path",
        "required": required,
        "published": _published(source, table),
        "annotations": annotations,
        "image_sets": {found.folder: _image_set(source, found) for found in found_sets},
        "optional_files": optional,
        "fetched": _fetched(data_path, table, with_receipt),
        "subset": subset is not None,
        "files": table.num_rows,
        "images": images.num_rows,
        "bytes": pc.sum(table["bytes"]).as_py() or 0,
        "sha256": table_sha256(table),
        # Of the members of archives, which change without the size of the archive.
        "images_sha256": table_sha256(images),
    }
    if dataset is not None:
        manifest |= {"dataset": dataset.model_dump(mode="json"), "notes": notes}
    write_json(out / SOURCE_MANIFEST, manifest)
    return manifest


def _download_missing(
    source: Source,
    data_path: Path,
    files: list[AnnotationFile],
    sets: list[ImageSet],
    subset: Collection[str] | None,
    options: "FetchOptions",
) -> None:
    """Download what is missing of `files` and `sets`."""
    from scripts.fetching.fetch_missing import fetch_missing, fetch_missing_images

    for file in files:
        if not any(matching_files(data_path, form) for form in file.forms()):
            fetch_missing(source, data_path, file.path, file.forms(), options)
    incomplete = [images for images in sets if not _is_complete(source, data_path, images, subset)]
    if incomplete and subset is not None:
        fetch_missing_images(source, data_path, subset, options)
    elif incomplete:
        for images in incomplete:
            fetch_missing(source, data_path, images.folder, images.containers, options)


def _is_complete(source: Source, data_path: Path, images: ImageSet, subset: Collection[str] | None) -> bool:
    """Whether there are images of a set; with a `subset`, whether all of its images are there."""
    try:
        found = find_images(source, data_path, images, subset)
    except UserError:
        return False
    if found.containers:
        return True
    if subset is None:
        return bool(found.separate)
    return not {path for path in subset if path.startswith(images.folder)} - set(found.separate)


def _container(source: Source, data_path: Path, path: str) -> dict[str, Any]:
    """The row of a container, which is hashed only if the hash of the published file is known.

    That saves reading an archive of 20 GB, or JSON of 70 GB, once; every image in it is hashed later.
    """
    size = (data_path / path).stat().st_size
    published = next((item for item in source.downloads if item.path == path), None)
    sha256 = _known_hash(data_path, path)
    if sha256 is None and published and published.sha256 and published.bytes in (None, size):
        sha256 = file_sha256(data_path / path)
    return {"path": path, "bytes": size, "sha256": sha256 or ""}


def _known_hash(data_path: Path, path: str) -> str | None:
    """The hash of a file that was downloaded and has not changed since."""
    receipt = valid(data_path, path)
    return receipt.sha256 if receipt else None


def _fetched(data_path: Path, table: pa.Table, with_receipt: Collection[str]) -> dict[str, str]:
    """The addresses of the listed files that were downloaded as a whole."""
    receipts = {path: valid(data_path, path) for path in _listed_among(table, with_receipt)}
    return {path: receipt.address for path, receipt in sorted(receipts.items()) if receipt}


def _listed_among(table: pa.Table, paths: Iterable[str]) -> list[str]:
    """Those of `paths` that are in the table of files."""
    listed = pc.is_in(table["path"], value_set=pa.array(sorted(paths), pa.string()))
    return table["path"].filter(listed).to_pylist()


def _hashed(
    source: str, data_path: Path, paths: list[str], with_receipt: Collection[str], images: Collection[str]
) -> tuple[pa.Table, list[str]]:
    """The rows of the table of files for `paths`, without the `images` that cannot be read, and these."""
    parts, unreadable = [], []
    rows: list[dict[str, Any]] = []
    for path in track(paths, f"{source}: files read", len(paths)):
        full_path = data_path / path
        try:
            known = _known_hash(data_path, path) if path in with_receipt else None
            rows.append({"path": path, "bytes": full_path.stat().st_size, "sha256": known or file_sha256(full_path)})
        except OSError as error:
            if path not in images:
                raise UserError(f"{full_path} cannot be read: {error.strerror}") from None
            unreadable.append(path)
        if len(rows) == _ROWS_AT_ONCE:
            parts.append(pa.Table.from_pylist(rows, FILES_SCHEMA))
            rows.clear()
    return pa.concat_tables([*parts, pa.Table.from_pylist(rows, FILES_SCHEMA)]), unreadable


def _annotation(file: AnnotationFile, found: list[str]) -> dict[str, Any]:
    # An alternative file has the same rows in another layout, which the registry does not describe.
    layout = (
        {"container": file.container, "key": file.key} if found == [file.path] else {"container": "any", "key": None}
    )
    return {"found": found, **layout}


def _published(source: Source, table: pa.Table) -> dict[str, dict[str, Any]]:
    """Published size and hash of those of the listed files for which they are known."""
    known = {item.path: {"bytes": item.bytes, "sha256": item.sha256} for item in source.downloads}
    return {path: known[path] for path in _listed_among(table, known)}


def _image_set(source: Source, found: FoundImages) -> dict[str, Any]:
    expected = next(images.expected for images in source.images if images.folder == found.folder)
    return {"containers": found.containers, "expected": expected} | ({"root": found.root} if found.root else {})


def main() -> None:
    """Run the program."""
    hide_pandas()
    arguments = parser(__doc__)
    arguments.add_argument("--source", required=True, help=f"name of the source: one of {', '.join(sorted(SOURCES))}")
    arguments.add_argument("--custom", help="section `custom.<source>` as JSON, or @file, for a custom source")
    arguments.add_argument("--data-path", type=Path, required=True, help="folder with the raw files of all sources")
    arguments.add_argument(
        "--require", action="append", default=[], metavar="PATH", help="file or folder/ in it; repeatable; default: all"
    )
    arguments.add_argument("--out", type=Path, required=True, help="folder to write: raw/<source>")
    arguments.add_argument("--subset", type=Path, help="raw/subset.json: list only the images in it")
    arguments.add_argument("--download", action="store_true", help="download missing files into the data path")
    arguments.add_argument(
        "--offline",
        action="store_true",
        default=bool(os.environ.get("VISUALCHAT_OFFLINE")),
        help="with --download: use no network, but name what is missing and how to get it (also: VISUALCHAT_OFFLINE=1)",
    )
    args = arguments.parse_args()
    if not args.custom and args.source not in SOURCES:
        raise UserError(f"there is no source {args.source!r}; those known are {', '.join(sorted(SOURCES))}")
    custom = load_settings(CustomDatasetConfig, args.custom) if args.custom else None
    download = None
    if args.download:
        from scripts.fetching.connection import FetchOptions

        download = FetchOptions(offline=args.offline)
    manifest = fetch(
        custom_source(args.source, custom) if custom else SOURCES[args.source],
        args.data_path,
        args.out,
        args.require,
        dataset=custom_dataset(args.source, custom) if custom else None,
        subset=frozenset(read_json(args.subset)["images"][args.source]) if args.subset else None,
        download=download,
    )
    print(f"{args.source}: {manifest['files']} files, {manifest['images']} images, {manifest['bytes'] / 1e6:.1f} MB")


if __name__ == "__main__":
    run_program(main)
