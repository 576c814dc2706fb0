"""One flipped byte in any kind of file is found by the next reader, which names the file and the command that mends it.

Size and times stay as they are, as when a disk rots.
"""

import os
import random
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from scripts.blending.plan_table import read_rows
from scripts.blending.record_store import RecordStore
from scripts.blending.tokens_identity import load_tokenizer
from scripts.common.errors import UserError
from scripts.common.files import file_sha256, open_table, read_table, write_json, write_table
from scripts.common.verified_folder import check_folder
from scripts.inference.blend_reader import BlendReader
from scripts.inference.model_assembly import load_model as load_joined
from scripts.inference.model_assembly import make_model
from scripts.inference.model_loading import load_model
from scripts.inference.shard_crops import image_processor_of
from scripts.media.array_store import ArrayStore
from scripts.media.store import MediaStore
from tests.blends import write_blend
from tests.synthetic_data import build_media, make_synthetic_data
from tests.tiny_models import IMAGE_TOKENS, make_bases
from tests.tiny_models import make_model as make_exported

SHARD = "train-00000-of-00001.tar"
TABLE = pa.table(
    {
        "uid": [f"llava:{number}" for number in range(300)],
        "pack": pa.array(range(300), pa.int64()),
        "images": [[{"source": "coco", "key": f"k{number % 7}"}] * (number % 3) for number in range(300)],
        "text": [f"the answer of {number % 20}" * 3 for number in range(300)],
    }
)


def flip(path: Path, place: int) -> None:
    """Invert a bit of the byte at `place`; times and size of the file stay."""
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << place % 8
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def found(path: Path, root: Path | None, read: Callable[[], Any], what: str = "") -> None:
    """Check that `read` names `path`, `what` of it is damaged, and the command."""
    with pytest.raises(UserError) as error:
        read()
    message = str(error.value)
    assert message.startswith(f"{path} ") and re.search(what, message), message
    assert f"`python -m scripts.verify --root {root or 'ROOT'} --repair`" in message


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """The folder of a tokenizer."""
    return make_bases(tmp_path_factory.mktemp("bases"))["tokenizer"]


@pytest.fixture(params=["embedded", "referenced"])
def blend(request, tokenizer: Path, tmp_path: Path) -> BlendReader:
    """A small blend, with its images in the shard or in a media shard."""
    root = tmp_path / "root"
    (root / "media").mkdir(parents=True)
    folder = root / "blend/tiny/epoch-000"
    write_blend(folder, 6, tokenizer, shards=1, images=request.param, root=root, seed=3)
    return BlendReader(folder, root)


def read_all(reader: BlendReader) -> list:
    """Everything that training or evaluation may read of a blend, opened anew."""
    reader = BlendReader(reader.folder, reader.root)
    everything: list[Any] = [reader[position] for position in range(len(reader))]
    everything += [reader.read(position, images=False) for position in range(len(reader))]
    return [*everything, *(reader.counts(range(unit, unit + 1)) for unit in range(reader.units))]


def member_place(shard: Path, ending: str, inside: int) -> int:
    """The place of a byte of the first member with this ending."""
    with tarfile.open(shard) as tar:
        member = next(member for member in tar if member.name.endswith(ending))
        return member.offset_data + inside if inside >= 0 else member.offset - inside


@pytest.mark.parametrize(
    ("ending", "inside", "what"),
    [
        (".jpg", 300, r"the image \w+ of coco does not have its sha256"),
        (".json", 40, r"the JSON of conversation \d+ does not have its checksum"),
        (".json", -3, "a header does not have its checksum"),
    ],
    ids=["image", "json", "header"],
)
def test_in_a_shard_of_a_blend(blend: BlendReader, ending: str, inside: int, what: str):
    path = blend.folder / SHARD
    if ending == ".jpg" and blend.manifest["images"] == "referenced":
        path = blend.root / "media/coco/coco-00000-of-00001.tar"
    shown = next(blend[position] for position in range(6) if blend[position].images)
    assert shown.images
    if path.parent.name == "coco":
        reference = next(image["ref"] for position in range(6) for image in blend._read(position, False)[0]["images"])
        flip(path, reference[1] + inside)
    else:
        flip(path, member_place(path, ending, inside))
    found(path, blend.root, lambda: read_all(blend), what)


