"""Provide one source from the user's data path: find its files, hash them, write down what is there.

Reads the files of --source below --data-path, which are left where they are. Writes, below --out, `files` (a link to
the data path), `files.parquet` (path, bytes and sha256 of every file) and, last, `source.json`.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from scripts.adapters.base import CARD, FILES, LISTING, missing
from scripts.common.errors import UserError, run_program
from scripts.common.files import file_sha256, table_sha256, write_json, write_table
from scripts.common.program import parser
from scripts.common.progress import track
from scripts.media.keys import is_image
from scripts.sources import SOURCES

SCHEMA = pa.schema([("path", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())])


def fetch(source: str, data_path: Path, out: Path, require: Sequence[str] = ()) -> dict:
    """List what `data_path` holds of `source`; return the card.

    Args:
        require: files, and folders ending in "/", below `data_path`; empty means all that belongs to the source.

    Raises:
        UserError: something required is absent, or a folder holds no image.
    """
    required = sorted(set(require)) or SOURCES[source].paths()
    unknown = sorted(set(required) - set(SOURCES[source].paths()))
    if unknown:
        raise UserError(f"{unknown[0]!r} does not belong to the source {source!r}, which has {SOURCES[source].paths()}")
    paths = sorted(path for entry in required for path in _find(source, data_path, entry))
    rows = [_row(data_path, path) for path in track(paths, f"{source}: files read", len(paths))]
    table = pa.Table.from_pylist(rows, SCHEMA)
    write_table(out / LISTING, table)
    _link(data_path, out / FILES)
    card = {
        "v": 1,
        "source": source,
        "licence": SOURCES[source].licence,
        "provided_by": "miniature" if (data_path / "miniature.json").is_file() else "data_path",
        "layout": "data_path",
        "required": required,
        "files": len(rows),
        "bytes": sum(row["bytes"] for row in rows),
        "sha256": table_sha256(table),
    }
    write_json(out / CARD, card)
    return card


def _find(source: str, data_path: Path, entry: str) -> Iterator[str]:
    """Paths below `data_path` that `entry` stands for."""
    place = data_path / entry
    if not entry.endswith("/"):
        if not place.is_file():
            raise missing(source, entry, place)
        yield entry
        return
    optional = entry in SOURCES[source].optional
    if not place.is_dir():
        if optional:
            return
        raise missing(source, entry, place)
    count = 0
    for folder, folders, names in os.walk(place, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if is_image(name):
                count += 1
                yield _encodable((Path(folder) / name).relative_to(data_path).as_posix())
    if not count and not optional:
        raise UserError(f"source {source!r}: {place} holds no image. To get them: {SOURCES[source].how_to_get}")


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read: {error.strerror}")


def _encodable(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"the file name {path!r} is not valid UTF-8: rename the file") from None
    return path


def _row(data_path: Path, path: str) -> dict:
    try:
        return {"path": path, "bytes": (data_path / path).stat().st_size, "sha256": file_sha256(data_path / path)}
    except OSError as error:
        raise UserError(f"{data_path / path} cannot be read: {error.strerror}") from None


def _link(target: Path, link: Path) -> None:
    """Point `link` at `target` in one step; a relative target gives a link that may move together with it."""
    goal = target if target.is_absolute() else os.path.relpath(target.resolve(), link.parent.resolve())
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link} is not a link: remove it, then fetch again")
    with tempfile.TemporaryDirectory(dir=link.parent, prefix=f".{link.name}.") as folder:
        temporary = Path(folder) / link.name
        temporary.symlink_to(goal)
        os.replace(temporary, link)


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--source", required=True, choices=sorted(SOURCES), help="what to provide")
    arguments.add_argument("--data-path", type=Path, required=True, help="folder with the raw files of all sources")
    arguments.add_argument(
        "--require", action="append", default=[], metavar="PATH", help="file or folder/ in it; repeatable; default: all"
    )
    arguments.add_argument("--out", type=Path, required=True, help="folder to write: raw/<source>")
    args = arguments.parse_args()
    card = fetch(args.source, args.data_path, args.out, args.require)
    print(f"{args.source}: {card['files']} files, {card['bytes'] / 1e6:.1f} MB from {args.data_path}")


if __name__ == "__main__":
    run_program(main)
