"""Download the images that rows of your own data name by http and https addresses into a folder.

Reads files of rows in any form that a custom dataset may have, or a folder of them. Every address is downloaded once,
checked as an image, and written below --out as `<hash of the address>.<extension>`; put that folder below the `folder`
of the dataset, and its rows are converted as they are. Images that are there already are not downloaded again, so that
the same command continues after an interruption. Addresses that failed are listed in `failed.txt`, with the reason.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from scripts.adapters.base import RowError
from scripts.adapters.own.conversation_reader import RowReader
from scripts.adapters.own.image_values import ImageAddress
from scripts.adapters.own.row_files import find_row_files
from scripts.adapters.own.row_readers import read_rows
from scripts.adapters.own.row_source import nested_columns
from scripts.adapters.raw import Broken, Note
from scripts.common.cli import hide_pandas, load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import atomic
from scripts.common.progress import track
from scripts.config.custom import OwnRowsConfig
from scripts.config.registry import WHOLE_FOLDER
from scripts.fetching.connection import FetchOptions
from scripts.fetching.image_download import download_images, present_stems
from scripts.media.hashed_names import downloaded_stem

FAILED = "failed.txt"
_WEB = re.compile(r"https?://", re.IGNORECASE)
_SHOWN = 5


def addresses(paths: Sequence[Path], own: OwnRowsConfig) -> Iterator[str]:
    """The addresses of images in the rows of files and folders, each once, in their order.

    Raises:
        UserError: a file is missing or holds no rows.
    """
    reader = RowReader(own)
    found: set[str] = set()
    for path in paths:
        folder, names = (path, (WHOLE_FOLDER,)) if path.is_dir() else (path.parent, (path.name,))
        for name in find_row_files(folder, names).splits:
            notes: list[Note] = []
            for row in read_rows(folder / name, name, notes, nested=nested_columns(own.columns)):
                notes.clear()
                for url in [] if isinstance(row.value, Broken) else _of_row(reader, row.value):
                    if url not in found:
                        found.add(url)
                        yield url


def _of_row(reader: RowReader, row: object) -> list[str]:
    """The addresses of the images of a row; none if the row cannot be used."""
    try:
        conversation = reader.read(row)
    except RowError:
        return []
    return [value.url for value in conversation.image_values() if isinstance(value, ImageAddress)]


def main() -> None:
    """Run the program."""
    hide_pandas()
    arguments = parser(__doc__)
    arguments.add_argument("rows", nargs="+", type=Path, metavar="ROWS", help="file of rows, or folder of such files")
    arguments.add_argument("--out", type=Path, required=True, help="folder to write images into")
    arguments.add_argument(
        "--settings", default="{}", help="`columns` as under `custom` in a configuration, as JSON, or @file"
    )
    arguments.add_argument("--connections", type=int, default=8, help="parallel downloads (default: %(default)s)")
    arguments.add_argument("--retries", type=int, default=3, help="retries of an address (default: %(default)s)")
    arguments.add_argument(
        "--timeout", type=float, default=30.0, help="seconds without an answer or a byte (default: %(default)s)"
    )
    args = arguments.parse_args()
    if args.connections < 1:
        raise UserError("--connections should be at least 1")
    urls = list(addresses(args.rows, load_settings(OwnRowsConfig, args.settings)))
    web = [url for url in urls if _WEB.match(url)]
    if not web:
        others = f", only {urls[0]:.100}" if urls else ""
        raise UserError(f"the rows name no image by an http or https address{others}: nothing to download")
    present = present_stems(args.out)
    missing = [url for url in web if downloaded_stem(url) not in present]
    print(f"{len(web)} addresses, {len(web) - len(missing)} images are there already")
    options = FetchOptions(retries=args.retries, timeout=args.timeout, connections=args.connections)
    outcomes = track(download_images(missing, args.out, options), "images", len(missing))
    failed = [outcome for outcome in outcomes if outcome.problem]
    failed_file = args.out / FAILED
    if not failed:
        failed_file.unlink(missing_ok=True)
        print(f"{args.out}: {len(web)} images")
        return
    with atomic(failed_file, "w") as file:
        file.writelines(f"{outcome.url}\t{outcome.problem}\n" for outcome in failed)
    examples = "; ".join(f"{outcome.url:.100}: {outcome.problem:.100}" for outcome in failed[:_SHOWN])
    raise UserError(
        f"{len(failed)} of {len(web)} images were not downloaded: {examples}. All: {failed_file}. Run the same command "
        "again to try these once more; rows whose images are missing are left out when the data is converted"
    )


if __name__ == "__main__":
    run_program(main)
