"""The hold-out depends on an image's content and on nothing else."""

import hashlib
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from scripts.common.errors import UserError
from scripts.common.files import file_sha256
from scripts.config.holdout import HoldoutConfig
from scripts.holdout import is_held_out, write_split
from tests.synthetic_data import build_media, build_split, make_synthetic_data

HASHES = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(4000)]


def _split(folder, data, **settings):
    media = build_media(data, folder)
    manifest = write_split(HoldoutConfig(**settings), media, folder / "split")
    rows = pq.read_table(folder / "split/heldout.parquet").to_pylist()
    return {row["key"].rsplit("/", 1)[1]: row["sha256"] for row in rows}, manifest


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_the_share_is_met(share):
    held = sum(is_held_out(digest, HoldoutConfig(share=share)) for digest in HASHES)
    assert held / len(HASHES) == pytest.approx(share, abs=0.03)


def test_a_larger_share_keeps_what_a_smaller_one_held():
    small, large = HoldoutConfig(share=0.1), HoldoutConfig(share=0.2)
    assert all(is_held_out(digest, large) for digest in HASHES if is_held_out(digest, small))


def test_another_seed_holds_other_images():
    one, two = ({d for d in HASHES if is_held_out(d, HoldoutConfig(share=0.1, seed=seed))} for seed in (0, 1))
    assert len(one & two) < 0.3 * len(one)


def test_adding_removing_and_renaming_images_moves_no_other(tmp_path):
    data = make_synthetic_data(tmp_path / "a", images=60)
    before, _ = _split(tmp_path / "one", data, share=0.3)
    folder = data / "coco/train2017"
    names = sorted(path.name for path in folder.iterdir())
    for name in names[:20]:
        (folder / name).unlink()
    shutil.copy(folder / names[20], folder / "copy.jpg")
    for path in (make_synthetic_data(tmp_path / "b", images=30, seed=5) / "coco/train2017").iterdir():
        shutil.copy(path, folder / f"new{path.name}")
    after, manifest = _split(tmp_path / "two", data, share=0.3)
    kept = {name.removesuffix(".jpg") for name in names[20:]}
    assert {key for key in before if key in kept} == {key for key in after if key in kept}
    assert ("copy" in after) == (names[20].removesuffix(".jpg") in after)
    assert any(key.startswith("new") for key in after) and manifest["heldout"] == len(after)


def test_the_table_is_sorted_and_the_same_every_time(tmp_path):
    data = make_synthetic_data(tmp_path, images=30)
    build_media(data, tmp_path)
    first = file_sha256(build_split(tmp_path, share=0.5) / "heldout.parquet")
    assert file_sha256(build_split(tmp_path, share=0.5) / "heldout.parquet") == first
    keys = pq.read_table(tmp_path / "split/heldout.parquet")["key"].to_pylist()
    assert keys == sorted(keys) and 5 < len(keys) < 25


def test_empty_is_allowed_and_reported(tmp_path):
    media = build_media(make_synthetic_data(tmp_path, images=3), tmp_path)
    command = [sys.executable, "-m", "scripts.holdout", "--settings", '{"share": 0}', "--out", str(tmp_path / "split")]
    done = subprocess.run([*command, "--media", f"coco={media['coco']}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "no image is held out" in done.stdout
    assert pq.read_table(tmp_path / "split/heldout.parquet").num_rows == 0


def test_media_that_was_not_built_is_named(tmp_path):
    with pytest.raises(UserError, match="index"):
        write_split(HoldoutConfig(), {"coco": tmp_path / "nothing"}, tmp_path / "split")
