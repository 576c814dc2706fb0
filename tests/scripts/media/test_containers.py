"""Containers of images: what they are found to hold, and that it is read back byte for byte."""

import base64
import io
import json
import os
import random
import struct
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from scripts.common.errors import UserError
from scripts.media.containers import ImageEntry, archive_root, list_container
from scripts.media.opening import UnreadableImageError
from scripts.media.raw_images import RawImageReader

FOLDER = "MIMIC-IT/SD/"


def _png(number):
    buffer = io.BytesIO()
    Image.frombytes("RGB", (9, 7), random.Random(number).randbytes(189)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = {f"SD_IMG_{number:05d}_{side}": _png(2 * number + side) for number in range(40) for side in (1, 2)}


def _listed(tmp_path, name, folder=FOLDER):
    place = tmp_path / name
    return list(list_container(place, name, folder))


def _read(tmp_path, entries):
    originals = RawImageReader(
        tmp_path, {entry.container: (tmp_path / entry.container).stat().st_size for entry in entries}, entries
    )
    data = {entry.path: originals.read(entry) for entry in entries}
    originals.close()
    return data


def _zip(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def _text(data):
    return base64.b64encode(data).decode()


def write_zip(path):
    _zip(path, {f"some/folder/{name}.png": data for name, data in IMAGES.items()} | {"some/readme.txt": b"words"})


def write_deflated_zip(path):
    _zip(path, {f"{name}.png": data for name, data in IMAGES.items()}, zipfile.ZIP_DEFLATED)


def write_json(path):
    path.write_text(json.dumps({name: _text(data) for name, data in IMAGES.items()}))


def write_spacious_json(path):
    text = json.dumps({name: "data:image/png;base64," + _text(data) for name, data in IMAGES.items()}, indent=3)
    path.write_text("\ufeff \n" + text.replace("/", "\\/"))


def write_pandas(path):
    table = pd.DataFrame({"base64": [_text(data) for data in IMAGES.values()]}, index=list(IMAGES))
    table.to_parquet(path, row_group_size=7)


def write_native(path):
    rows = [{"id": name, "image": {"bytes": data, "path": None}} for name, data in IMAGES.items()]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=9)


@pytest.mark.parametrize(
    ("name", "write", "ending"),
    [
        ("a.zip", write_zip, ".png"),
        ("b.zip", write_deflated_zip, ".png"),
        ("SD.json", write_json, ""),
        ("spacious.json", write_spacious_json, ""),
        ("SD.parquet", write_pandas, ""),
        ("native.parquet", write_native, ""),
    ],
)
def test_every_container_gives_back_what_was_put_in(tmp_path, name, write, ending):
    write(tmp_path / name)
    entries = _listed(tmp_path, name)
    assert _read(tmp_path, entries) == {f"{FOLDER}{id_}{ending}": data for id_, data in IMAGES.items()}
    some = random.Random(3).sample(entries, 11)
    assert _read(tmp_path, some) == {
        entry.path: IMAGES[entry.path.removeprefix(FOLDER).removesuffix(ending)] for entry in some
    }


def test_instructions_with_their_images_name_each_image_once(tmp_path):
    pictures = list(IMAGES.values())[:4]
    embedded = [{"bytes": data, "path": None} for data in pictures]
    rows = [
        {"id": f"row{n}", "images": images} for n, images in enumerate([embedded[:2], embedded[:2], embedded[2:], None])
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "joined.parquet")
    entries = _listed(tmp_path, "joined.parquet")
    assert len(entries) == 4 and sorted(_read(tmp_path, entries).values()) == sorted(pictures)


def test_what_cannot_be_the_name_of_a_file_is_a_fault(tmp_path):
    link = zipfile.ZipInfo("in/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("../out.png", "/root.png", "a/../../b.png", "in/good.png", "other/good.png"):
            archive.writestr(name, IMAGES["SD_IMG_00000_1"])
        archive.writestr(link, "/etc/passwd")
    faults = [entry.fault for entry in _listed(tmp_path, "x.zip")]
    assert faults == ["unsafe_path", "unsafe_path", "unsafe_path", *["ambiguous_name"] * 2, "symlink"]
    names = ["../up", "a/b", "..", "", "fine", "null", "number"]
    values = [*(_text(b"x") for _ in names[:5]), None, 12.5]
    (tmp_path / "x.json").write_text(json.dumps(dict(zip(names, values, strict=True))))
    faults = {entry.path.removeprefix(FOLDER): entry.fault for entry in _listed(tmp_path, "x.json")}
    assert [faults[f"{name!r}"] for name in names[:4]] == ["unsafe_path"] * 4
    assert (faults["fine"], faults["null"], faults["number"]) == ("", "not_base64", "not_base64")
    (tmp_path / "y.json").write_bytes(b'{"twice": "eA==", "twice": "eQ==", "bad\xff": "eA=="}')
    assert [entry.fault for entry in _listed(tmp_path, "y.json")] == ["", "duplicate_name", "invalid_utf8"]


def _directory_record(data, name):
    """Where the record of a member begins in the central directory."""
    at = data.index(b"PK\x01\x02")
    while data[at + 46 : at + 46 + len(name)] != name:
        at = data.index(b"PK\x01\x02", at + 4)
    return at


def _lying_zip(path, changes, extra=b""):
    """A zip of three images, with `changes` (bytes by position) in the record of the second, and its extra field."""
    _zip(path, {f"{name}.png": IMAGES["SD_IMG_00000_1"] for name in "abc"})
    data = bytearray(path.read_bytes())
    at = _directory_record(data, b"b.png")
    for position, value in changes.items():
        data[at + position : at + position + len(value)] = value
    data[at + 51 : at + 51] = extra
    struct.pack_into("<H", data, at + 30, len(extra))
    end = data.rindex(b"PK\x05\x06")
    struct.pack_into("<I", data, end + 12, struct.unpack_from("<I", data, end + 12)[0] + len(extra))
    path.write_bytes(data)


_FLAGS, _SIZE, _OFFSET, _NAME = 8, 20, 42, 46
"""Positions in a record of the directory."""
PETABYTE = struct.pack("<HHQQ", 1, 16, 1 << 50, 1 << 50)
FAR = struct.pack("<HHQ", 1, 8, (1 << 64) - 1)


@pytest.mark.parametrize(
    ("changes", "extra", "fault"),
    [
        ({_SIZE: b"\xff" * 8}, PETABYTE, "too_large"),
        ({_SIZE: b"\xff" * 8}, b"", "too_large"),
        ({_SIZE: b"\xff" * 8}, PETABYTE[:9], "too_large"),
        ({_SIZE: b"\0\0\x10\0"}, b"", "corrupt"),
        ({_OFFSET: b"\xff" * 4}, FAR, "corrupt"),
        ({_OFFSET: b"\x01\0\0\0"}, b"", "corrupt"),
        ({_NAME: b"\xff"}, b"", ""),
        ({_NAME: b"\xff", _FLAGS: b"\0\x08"}, b"", "invalid_utf8"),
    ],
    ids=["petabyte", "no field", "short field", "length", "far offset", "offset", "cp437", "utf8"],
)
def test_a_member_that_lies_costs_one_member(tmp_path, changes, extra, fault):
    _lying_zip(tmp_path / "x.zip", changes, extra)
    entries = _listed(tmp_path, "x.zip")
    assert [entry.fault for entry in entries] == ["", fault, ""]
    assert sum(entry.length for entry in entries) <= (tmp_path / "x.zip").stat().st_size
    assert list(_read(tmp_path, [entries[0], entries[2]]).values()) == [IMAGES["SD_IMG_00000_1"]] * 2
    if fault:
        with pytest.raises(UnreadableImageError, match=fault):
            _read(tmp_path, entries[1:2])


def test_a_member_with_too_short_a_length_is_corrupt(tmp_path):
    _lying_zip(tmp_path / "x.zip", {_SIZE: b"\x10\0\0\0"})
    with pytest.raises(UnreadableImageError, match="checksum"):
        _read(tmp_path, _listed(tmp_path, "x.zip")[1:2])


@pytest.mark.parametrize("wide", [False, True], ids=["zip", "zip64"])
@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n"], ids=["plain", "self-extracting"])
def test_archives_of_all_kinds_are_listed_as_by_the_library(tmp_path, monkeypatch, wide, before):
    if wide:
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 10)
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.comment = b"a comment"
        for name, data in IMAGES.items():
            archive.writestr(f"f\u00fcr/{name}.png", data)
    (tmp_path / "x.zip").write_bytes(before + (tmp_path / "x.zip").read_bytes())
    assert list(_read(tmp_path, _listed(tmp_path, "x.zip")).values()) == list(IMAGES.values())


def test_the_same_name_in_two_folders_belongs_to_the_folder_of_the_set_or_to_none(tmp_path):
    data = list(IMAGES.values())
    _zip(tmp_path / "x.zip", {"augmented/solo.png": data[0], "SD/solo.png": data[1], "SD/other.png": data[2]})
    by_path = {entry.path: entry for entry in _listed(tmp_path, "x.zip")}
    assert by_path.pop(f"{FOLDER}augmented/solo.png").fault == "ambiguous_name"
    assert _read(tmp_path, by_path.values()) == {f"{FOLDER}solo.png": data[1], f"{FOLDER}other.png": data[2]}


def test_with_a_root_images_keep_their_folders(tmp_path):
    data = list(IMAGES.values())
    _zip(tmp_path / "x.zip", {"top/augmented/solo.png": data[0], "./top/solo.png": data[1], "top/notes.txt": b"x"})
    assert archive_root([tmp_path / "x.zip"]) == "top/"
    entries = list(list_container(tmp_path / "x.zip", "x.zip", "own/", "top/"))
    assert _read(tmp_path, entries) == {"own/augmented/solo.png": data[0], "own/solo.png": data[1]}
    _zip(tmp_path / "y.zip", {"solo.png": data[0]})
    assert archive_root([tmp_path / "x.zip", tmp_path / "y.zip"]) == "" == archive_root([tmp_path / "y.zip"])


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_without_the_ending_of_an_image_are_known_by_their_content(tmp_path, compression):
    data = IMAGES["SD_IMG_00000_1"]
    members = {"none": data, "x.jfif": data, "y.bin": data, "words": b"BM only words", ".hidden": data, "z.json": b"{}"}
    _zip(tmp_path / "x.zip", members, compression)
    entries = _listed(tmp_path, "x.zip")
    assert _read(tmp_path, entries) == {f"{FOLDER}{name}": data for name in ("none", "x.jfif", "y.bin")}


def test_damage_inside_is_found_when_it_is_read(tmp_path):
    write_zip(tmp_path / "a.zip")
    entries = _listed(tmp_path, "a.zip")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[entries[0].offset + 20] ^= 255
    (tmp_path / "a.zip").write_bytes(data)
    originals = RawImageReader(tmp_path, {"a.zip": len(data)})
    with pytest.raises(UnreadableImageError, match="checksum"):
        originals.read(entries[0])
    assert originals.read(entries[1]) == IMAGES["SD_IMG_00000_2"]
    (tmp_path / "b.json").write_text('{"short": "abc", "odd": "a b!", "good": "eA=="}')
    entries = _listed(tmp_path, "b.json")
    originals = RawImageReader(tmp_path, {"b.json": (tmp_path / "b.json").stat().st_size})
    for entry in entries[:2]:
        with pytest.raises(UnreadableImageError, match="not_base64"):
            originals.read(entry)
    assert originals.read(entries[2]) == b"x"


def test_a_member_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.media.raw_images.MAX_BYTES", 10_000)
    _zip(tmp_path / "bomb.zip", {"a.png": bytes(1_000_000)}, zipfile.ZIP_DEFLATED)
    entries = _listed(tmp_path, "bomb.zip")
    with pytest.raises(UnreadableImageError, match="too_large"):
        RawImageReader(tmp_path, {"bomb.zip": (tmp_path / "bomb.zip").stat().st_size}).read(entries[0])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.zip", None),
        ("no.zip", b"PK, but no archive"),
        ("empty.json", b""),
        ("list.json", b'["a"]'),
        ("nested.json", b'{"a": {"b": "c"}}'),
        ("end.json", b'{"a": "eA=="'),
        ("value.json", b'{"a": "eA=='),
        ("key.json", b'{"a'),
        ("more.json", b'{"a": "eA=="} {"b": "eA=="}'),
        ("no.parquet", b"PAR1 words"),
    ],
)
def test_a_damaged_container_is_one_clear_error(tmp_path, name, content):
    if content is None:
        write_zip(tmp_path / name)
        content = (tmp_path / name).read_bytes()[:-100]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        list(list_container(tmp_path / name, name, FOLDER))


