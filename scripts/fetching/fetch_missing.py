"""What of a source is not there yet, and which of its published files bring it.

A file of rows, or a set of images, may come in several forms. Where none is there, the downloads whose file is one of
these forms are tried in the registry's order.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from scripts.common.errors import UserError
from scripts.config.registry import Download, Source
from scripts.fetching.connection import FetchOptions
from scripts.fetching.obtain import obtain, obtain_images


def fetch_missing(source: Source, data_path: Path, path: str, forms: Sequence[str], options: FetchOptions) -> None:
    """Fetch what `path` (a file, or a folder of images ending in "/") needs, as the first of `forms` that can be had.

    Raises:
        UserError: none can; the message is that of every download tried, or says how a person gets it.
    """
    said = []
    for download in _downloads(source, forms):
        try:
            obtain(download, data_path, options)
            return
        except UserError as error:
            said.append(str(error))
    if not said:
        raise UserError(f"{path} cannot be fetched, a person has to get it: {source.how_to_get}")
    raise UserError(" ".join(said))


def fetch_missing_images(source: Source, data_path: Path, wanted: Collection[str], options: FetchOptions) -> None:
    """Fetch single images, named by their paths, out of the archives of `source`; what no archive holds stays missing.

    Raises:
        UserError: an archive cannot be reached, or has no address.
    """
    names = {path.rsplit("/", 1)[1] for path in wanted}
    for images in source.images:
        mine = {name for name in names if f"{images.folder}{name}" in wanted} or names
        there = {name for name in mine if (data_path / images.folder / name).is_file()}
        downloads = _downloads(source, images.containers)
        if not downloads:
            raise UserError(f"{images.folder} has no archive that can be fetched in part: {source.how_to_get}")
        lacking = set(obtain_images(downloads[0], data_path, images.folder, mine - there, options))
        # What is called train2017 may have been sorted into val2017: the next set is asked for what this one lacks.
        names = (names - mine) | lacking
        if not names:
            return


def _downloads(source: Source, forms: Sequence[str]) -> list[Download]:
    """The downloads that give one of `forms`, in the registry's order."""
    return [
        download
        for download in source.downloads
        if download.path in forms or (download.path.endswith("/") and any(f.startswith(download.path) for f in forms))
    ]
