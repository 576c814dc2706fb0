"""Exported folders: the trained weights and no others, whole or beside their bases, the same bytes each time."""

import json
import re
import shutil
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
from scripts.inference.blend_reader import BlendReader
from scripts.inference.model_loading import load_model as load_exported
from scripts.training.dataset import MicroBatchDataset
from tests.preload import client as preload
from tests.runs import REPOSITORY, TrainingSetup, finished


@pytest.fixture(scope="module")
def exported(lab: TrainingSetup, undisturbed: Path) -> Path:
    command = ["--run", str(undisturbed), "--model", str(lab.model), "--root", str(lab.root)]
    out = lab.root / "exported/tiny"
    preload.run([sys.executable, "-m", "scripts.export", *command, "--out", str(out)], cwd=REPOSITORY, check=True)
    return out


def heldout_loss(lab: TrainingSetup, model, processor) -> float:
    reader = BlendReader(lab.heldout, lab.root)
    (batch,) = MicroBatchDataset([reader], processor, model.layout_options(), global_batch=6, micro_batch=6)
    names = ("input_ids", "labels", "modality", "pixel_values")
    with torch.no_grad():
        losses, _ = model.token_losses(**{name: batch.tensors[name] for name in names})
    return losses.mean().item()


@pytest.mark.parametrize("which", ["final", "best"])
def test_it_loads_alone_and_has_the_loss_that_training_measured(
    lab: TrainingSetup, undisturbed, exported, which, tmp_path
):
    alone = shutil.copytree(exported / which, tmp_path / "alone")
    model = VisualChatForConditionalGeneration.from_pretrained(alone).eval()
    processor = VisualChatProcessor.from_pretrained(alone)
    measured = finished(undisturbed)[which]["heldout_loss"]
    assert heldout_loss(lab, model, processor) == pytest.approx(measured, rel=1e-5)
    trained = load_file(undisturbed / finished(undisturbed)[which]["weights"])
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in trained.items())


def test_the_manifest_describes_the_folder(undisturbed: Path, exported: Path):
    for which in ("final", "best"):
        manifest = json.loads((exported / which / "manifest.json").read_text())
        assert (manifest["run"], manifest["which"], manifest["attention"]) == ("tiny", which, "mmca")
        assert manifest["step"] == finished(undisturbed)[which]["step"]
        files = {path.name: file_sha256(path) for path in (exported / which).iterdir() if path.name != "manifest.json"}
        assert manifest["files"] == files and "model.safetensors" in files


def test_again_it_makes_the_same_bytes_and_replaces_what_was_there(
    lab: TrainingSetup, undisturbed: Path, exported: Path
):
    again = lab.root / "exported/again"
    (again / "final").mkdir(parents=True)
    (again / "final/stale.json").write_text("{}")
    (again / ".best.draft").mkdir()
    export(undisturbed, lab.model, lab.root, again)
    found = {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert found == {path.relative_to(exported): path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    assert sorted(path.name for path in again.iterdir()) == ["best", "final"]


@pytest.fixture(scope="module")
def adapted(lab: TrainingSetup) -> Path:
    """A run that trains adapters of both halves, the embeddings and the projector."""
    changes = {"train_language": "lora", "train_vision": "lora", "language_lora_rank": 4, "vision_lora_rank": 2}
    status, output = lab.train(lab.root / "train/adapted", **changes, lora_scale=1.5)
    assert status == 0, output
    assert re.search(r"vision +[0-9,]+ +[0-9,]+ +lora", output), "what is frozen is shown"
    return lab.root / "train/adapted"


@pytest.mark.parametrize("which", ["final", "best"])
def test_adapters_are_merged_or_kept_and_give_the_loss_that_training_measured(
    lab: TrainingSetup, adapted: Path, which: str
):
    export(adapted, lab.model, lab.root, lab.root / "exported/adapted")
    export(adapted, lab.model, lab.root, lab.root / "exported/slim", form="delta")
    measured = finished(adapted)[which]["heldout_loss"]
    whole, slim = (load_exported(lab.root / "exported" / name / which, "cpu") for name in ("adapted", "slim"))
    assert heldout_loss(lab, *whole) == pytest.approx(measured, rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), slim[0].parameters(), strict=True))
    assert not any("lora" in name for name, _ in whole[0].named_parameters())
    trained = load_file(adapted / finished(adapted)[which]["weights"])
    kept = load_file(lab.root / "exported/slim" / which / "delta.safetensors")
    assert trained.keys() == kept.keys() and all(torch.equal(trained[name], kept[name]) for name in kept)
    manifests = [
        json.loads((lab.root / "exported" / name / which / "manifest.json").read_text()) for name in ("adapted", "slim")
    ]
    assert [manifest["form"] for manifest in manifests] == ["full", "delta"]


def test_a_delta_moves_with_its_root_and_knows_its_bases(
    lab: TrainingSetup, undisturbed: Path, exported: Path, tmp_path: Path
):
    root = shutil.copytree(lab.root, tmp_path / "moved", ignore=shutil.ignore_patterns("blend", "state"))
    export(undisturbed, lab.model, lab.root, lab.root / "exported/small", form="delta")
    shutil.copytree(lab.root / "exported/small", root / "exported/small", dirs_exist_ok=True)
    folder = root / "exported/small/final"
    assert not list(folder.glob("model*.safetensors")) and not list(folder.glob("*.py"))
    model, processor = load_exported(folder, "cpu")
    whole = VisualChatForConditionalGeneration.from_pretrained(exported / "final")
    for (name, value), (other, expected) in zip(model.named_parameters(), whole.named_parameters(), strict=True):
        assert name == other and torch.equal(value, expected)
    assert model.config.attention == "mmca" and processor.image_tokens == model.config.image_tokens
    with pytest.raises(UserError, match="holds a delta; export the run with --form full"):
        load_exported(folder, "spread")
    config = root / "bases/language/config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(UserError, match="bases/language has changed since"):
        load_exported(folder, "cpu")
    shutil.rmtree(root / "bases/vision")
    with pytest.raises(UserError, match="bases/vision' is neither a folder"):
        load_exported(folder, "cpu")


def test_a_form_that_the_model_cannot_take_is_refused(lab: TrainingSetup, undisturbed: Path, tmp_path: Path):
    with pytest.raises(UserError, match="attention 'mmca': LLaVA would attend causally"):
        export(undisturbed, lab.model, lab.root, tmp_path / "out", form="llava")
    assert not (tmp_path / "out/final").exists()


def test_what_does_not_belong_together_is_refused(lab: TrainingSetup, undisturbed: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"finished.json does not exist"):
        export(tmp_path / "no_run", lab.model, lab.root, tmp_path / "out")
    other = shutil.copytree(lab.model, tmp_path / "model")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"image_tokens": 3}))
    with pytest.raises(UserError, match="was trained from another model"):
        export(undisturbed, other, lab.root, tmp_path / "out")
    run = shutil.copytree(undisturbed, tmp_path / "run")
    (run / finished(run)["best"]["weights"]).write_bytes(b"other")
    with pytest.raises(UserError, match="is missing or damaged"):
        export(run, lab.model, lab.root, tmp_path / "out")
    assert not (tmp_path / "out").exists()