@pytest.mark.parametrize("name", ["units.idx", "counts.npy", f"{SHARD}.idx"])
def test_in_a_small_file_of_a_blend(blend: BlendReader, name: str):
    path = blend.folder / name
    flip(path, path.stat().st_size - 9)
    found(path, blend.root, lambda: read_all(blend), "does not have the sha256 of its manifest")


def test_everywhere_in_a_shard_of_a_blend(blend: BlendReader):
    """What is not found has no effect: names, padding and the end of the archive are not read."""
    path, expected = blend.folder / SHARD, read_all(blend)
    whole, silent, messages = path.read_bytes(), 0, []
    for place in range(0, len(whole), 101):
        flip(path, place)
        try:
            assert read_all(blend) == expected
            silent += 1
        except UserError as error:
            messages.append(str(error))
        path.write_bytes(whole)
    assert messages and all(message.startswith(str(path)) for message in messages)
    assert silent < len(whole) / 101


def test_in_a_media_shard(tmp_path: Path):
    root = tmp_path / "root"
    media = build_media(make_synthetic_data(root, images=6), root, shards=1)["coco"]
    row = next(iter(read_table(media / "index.parquet").to_pylist()))
    shard = media / "coco-00000-of-00001.tar"
    assert MediaStore({"coco": media}).read("coco", row["key"])
    flip(shard, row["offset"] + row["length"] // 2)
    what = f"is damaged: the image {row['key']} of coco does not have its sha256"
    found(shard, root, lambda: MediaStore({"coco": media}).read("coco", row["key"]), what)


READERS = {
    "whole": read_table,
    "columns": lambda path: read_table(path, columns=["pack", "uid", "images", "text"]),
    "rows": lambda path: read_rows(path, 0, 300),
    "records": lambda path: _record_batches(path),  # noqa: PLW0108 - it is defined below
}


def _record_batches(path: Path) -> pa.Table:
    with open_table(path) as table:
        return pa.Table.from_batches(list(table.iter_batches()))


@pytest.mark.parametrize("reader", READERS)
def test_in_a_table(tmp_path: Path, reader: str):
    """All but a few of the bytes of page headers, of which `verify` knows."""
    path = tmp_path / "media/x/index.parquet"
    write_table(path, TABLE)
    expected, whole = READERS[reader](path), path.read_bytes()
    undetected, messages = 0, []
    places = random.Random(0).sample(range(len(whole)), 300) + [len(whole) - place for place in range(1, 200)]
    for place in places:
        flip(path, place)
        try:
            undetected += not READERS[reader](path).equals(expected)
        except UserError as error:
            messages.append(str(error))
        path.write_bytes(whole)
    assert undetected == 0 and len(messages) > 300
    assert all(text.startswith(f"{path} ") and f"--root {tmp_path} --repair" in text for text in messages)


def test_in_records_and_a_table_that_is_cut_off(tmp_path: Path):
    path = tmp_path / "records/llava.parquet"
    write_table(path, TABLE)
    path.write_bytes(path.read_bytes()[:-100])
    found(path, tmp_path, lambda: RecordStore(path.parent, ["llava:1"]))
    path.write_bytes(b"PAR1")
    found(path, tmp_path, lambda: read_table(path))


class _Crops(ArrayStore):
    """A store as the pixel store is one."""

    NAME, ENDING, DTYPE, AXES = "pixel store", ".u8", np.uint8, 3
    PROGRAM, SETTING = "preprocess_images", "pixels"

    def _difference(self, facts) -> str:
        return ""


class _Features(_Crops):
    """A store as the feature store is one."""

    NAME, ENDING, DTYPE, AXES = "feature store", ".bf16", np.uint16, 2


@pytest.mark.parametrize("kind", [_Crops, _Features])
@pytest.mark.parametrize("ending", ["data", ".sha256", ".sums"])
def test_in_an_array_store(tmp_path: Path, kind: type[ArrayStore], ending: str):
    stem = tmp_path / "pixels/tiny/coco-00000-of-00001"
    shape = (3, 5, 7) if kind.AXES == 3 else (5, 7)
    arrays = [np.random.default_rng(seed).integers(0, 250, shape).astype(kind.DTYPE) for seed in range(3)]
    hashes = [f"{seed:02d}" * 32 for seed in range(3)]
    kind.write(stem, arrays, hashes, {"key": "k"})

    def read() -> list[np.ndarray]:
        store = kind([stem.with_suffix(".json")], "k")
        return [store.get(sha256) for sha256 in hashes]

    assert all(np.array_equal(one, other) for one, other in zip(read(), arrays, strict=True))
    path = stem.with_suffix(kind.ENDING if ending == "data" else ending)
    whole = path.read_bytes()
    for place in range(len(whole)):
        flip(path, place)
        found(path, tmp_path, read, "does not have")
        path.write_bytes(whole)


def with_manifest(folder: Path) -> Path:
    """Write the manifest that our programs write into the folder of a base or an export."""
    files = {path.name: file_sha256(path) for path in folder.iterdir() if path.is_file()}
    write_json(folder / "manifest.json", {"v": 1, "files": files, "sha256": "0"})
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """An exported model below a results root."""
    root = tmp_path_factory.mktemp("models") / "root"
    folder = make_exported(root / "scratch")
    target = root / "exported/run/final"
    target.parent.mkdir(parents=True)
    folder.rename(target)
    return with_manifest(target)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "processor_config.json"])