def test_a_table_without_images_names_its_columns(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"\['a'\]"):
        list(list_container(tmp_path / "x.parquet", "x.parquet", FOLDER))


def test_a_container_that_changed_is_an_error(tmp_path):
    write_json(tmp_path / "SD.json")
    entries = _listed(tmp_path, "SD.json")
    originals = RawImageReader(tmp_path, {"SD.json": 5})
    with pytest.raises(UserError, match="has changed since it was fetched"):
        originals.read(entries[0])
    os.remove(tmp_path / "SD.json")
    with pytest.raises(UserError, match="fetch again"):
        originals.read(entries[0])


def test_a_file_larger_than_a_window_is_scanned_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.media.containers._WINDOW", 5000)
    write_json(tmp_path / "SD.json")
    assert len(_listed(tmp_path, "SD.json")) == len(IMAGES)


ids = st.text(st.characters(exclude_characters='"\\/\0', exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@given(st.dictionaries(ids, st.binary(max_size=60), max_size=8), st.sampled_from([None, 1, "\t"]))
def test_the_scanner_reads_what_a_json_parser_reads(tmp_path_factory, images, indent):
    place = tmp_path_factory.mktemp("json") / "x.json"
    text = json.dumps({name: _text(data) for name, data in images.items()}, indent=indent, ensure_ascii=False)
    place.write_text(text, encoding="utf-8")
    entries = list(list_container(place, "x.json", FOLDER))
    kept = {entry.path: entry for entry in entries if entry.fault == ""}
    expected = {FOLDER + name: data for name, data in images.items() if name not in (".", "..")}
    assert _read(place.parent, list(kept.values())) == expected


def test_an_entry_without_a_container_is_a_file(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"bytes")
    assert RawImageReader(tmp_path, {}).read(ImageEntry("a.jpg", "", "file", 0, 5)) == b"bytes"
