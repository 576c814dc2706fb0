"""Provide one source: get what is missing if that is subset, find its files and images, write down what is there.

Reads the files of --source below --data-path, which are left where they are; with --download, those that are missing
are fetched into it first. Writes, below --out, `files` (a link to the data path), `files.parquet` (path, bytes and
sha256 of every file), `images.parquet` (every image, also inside of archives) and, last, `source.json`, the card.
"""

import os
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa

from scripts.adapters.raw import CARD, FILES, IMAGES, IMAGES_SCHEMA, LISTING, LISTING_SCHEMA
from scripts.common.cli import leave_out_pandas, load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import file_sha256, read_json, table_sha256, write_json, write_table
from scripts.common.progress import track
from scripts.config.custom import CustomDatasetConfig
from scripts.config.registry import (
    REGISTRY,
    SOURCES,
    AnnotationFile,
    Dataset,
    ImageSet,
    Source,
    custom_dataset,
    custom_source,
)
from scripts.fetching.receipts import is_partial, valid
from scripts.media.containers import FILE, ImageEntry, list_container
from scripts.media.keys import is_image

if TYPE_CHECKING:
    # The libraries that fetch take a second to import, and most runs find everything in its place.
    from scripts.fetching.connection import FetchOptions


def fetch(
    source: Source,
    data_path: Path,
    out: Path,
    require: Sequence[str] = (),
    dataset: Dataset | None = None,
    subset: Collection[str] | None = None,
    download: "FetchOptions | None" = None,
) -> dict:
    """List what `data_path` holds of `source`; return the card.

    Args:
        require: files, and folders ending in "/", below `data_path`; empty means all that belongs to the source.
        dataset: what the source is for, where the registry does not know it.
        subset: paths of the only images to list, where a taste is asked for.
        download: how to fetch what is missing; None: not at all.

    Raises:
        UserError: something required is absent or damaged, or a folder holds no image.
    """
    required = sorted(set(require)) or source.paths()
    unknown = sorted(set(required) - set(source.paths()))
    if unknown:
        raise UserError(f"{unknown[0]!r} does not belong to the source {source.name!r}, which has {source.paths()}")
    files = [file for file in source.files if file.path in required]
    sets = [images for images in source.images if images.folder in required]
    if download is not None:
        _bring(source, data_path, files, sets, subset, download)
    annotations = {file.path: find_rows(source, data_path, file) for file in files}
    stores = [find_images(source, data_path, images, subset) for images in sets]
    optional = [path for path in source.optional_files if (data_path / path).is_file()]

    loose = {path for store in stores for path in store.loose}
    rows = {path for found in annotations.values() for path in found} | set(optional)
    listing = _hashed(source.name, data_path, sorted(rows | loose))
    entries = [ImageEntry(row["path"], "", FILE, 0, row["bytes"]) for row in listing if row["path"] in loose]
    for store in stores:
        for container in store.containers:
            found = list_container(data_path / container, container, store.folder)
            entries += [entry for entry in found if subset is None or entry.path in subset]
            listing.append(_container(source, data_path, container))
    table = pa.Table.from_pylist(sorted(listing, key=lambda row: row["path"]), LISTING_SCHEMA)
    columns = zip(*sorted(entries), strict=True) if entries else [[]] * len(IMAGES_SCHEMA)
    images = pa.Table.from_arrays([pa.array(list(column)) for column in columns], schema=IMAGES_SCHEMA)
    write_table(out / LISTING, table)
    write_table(out / IMAGES, images)
    _link(data_path, out / FILES)
    card = {
        "v": 1,
        "source": source.name,
        "version": source.version,
        "licence": source.licence,
        "terms": list(source.terms),
        "provided_by": "miniature" if (data_path / "miniature.json").is_file() else "data_path",
        "required": required,
        "published": _published(source, listing),
        "annotations": {path: _annotation(source.file(path), found) for path, found in annotations.items()},
        "image_sets": {store.folder: _image_set(source, store) for store in stores},
        "optional_files": optional,
        "fetched": _fetched(data_path, listing),
        "subset": subset is not None,
        "files": table.num_rows,
        "images": images.num_rows,
        "bytes": sum(row["bytes"] for row in listing),
        "sha256": table_sha256(table),
    }
    if dataset is not None:
        card["dataset"] = dataset.model_dump(mode="json")
    write_json(out / CARD, card)
    return card


