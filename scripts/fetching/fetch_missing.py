"""Downloading the missing files of a source.

A file of rows, or a set of images, may be published in several forms. If none exists, the downloads of these forms are
tried in the order of the registry.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from scripts.common.errors import UserError
from scripts.config.registry import Download, Source
from scripts.fetching.connection import FetchOptions
from scripts.fetching.obtain import obtain, obtain_images


def fetch_missing(source: Source, data_path: Path, path: str, forms: Sequence[str], options: FetchOptions) -> None:
    """Download `path` in the first of its `forms` that is available.

    Args:
        source: to which it belongs.
        data_path: folder to download into.
        path: a file, or a folder of images ending in "/".
        forms: paths or patterns of the files that contain it.
        options: how to download.

    Raises:
        UserError: no form is available; the message has the error of every download, or how to download it by hand.
    """
    errors = []
    for download in _downloads(source, forms):
        try:
            obtain(download, data_path, options)
            return
        except UserError as error:
            errors.append(str(error))
    if not errors:
        raise UserError(f"{path} cannot be downloaded automatically, download it by hand: {source.how_to_get}")
    raise UserError(" ".join(errors))


def fetch_missing_images(source: Source, data_path: Path, paths: Collection[str], options: FetchOptions) -> None:
    """Download single images from the archives of `source`; images that no archive contains stay missing.

    Args:
        source: to which the images belong.
        data_path: folder to download into.
        paths: of the images, below `data_path`.
        options: how to download.

    Raises:
        UserError: an archive cannot be reached, or has no address.
    """
    names = {path.rsplit("/", 1)[1] for path in paths}
    for images in source.images:
        in_set = {name for name in names if f"{images.folder}{name}" in paths} or names
        present = {name for name in in_set if (data_path / images.folder / name).is_file()}
        downloads = _downloads(source, images.containers)
        if not downloads:
            raise UserError(f"{images.folder} has no archive that can be downloaded in part: {source.how_to_get}")
        missing = set(obtain_images(downloads[0], data_path, images.folder, in_set - present, options))
        # An image with a path in train2017 may be published in val2017: the next set is tried for the missing ones.
        names = (names - in_set) | missing
        if not names:
            return


def _downloads(source: Source, forms: Sequence[str]) -> list[Download]:
    """The downloads that provide one of `forms`, in the order of the registry."""
    return [
        download
        for download in source.downloads
        if download.path in forms or (download.path.endswith("/") and any(f.startswith(download.path) for f in forms))
    ]