def test_in_an_exported_model(exported: Path, name: str):
    path = exported / name
    whole = path.read_bytes()
    load_model(exported, "cpu")
    flip(path, len(whole) // 2)
    found(path, exported.parents[2], lambda: load_model(exported, "cpu"), "does not have the sha256 of its manifest")
    path.unlink()
    found(path, exported.parents[2], lambda: load_model(exported, "cpu"), "is missing")
    path.write_bytes(whole)
    load_model(exported, "cpu")


def test_in_a_base_a_tokenizer_and_a_model(tmp_path: Path):
    from scripts.config.model import ModelConfig
    from scripts.config.tokens import TokensConfig

    bases = {kind: with_manifest(folder) for kind, folder in make_bases(tmp_path / "bases").items()}
    names = {kind: f"bases/{kind}" for kind in bases}
    tokens = TokensConfig(tokenizer="tiny", image_tokens=IMAGE_TOKENS)
    out = tmp_path / "models/tiny"

    def make() -> None:
        make_model(
            ModelConfig(tokens="tiny", vision="bases/vision", language="bases/language"), tokens, names, tmp_path, out
        )

    def load() -> None:
        load_joined(out, tmp_path, "mmca")

    make()
    load()
    damages: list[tuple[Path, list[Callable[[], Any]]]] = [
        (bases["vision"] / "model.safetensors", [make, load]),
        (bases["vision"] / "preprocessor_config.json", [make, load, lambda: image_processor_of(bases["vision"])]),
        (bases["language"] / "model.safetensors", [make, load]),
        (bases["tokenizer"] / "tokenizer.json", [make, load, lambda: load_tokenizer(str(bases["tokenizer"]))]),
        (out / "projector.safetensors", [load]),
        (out / "tokenizer.json", [load]),
    ]
    for path, readers in damages:
        whole = path.read_bytes()
        flip(path, len(whole) // 2)
        for read in readers:
            found(path, tmp_path, read, "does not have the sha256 of its manifest")
        path.write_bytes(whole)
    load()


def test_a_folder_of_others_has_nothing_to_be_compared_with(tmp_path: Path):
    folder = make_bases(tmp_path)["tokenizer"]
    check_folder(folder)
    write_json(folder / "manifest.json", {"name": "not one of ours"})
    check_folder(folder)
    load_tokenizer(str(folder))


def test_hashes_of_large_files_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch):
    from scripts.common import verified_folder

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verified_folder, "LARGE", 10)
    folder = tmp_path / "exported/run/final"
    folder.mkdir(parents=True)
    path = folder / "model.safetensors"
    path.write_bytes(b"w" * 100)
    with_manifest(folder)
    hashed = []
    monkeypatch.setattr(verified_folder, "file_sha256", lambda path: hashed.append(path.name) or file_sha256(path))
    check_folder(folder)
    check_folder(folder)
    assert hashed == [path.name] * 2, "it has just changed, and its times may not show another change"
    monkeypatch.setattr(verified_folder, "_SETTLED_NS", -1)
    check_folder(folder)
    check_folder(folder)
    assert hashed == [path.name] * 3
    (tmp_path / "cache/visualchat/hashes.json").write_text("damaged")
    check_folder(folder)
    flip(path, 50)
    found(path, tmp_path, lambda: check_folder(folder))
    assert hashed == [path.name] * 5


def test_numbers_of_thousands_of_digits_and_deep_nesting_are_named(tmp_path: Path):
    from scripts.common.files import read_json

    for text, what in (("9" * 5000, "thousands of digits"), ("[" * 200_000, "nested too deeply")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(UserError, match=what):
            read_json(tmp_path / "a.json")
