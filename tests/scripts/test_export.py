"""Exported folders: self-contained, the trained weights and no others, the same bytes each time."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from scripts.common.errors import UserError
from scripts.common.files import file_sha256
from scripts.export import export
from scripts.training.batches import Batches
from scripts.training.loader import BlendReader
from tests.runs import REPOSITORY, Lab, finished


@pytest.fixture(scope="module")
def exported(lab: Lab, undisturbed: Path) -> Path:
    command = ["--run", str(undisturbed), "--model", str(lab.model), "--root", str(lab.root)]
    out = lab.root / "exported/tiny"
    subprocess.run([sys.executable, "-m", "scripts.export", *command, "--out", str(out)], cwd=REPOSITORY, check=True)
    return out


@pytest.mark.parametrize("which", ["final", "best"])
def test_it_loads_alone_and_has_the_loss_that_training_measured(lab: Lab, undisturbed, exported, which, tmp_path):
    alone = shutil.copytree(exported / which, tmp_path / "alone")
    model = VisualChatForConditionalGeneration.from_pretrained(alone).eval()
    processor = VisualChatProcessor.from_pretrained(alone)
    (batch,) = Batches([BlendReader(lab.heldout, lab.root)], processor, global_batch=6, micro_batch=6)
    names = ("input_ids", "labels", "modality", "pixel_values")
    with torch.no_grad():
        losses, _ = model.token_losses(**{name: batch.tensors[name] for name in names})
    assert losses.mean().item() == pytest.approx(finished(undisturbed)[which]["heldout_loss"], rel=1e-5)
    trained = load_file(undisturbed / finished(undisturbed)[which]["weights"])
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in trained.items())


def test_the_manifest_tells_what_it_is(undisturbed: Path, exported: Path):
    for which in ("final", "best"):
        manifest = json.loads((exported / which / "manifest.json").read_text())
        assert (manifest["run"], manifest["which"], manifest["attention"]) == ("tiny", which, "mmca")
        assert manifest["step"] == finished(undisturbed)[which]["step"]
        files = {path.name: file_sha256(path) for path in (exported / which).iterdir() if path.name != "manifest.json"}
        assert manifest["files"] == files and "model.safetensors" in files


def test_again_it_makes_the_same_bytes_and_replaces_what_was_there(lab: Lab, undisturbed: Path, exported: Path):
    again = lab.root / "exported/again"
    (again / "final").mkdir(parents=True)
    (again / "final/stale.json").write_text("{}")
    (again / ".best.draft").mkdir()
    export(undisturbed, lab.model, lab.root, again)
    found = {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert found == {path.relative_to(exported): path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    assert sorted(path.name for path in again.iterdir()) == ["best", "final"]


def test_what_does_not_belong_together_is_refused(lab: Lab, undisturbed: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"finished.json does not exist"):
        export(tmp_path / "no_run", lab.model, lab.root, tmp_path / "out")
    other = shutil.copytree(lab.model, tmp_path / "model")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"image_tokens": 3}))
    with pytest.raises(UserError, match="was trained from another model"):
        export(undisturbed, other, lab.root, tmp_path / "out")
    run = shutil.copytree(undisturbed, tmp_path / "run")
    (run / finished(run)["best"]["weights"]).write_bytes(b"other")
    with pytest.raises(UserError, match="is missing or has changed"):
        export(run, lab.model, lab.root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
