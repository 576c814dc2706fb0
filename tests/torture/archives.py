"""Archives: damaged and hostile containers of images, and downloads.

A container is refused in one error, or every image in it is read or rejected under a reason; a download gives exactly
the member that was asked for, or is refused. Nothing is written outside of the folder.
"""

import base64
import gzip
import io
import json
import random
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from scripts.common.errors import UserError
from scripts.fetching.archive import extract_member
from scripts.fetching.verification import AddressError
from scripts.media.containers import list_container
from scripts.media.image_check import UnreadableImageError, check_image
from scripts.media.raw_images import RawImageReader
from tests.torture.adversary import Report
from tests.torture.batch import seen
from tests.torture.mutation import changed_bytes

CONTAINERS_OF_A_BATCH, DOWNLOADS_OF_A_BATCH = 120, 80
_NAMES = ("1.png", "sub/2.png", "3", "../4.png", "/5.png", "6\\7.png", "8\x009.png", "ü.png", "..", "", "a" * 300)
_MEMBER = "folder/rows.json"
_CONTENT = json.dumps([{"id": number} for number in range(500)]).encode()


def batch(draw: random.Random, folder: Path, report: Report, begin: Callable[[str], None]) -> None:
    """List and read containers, and extract from downloads."""
    inside = folder / "inside"
    for number in range(CONTAINERS_OF_A_BATCH):
        name, data = draw.choice((_zip, _zip, _json, _parquet, _hostile_zip))(draw)
        if draw.random() < 0.7:
            data = changed_bytes(draw, data)
        begin(f"container {name} of {len(data)} bytes")
        _container(inside, f"{number}{name[name.rindex('.') :]}", data, report)
    for number in range(DOWNLOADS_OF_A_BATCH):
        name, data = draw.choice((_download_zip, _download_tar, _hostile_tar))(draw)
        if draw.random() < 0.7:
            data = changed_bytes(draw, data)
        begin(f"download {name} of {len(data)} bytes")
        _download(inside, f"{number}-{name}", data, report)
    outside = sorted(path.name for path in folder.iterdir() if path.name not in ("inside", "current.txt"))
    if outside:
        report.violation("other", f"written outside of the folder: {outside}")


def _container(folder: Path, name: str, data: bytes, report: Report) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    try:
        entries = list(list_container(path, name, "pictures/"))
        reader = RawImageReader(folder, {name: len(data)}, entries)
        for entry in entries:
            try:
                check_image(reader.read(entry), entry.path)
                report.note("images read")
            except UnreadableImageError as error:
                report.note(f"images rejected: {error.reason}")
        reader.close()
    except UserError:
        report.note("containers refused")
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        report.violation("tracebacks", f"container {name}: {seen(error)}")
    path.unlink()


def _download(folder: Path, name: str, data: bytes, report: Report) -> None:
    archive, target = folder / name, folder / f"{name}.out"
    archive.write_bytes(data)
    try:
        extract_member(archive, _MEMBER, target, limit=4 << 20)
    except AddressError:
        report.note("downloads refused")
        if target.exists():
            report.violation("other", f"download {name} was refused and has left its target")
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        report.violation("tracebacks", f"download {name}: {seen(error)}")
    else:
        report.note("downloads extracted")
        if target.stat().st_size > 4 << 20:
            report.violation("other", f"download {name} gave {target.stat().st_size:,} bytes, above its limit")
    left = [path.name for path in folder.iterdir() if path not in (archive, target)]
    if left:
        report.violation("other", f"download {name} has left {left}")
    for path in folder.iterdir():
        path.unlink()


def _images(draw: random.Random) -> dict[str, bytes]:
    """A few images by name, most names good."""
    found = {}
    for number in range(draw.randrange(1, 8)):
        file = io.BytesIO()
        Image.frombytes("RGB", (9, 7), draw.randbytes(189)).save(file, draw.choice(("PNG", "JPEG")))
        found[draw.choice(_NAMES) if draw.random() < 0.2 else f"{number}.png"] = file.getvalue()
    return found