def find_rows(source: Source, data_path: Path, file: AnnotationFile) -> list[str]:
    """The files that hold the rows of `file`, below `data_path`: itself, or those of the first other form that is
    there.

    Raises:
        UserError: there are none.
    """
    for form in file.forms():
        if found := _matching(data_path, form):
            return found
    raise missing(source, file.path, data_path / file.path)


class FoundImages(NamedTuple):
    """Where the images of a set were found: files of their own, or containers."""

    folder: str
    loose: list[str]
    containers: list[str]


def find_images(
    source: Source, data_path: Path, images: ImageSet, subset: Collection[str] | None = None
) -> FoundImages:
    """Find the images of a set below `data_path`: in their folder, else in the first container that is there.

    A folder that was filled for a taste counts only where a taste is `subset`, which then names the images.

    Raises:
        UserError: there are none, and the set is not optional.
    """
    place = data_path / images.folder
    whole = place.is_dir() and (subset is not None or not is_partial(data_path, images.folder))
    loose = [path for path in _images_in(data_path, place) if subset is None or path in subset] if whole else []
    if loose:
        return FoundImages(images.folder, loose, [])
    for pattern in images.containers:
        if found := _matching(data_path, pattern):
            return FoundImages(images.folder, [], found)
    if images.optional:
        return FoundImages(images.folder, [], [])
    if whole:
        raise UserError(f"source {source.name!r}: {place} holds no image. To get them: {source.how_to_get}")
    raise missing(source, images.folder, place)


def _matching(data_path: Path, pattern: str) -> list[str]:
    """The files below `data_path` that `pattern` stands for, sorted."""
    if "*" not in pattern:
        return [pattern] if (data_path / pattern).is_file() else []
    folder, name = os.path.split(pattern)
    found = (path for path in (data_path / folder).glob(name) if path.is_file() and not path.name.startswith("."))
    return sorted(_encodable(path.relative_to(data_path).as_posix()) for path in found)


def _images_in(data_path: Path, place: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(place, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if is_image(name):
                yield _encodable((Path(folder) / name).relative_to(data_path).as_posix())


def missing(source: Source, path: str, place: Path) -> UserError:
    """The error for a raw file or folder that is not there."""
    users = REGISTRY.users_of(source.name, path) if source.name in REGISTRY.sources else [source.name]
    return UserError(
        f"source {source.name!r}: {path} is not there (looked at {place}). It is needed by {', '.join(users)}. "
        f"To get it: {source.how_to_get}; paths are below your data path"
    )


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}")


def _encodable(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"the file name {path!r} is not valid UTF-8: rename the file") from None
    return path


def _bring(
    source: Source,
    data_path: Path,
    files: list[AnnotationFile],
    sets: list[ImageSet],
    subset: Collection[str] | None,
    options: "FetchOptions",
) -> None:
    """Fetch what is missing of `files` and `sets`."""
    from scripts.fetching.fetch_missing import fetch_missing, fetch_missing_images

    for file in files:
        if not any(_matching(data_path, form) for form in file.forms()):
            fetch_missing(source, data_path, file.path, file.forms(), options)
    lacking = [images for images in sets if not _is_there(source, data_path, images, subset)]
    if lacking and subset is not None:
        fetch_missing_images(source, data_path, subset, options)
    elif lacking:
        for images in lacking:
            fetch_missing(source, data_path, images.folder, images.containers, options)


def _is_there(source: Source, data_path: Path, images: ImageSet, subset: Collection[str] | None) -> bool:
    try:
        store = find_images(source, data_path, images, subset)
    except UserError:
        return False
    if store.containers:
        return True
    if subset is None:
        return bool(store.loose)
    return not {path for path in subset if path.startswith(images.folder)} - set(store.loose)


def _container(source: Source, data_path: Path, path: str) -> dict:
    """The row of a container; it is hashed only where that can tell whether it is the published one.

    An archive of 20 GB, or JSON of 70, is read once less for it, and every image in it gets a hash of its own later.
    """
    size = (data_path / path).stat().st_size
    published = next((item for item in source.downloads if item.path == path), None)
    sha256 = _known(data_path, path)
    if sha256 is None and published and published.sha256 and published.bytes in (None, size):
        sha256 = file_sha256(data_path / path)
    return {"path": path, "bytes": size, "sha256": sha256 or ""}


def _known(data_path: Path, path: str) -> str | None:
    """The hash of a file that was fetched and has not changed since."""
    receipt = valid(data_path, path)
    return receipt.sha256 if receipt else None


def _fetched(data_path: Path, listing: list[dict]) -> dict[str, str]:
    """The addresses of those of the files that were fetched as a whole."""
    receipts = {row["path"]: valid(data_path, row["path"]) for row in listing}
    return {path: receipt.address for path, receipt in sorted(receipts.items()) if receipt}


def _hashed(source: str, data_path: Path, paths: list[str]) -> list[dict]:
    rows = []
    for path in track(paths, f"{source}: files read", len(paths)):
        place = data_path / path
        try:
            sha256 = _known(data_path, path) or file_sha256(place)
            rows.append({"path": path, "bytes": place.stat().st_size, "sha256": sha256})
        except OSError as error:
            raise UserError(f"{place} cannot be read: {error.strerror}") from None
    return rows


def _annotation(file: AnnotationFile, found: list[str]) -> dict:
    # Another form of the same rows is not laid out as the first.
    layout = (
        {"container": file.container, "key": file.key} if found == [file.path] else {"container": "any", "key": None}
    )
    return {"found": found, **layout}


def _published(source: Source, listing: list[dict]) -> dict[str, dict]:
    """Size and hash of those of the files that are published under the same name."""
    known = {item.path: {"bytes": item.bytes, "sha256": item.sha256} for item in source.downloads}
    return {row["path"]: known[row["path"]] for row in listing if row["path"] in known}


def _image_set(source: Source, store: FoundImages) -> dict:
    expected = next(images.expected for images in source.images if images.folder == store.folder)
    return {"containers": store.containers, "expected": expected}


def _link(target: Path, link: Path) -> None:
    """Point `link` at `target` in one step; a relative target gives a link that may move together with it."""
    goal = target if target.is_absolute() else os.path.relpath(target.resolve(), link.parent.resolve())
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link} is not a link: remove it, then fetch again")
    with tempfile.TemporaryDirectory(dir=link.parent, prefix=f".{link.name}.") as folder:
        temporary = Path(folder) / link.name
        temporary.symlink_to(goal)
        os.replace(temporary, link)


