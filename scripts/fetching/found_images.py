"""Where the files and images of a source are below the data path: in their folder, or in one of the containers."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from scripts.common.errors import UserError
from scripts.config.registry import REGISTRY, AnnotationFile, ImageSet, Source, glob_pattern
from scripts.fetching.receipts import is_partial
from scripts.media.image_folder import images_below


def find_rows(source: Source, data_path: Path, file: AnnotationFile) -> list[str]:
    """The paths, below `data_path`, of the files with the rows of `file`: itself, or its first alternative that exists.

    Raises:
        UserError: there are none.
    """
    for form in file.forms():
        if found := matching_files(data_path, form):
            return found
    raise missing(source, file.path, data_path / file.path)


class FoundImages(NamedTuple):
    """Where the images of a set were found.

    Attributes:
        folder: of the set, below the data path.
        separate: paths of images that are files.
        containers: paths of container files.
        faults: why other files with the name of an image cannot be used, by path.
        root: of the containers, see `list_container`.
    """

    folder: str
    separate: list[str]
    containers: list[str]
    faults: dict[str, str]
    root: str | None = None


def find_images(
    source: Source, data_path: Path, images: ImageSet, subset: Collection[str] | None = None
) -> FoundImages:
    """Find the images of a set below `data_path`: in their folder, else in the first container that exists.

    A folder into which only some images were downloaded (for a subset) is ignored where all images are needed.

    Args:
        source: to which the set belongs.
        data_path: folder with the raw files of all sources.
        images: the set.
        subset: paths of the only images to list; None: all.

    Raises:
        UserError: there are none, and the set is not optional.
    """
    folder = data_path / images.folder
    partial = subset is None and is_partial(data_path, images.folder)
    usable = folder.is_dir() and not images.archived and not partial
    others = {each.folder.rstrip("/") for each in source.images if each is not images}
    own = source.name not in REGISTRY.sources
    files = dict(images_below(folder, data_path, others, follow=own)) if usable else {}
    if subset is not None:
        files = {path: fault for path, fault in files.items() if path in subset}
    separate = [path for path, fault in files.items() if not fault]
    if separate:
        return FoundImages(images.folder, separate, [], {path: fault for path, fault in files.items() if fault})
    for pattern in images.containers:
        if found := matching_files(data_path, pattern):
            return FoundImages(images.folder, [], found, {})
    if images.optional:
        return FoundImages(images.folder, [], [], {})
    if usable:
        raise UserError(f"source {source.name!r}: {folder} contains no image. To get them: {source.how_to_get}")
    raise missing(source, images.folder, folder)


def matching_files(data_path: Path, pattern: str) -> list[str]:
    """The paths below `data_path` that match `pattern`, sorted."""
    if (data_path / pattern).is_file():
        return [pattern]
    folder, name = os.path.split(pattern)
    if "*" not in name:
        return []
    found = (
        path
        for path in (data_path / folder).glob(glob_pattern(name))
        if path.is_file() and not path.name.startswith(".")
    )
    return sorted(_encodable(path.relative_to(data_path).as_posix()) for path in found)


def missing(source: Source, path: str, full_path: Path) -> UserError:
    """The error for a raw file or folder that does not exist."""
    users = REGISTRY.users_of(source.name, path) if source.name in REGISTRY.sources else [source.name]
    return UserError(
        f"source {source.name!r}: {path} is not there (looked at {full_path}). It is needed by {', '.join(users)}. "
        f"To get it: {source.how_to_get}; paths are below your data path"
    )


def _encodable(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"the file name {path!r} is not valid UTF-8: rename the file") from None
    return path