def _zip(draw: random.Random) -> tuple[str, bytes]:
    file = io.BytesIO()
    pack = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(file, "w", pack) as archive:
        for name, data in _images(draw).items():
            archive.writestr(name or "none.png", data)
    return "images.zip", file.getvalue()


def _hostile_zip(draw: random.Random) -> tuple[str, bytes]:
    """A zip whose directory is wrong about a member, or whose member is no file, or unpacks to very much."""
    file = io.BytesIO()
    kind = draw.choice(("link", "claims", "bomb", "twice"))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in [("1.png", b"\0" * (64 << 20) if kind == "bomb" else b"data"), ("2.png", b"data")]:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = ((stat.S_IFLNK if kind == "link" else stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, data)
            if kind == "twice":
                archive.writestr(info, data)
    data = file.getvalue()
    if kind == "claims":
        at = data.index(b"PK\x01\x02")
        field = draw.choice((20, 24, 42))  # compressed size, size, position of the member
        size = struct.pack("<I", draw.choice((0xFFFFFFFF, 0x7FFFFFFF, 0, 1 << 20)))
        data = data[: at + field] + size + data[at + field + 4 :]
    return f"{kind}.zip", data


def _json(draw: random.Random) -> tuple[str, bytes]:
    text = {name: base64.b64encode(data).decode() for name, data in _images(draw).items()}
    if draw.random() < 0.2:
        text["number"] = draw.choice((1, None, [], {}, "!", 10**400))
    return "images.json", json.dumps(text, indent=draw.choice((None, 2))).encode()


def _parquet(draw: random.Random) -> tuple[str, bytes]:
    images, form = _images(draw), draw.choice(("base64", "image", "images", "other"))
    if form == "base64":
        rows = [{"id": name, "base64": base64.b64encode(data).decode()} for name, data in images.items()]
    elif form == "image":
        rows = [{"id": name, "image": {"bytes": data, "path": None}} for name, data in images.items()]
    elif form == "images":
        rows = [{"id": name, "images": [{"bytes": data, "path": None}]} for name, data in images.items()]
    else:
        rows = [{"id": name, "words": [1, 2]} for name in images]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=3)
    return "images.parquet", file.getvalue()


def _download_zip(draw: random.Random) -> tuple[str, bytes]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(draw.choice((_MEMBER, f"top/{_MEMBER}", f"/{_MEMBER}", f"../{_MEMBER}")), _CONTENT)
        archive.writestr("other.json", b"\0" * draw.choice((10, 32 << 20)))
    return "data.zip", file.getvalue()


def _download_tar(draw: random.Random) -> tuple[str, bytes]:
    mode = draw.choice(("w", "w:gz"))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:
        for name, content in (
            ("other.json", b"{}"),
            (draw.choice((_MEMBER, f"./{_MEMBER}", f"top/{_MEMBER}")), _CONTENT),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return "data.tar" if mode == "w" else "data.tar.gz", file.getvalue()


def _hostile_tar(draw: random.Random) -> tuple[str, bytes]:
    """A tar whose member is a link or a device, leads out of the folder, or is far larger than its limit."""
    file = io.BytesIO()
    kind = draw.choice(("link", "device", "outside", "bomb", "sparse"))
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(f"../../{_MEMBER}" if kind == "outside" else _MEMBER)
        info.type = {"link": tarfile.SYMTYPE, "device": tarfile.CHRTYPE}.get(kind, tarfile.REGTYPE)
        info.linkname = "/etc/passwd"
        content = b"\0" * (16 << 20) if kind == "bomb" else b"" if kind in ("link", "device") else _CONTENT
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    data = file.getvalue()
    if kind == "sparse":
        # A size in base 256, which can claim anything.
        data = data[:124] + b"\x80" + struct.pack(">QI", 0, 0xFFFFFFFF)[1:] + data[136:]
    return f"{kind}.tar.gz", gzip.compress(data)