def _options(offline: bool) -> "FetchOptions":
    from scripts.fetching.connection import FetchOptions

    return FetchOptions(offline=offline)


def main() -> None:
    """Run the program."""
    leave_out_pandas()
    arguments = parser(__doc__)
    arguments.add_argument("--source", required=True, help=f"what to provide: one of {', '.join(sorted(SOURCES))}")
    arguments.add_argument("--custom", help="section `custom.<source>` as JSON, or @file: a source of the user's own")
    arguments.add_argument("--data-path", type=Path, required=True, help="folder with the raw files of all sources")
    arguments.add_argument(
        "--require", action="append", default=[], metavar="PATH", help="file or folder/ in it; repeatable; default: all"
    )
    arguments.add_argument("--out", type=Path, required=True, help="folder to write: raw/<source>")
    arguments.add_argument("--subset", type=Path, help="raw/subset.json, where only a taste is asked for")
    arguments.add_argument("--download", action="store_true", help="fetch what is missing into the data path")
    arguments.add_argument(
        "--offline",
        action="store_true",
        default=bool(os.environ.get("VISUALCHAT_OFFLINE")),
        help="with --download: reach for nothing, but say what is missing (also: VISUALCHAT_OFFLINE=1)",
    )
    args = arguments.parse_args()
    if not args.custom and args.source not in SOURCES:
        raise UserError(f"there is no source {args.source!r}; those known are {', '.join(sorted(SOURCES))}")
    own = load_settings(CustomDatasetConfig, args.custom) if args.custom else None
    source = custom_source(args.source, own) if own else SOURCES[args.source]
    card = fetch(
        source,
        args.data_path,
        args.out,
        args.require,
        dataset=custom_dataset(args.source, own) if own else None,
        subset=frozenset(read_json(args.subset)["images"][args.source]) if args.subset else None,
        download=_options(args.offline) if args.download else None,
    )
    print(f"{args.source}: {card['files']} files, {card['images']} images, {card['bytes'] / 1e6:.1f} MB")


if __name__ == "__main__":
    run_program(main)
