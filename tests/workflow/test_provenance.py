"""The lock file of a run, on real results: complete, without times and paths; every change is found."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scripts import verify
from scripts.common.errors import UserError
from scripts.common.files import file_sha256
from scripts.common.fingerprint import code_files
from scripts.provenance.locking import lock_sha256
from scripts.provenance.verification import verify_root

RUNS = ("first", "second")


@pytest.fixture(scope="module")
def root(finished, tmp_path_factory) -> Path:
    """A copy of the results that tests may change, if they put everything back."""
    copy = tmp_path_factory.mktemp("root") / "out"
    shutil.copytree(finished.folder / "out", copy, symlinks=True)
    return copy


@pytest.fixture
def changed(root):
    """Change a file for a while: `changed(path, content)`; without content it is gone."""
    before: dict[Path, bytes] = {}

    def change(path: Path, content: bytes | None) -> None:
        before.setdefault(path, path.read_bytes())
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    yield change
    for path, content in before.items():
        path.write_bytes(content)


def read_lock(root: Path, run: str = "first") -> dict:
    return json.loads((root / f"train/{run}/lock.json").read_text())


def test_an_unchanged_root_has_no_differences(root):
    for quick in (False, True):
        result = verify_root(root, quick)
        assert result.differences == [] and result.runs == list(RUNS) and result.files > 100
        assert not [note for note in result.notes if note.startswith("code")]


def test_a_lock_file_names_every_kind_of_file_and_no_times_or_paths(root, finished):
    lock = read_lock(root)
    kinds = {path.split("/")[0] for path in lock["files"]}
    expected = {"raw", "validated", "media", "split", "records", "tokens", "plan", "blend", "bases", "models"}
    assert kinds == expected | {"features", "train", "exported", "evaluate"}
    assert any(path.startswith("pixels/") for path in read_lock(root, "second")["files"])
    for path, file in lock["files"].items():
        assert (file["bytes"], file["sha256"]) == ((root / path).stat().st_size, file_sha256(root / path)), path
    for name in ("final", "best"):
        assert f"exported/first/{name}/model.safetensors" in lock["files"]
    assert {"scripts/plan.py", "model/attention.py", "scripts/adapters/llava.py"} <= lock["code"].keys()
    assert lock["code"] == code_files(*lock["programs"])
    # The second run trains on none of the first one's datasets, and its lock file does not have their adapters.
    assert "scripts/adapters/llava.py" not in read_lock(root, "second")["code"]
    text = json.dumps(lock)
    assert str(finished.folder) not in text and not re.search(r'"/|\d{4}-\d{2}-\d{2}|"seconds', text)
    assert lock["sha256"] == lock_sha256(lock) == lock_sha256(lock | {"environment": {}})


TAMPERED = [
    "raw/coco/source.json",
    "raw/coco/files.parquet",
    "validated/llava.json",
    "media/coco/coco-00000-of-00002.tar",
    "media/coco/coco-00001-of-00002.tar.idx",
    "media/coco/parts/coco-00000-of-00002.parquet",
    "media/coco/index.parquet",
    "split/heldout.parquet",
    "records/llava.parquet",
    "tokens/words/llava.parquet",
    "plan/mixed/epoch-000.parquet",
    "blend/mixed/epoch-000/train-00001-of-00002.tar",
    "blend/mixed/epoch-000/units.idx",
    "blend/mixed/epoch-000/counts.npy",
    "blend/mixed/heldout/manifest.json",
    "pixels/miniature/coco-00001-of-00002.u8",
    "pixels/miniature/coco-00001-of-00002.sums",
    "features/miniature/layer-1-drop-fp32/coco-00001-of-00002.bf16",
    "bases/miniature/vision/model.safetensors",
    "models/small/projector.safetensors",
    "exported/first/final/model.safetensors",
    "exported/first/best/config.json",
    "evaluate/first/heldout/final.jsonl",
    "evaluate/first/metrics.json",
    "train/first/finished.json",
]


def test_every_changed_file_is_found_and_a_changed_size_with_quick(root, changed):
    paths = sorted(root / name for name in TAMPERED)
    before = {path: path.read_bytes() for path in paths}
    for path, content in before.items():
        middle = len(content) // 2
        changed(path, content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    differences = verify_root(root).differences
    assert len(differences) == len(paths) and verify_root(root, quick=True).differences == []
    for path, difference in zip(paths, differences, strict=True):
        assert difference.startswith(f"{path}: has the sha256 {file_sha256(path)[:16]}")
    for path, content in before.items():
        changed(path, content + b"x")
    for path, difference in zip(paths, verify_root(root, quick=True).differences, strict=True):
        size = len(before[path])
        assert difference.startswith(f"{path}: has {size + 1:,} bytes, and {size:,} in the lock file of ")
    for path in paths:
        changed(path, None)
    for path, difference in zip(paths, verify_root(root, quick=True).differences, strict=True):
        assert difference.startswith(f"{path}: is missing; the run ")


def test_a_changed_raw_file_is_found_through_its_table(root, changed):
    image = next((root / "raw/miniature/coco/train2017").iterdir())
    changed(image, image.read_bytes()[:-1] + b"?")
    (difference,) = verify_root(root).differences
    assert difference.startswith(f"{image}: has the sha256 ")


def test_raw_files_of_a_user_are_checked_in_the_given_folder(root, changed):
    lock = read_lock(root)
    lock["listings"] = dict.fromkeys(lock["listings"], "")
    lock["sha256"] = lock_sha256(lock)
    changed(root / "train/first/lock.json", json.dumps(lock).encode())
    changed(root / "train/second/lock.json", None)
    folder = root / "raw/miniature"
    assert verify_root(root, raw=folder).files == verify_root(root).files + listed_files(lock, root)
    captions = folder / "coco_caption/dataset.json"
    changed(captions, captions.read_bytes() + b" ")
    assert verify_root(root).differences == []
    (difference,) = verify_root(root, raw=folder).differences
    assert difference.startswith(f"{captions}: has ")


def listed_files(lock: dict, root: Path) -> int:
    """The number of raw files in the tables of a lock file."""
    tables = [pq.read_table(root / name, columns=["path"])["path"].to_pylist() for name in lock["listings"]]
    return len({path for table in tables for path in table})


def test_changed_weights_of_the_state_are_found(root, changed):
    finished = json.loads((root / "train/first/finished.json").read_text())
    weights = root / "train/first" / finished["best"]["weights"]
    content = weights.read_bytes()
    changed(weights, content[:-1] + bytes([content[-1] ^ 1]))
    (difference,) = verify_root(root).differences
    assert difference.startswith(f"{weights}: ")


def test_an_edited_lock_file_is_found(root, changed):
    path = root / "train/first/lock.json"
    lock = read_lock(root)
    lock["files"]["split/heldout.parquet"]["sha256"] = "0" * 64
    changed(path, json.dumps(lock).encode())
    differences = verify_root(root).differences
    assert any(line.startswith(f"{path}: was changed") for line in differences)
    assert any(
        "split/heldout.parquet: the runs first and second used different versions of it" in d for d in differences
    )


def test_changed_code_and_libraries_are_notes_without_strict(root, changed, monkeypatch, capsys):
    path = root / "train/first/lock.json"
    lock = read_lock(root)
    lock["code"] |= {"scripts/plan.py": "0" * 16, "scripts/gone.py": "0" * 16}
    del lock["code"]["scripts/blend.py"]
    lock["environment"]["libraries"]["numpy"] = "0.1"
    changed(path, json.dumps(lock | {"sha256": lock_sha256(lock)}).encode())
    notes = verify_root(root, quick=True).notes
    assert [note for note in notes if note.startswith("code")] == [
        "code: scripts/blend.py is new since first was made",
        "code: scripts/gone.py was removed since first was made",
        "code: scripts/plan.py has changed since first was made",
    ]
    assert any(note.startswith("environment: numpy was 0.1 when first was made, and is ") for note in notes)
    for flags, status in (([], 0), (["--strict"], 1)):
        monkeypatch.setattr("sys.argv", ["verify", "--root", str(root), "--quick", *flags])
        assert verify.main() == status
        output = capsys.readouterr()
        assert "scripts/plan.py has changed" in (output.out if flags else output.err)


def test_the_program_prints_differences_and_fails(root, changed, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["verify", "--root", str(root)])
    assert verify.main() == 0
    assert capsys.readouterr().out.startswith("nothing differs: ")
    changed(root / "split/heldout.parquet", None)
    assert verify.main() == 1
    output = capsys.readouterr().out
    assert "split/heldout.parquet: is missing" in output and output.splitlines()[-1].startswith("1 difference in ")


def test_a_run_without_a_lock_file_is_a_note_and_a_root_without_any_is_an_error(root, changed, tmp_path):
    changed(root / "train/second/lock.json", None)
    result = verify_root(root, quick=True)
    assert result.runs == ["first"] and any("second has no lock.json" in note for note in result.notes)
    with pytest.raises(UserError, match=r"no train/\*/lock\.json below"):
        verify_root(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "raw/../../outside"])
def test_a_lock_file_must_not_name_files_outside_of_the_root(root, changed, name):
    path = root / "train/first/lock.json"
    lock = read_lock(root)
    lock["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    changed(path, json.dumps(lock).encode())
    with pytest.raises(UserError, match="does not lie below"):
        verify_root(root)


def test_something_else_is_no_read_lock(root, changed):
    path = root / "train/first/lock.json"
    changed(path, b"{}")
    with pytest.raises(UserError, match="is not a lock file"):
        verify_root(root)
