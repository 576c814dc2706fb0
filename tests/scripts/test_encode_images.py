"""The feature store: what the encoder would compute, the same losses, and one clear error for everything else."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from scripts.common.errors import UserError
from scripts.common.files import write_json, write_table
from scripts.config.run import RunConfig
from scripts.encode_images import load_encoder, write_features
from scripts.inference.blend_reader import BlendReader
from scripts.inference.model_assembly import load_model
from scripts.media.feature_store import FeatureStore
from scripts.media.store import INDEX_SCHEMA
from scripts.media.tarshard import ShardWriter
from scripts.preprocess_images import write_pixels
from scripts.training.dataset import MicroBatchDataset
from scripts.training.engine import LossModule
from scripts.training.features import open_features
from scripts.training.feed import MicroBatchFeed
from scripts.training.precision import dtype_of
from scripts.training.trainable import mark_trainable
from tests.runs import STEPS, TrainingSetup, metrics, state_of
from tests.tiny_models import IMAGE_TOKENS, make_bases

SHARDS = ("coco-00000-of-00002", "coco-00001-of-00002")


@pytest.fixture(scope="module")
def media(lab: TrainingSetup, tmp_path_factory) -> Path:
    """A media folder of two shards with the images that the blends of `lab` show."""
    folder = tmp_path_factory.mktemp("media") / "coco"
    images = {
        sha256: data
        for blend in (*lab.blends, lab.heldout)
        for sample in map(BlendReader(blend, lab.root).read, range(len(BlendReader(blend, lab.root))))
        for sha256, data in zip(sample.image_sha256, sample.images, strict=True)
    }
    rows, listed = [], []
    for number, shard in enumerate(SHARDS):
        with ShardWriter(folder / f"{shard}.tar") as writer:
            for sha256, data in sorted(images.items())[number::2]:
                (offset,) = writer.add(sha256[:16], [("jpg", data)])
                row = {"key": sha256[:16], "path": "", "shard": number, "offset": offset, "length": len(data)}
                kind = {"width": 40, "height": 30, "format": "jpg", "mode": "RGB", "orientation": 1, "flags": []}
                rows.append(row | kind | {"sha256": sha256})
        listed.append({"name": f"{shard}.tar"})
    write_table(folder / "index.parquet", pa.Table.from_pylist(rows, INDEX_SCHEMA))
    write_json(folder / "manifest.json", {"v": 1, "source": "coco", "shards": listed})
    assert len(rows) == 4
    return folder


def encode(
    lab: TrainingSetup, media: Path, out: Path, layer: int = -1, token: str = "drop", precision: str = "fp32", **options
) -> list[Path]:
    """Encode all shards; return their manifests."""
    encoder = load_encoder(str(options.pop("vision", lab.bases["vision"])), lab.root, layer, token, precision)
    for shard in SHARDS:
        pixels = options.get("pixels")
        write_features(encoder, "coco", media, shard, out, pixels and pixels / f"{shard}.json")
    return [out / f"{shard}.json" for shard in SHARDS]


@pytest.fixture(scope="module")
def stores(lab: TrainingSetup, media: Path, tmp_path_factory) -> dict[str, list[Path]]:
    """The manifests of features by the precision that they were computed in."""
    out = tmp_path_factory.mktemp("features")
    return {precision: encode(lab, media, out / precision, precision=precision) for precision in ("fp32", "bf16")}


def of_run(lab: TrainingSetup, manifests: list[Path], precision: str = "fp32") -> FeatureStore:
    """The store as a run opens it."""
    settings = RunConfig(model="tiny", blend="tiny", features=True, precision=precision)
    model, processor = load_model(lab.model, lab.root, "mmca", dtype_of(precision), check=False)
    return open_features(manifests, lab.model, model, processor, settings)


@pytest.mark.parametrize("token", ["drop", "keep"])
@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_are_the_towers_output_in_bf16(lab, media, tmp_path, layer, token, precision):
    from scripts.config.model import ModelConfig
    from scripts.config.tokens import TokensConfig
    from scripts.inference.model_assembly import make_model

    count = IMAGE_TOKENS + (token == "keep")
    settings = ModelConfig(vision="v", language="l", tokens="t", vision_layer=layer, class_token=token)
    names = {kind: str(path) for kind, path in lab.bases.items()}
    make_model(settings, TokensConfig(tokenizer="tiny", image_tokens=count), names, lab.root, tmp_path / "model")
    model, processor = load_model(tmp_path / "model", lab.root, "mmca", dtype_of(precision), check=False)
    run = RunConfig(model="m", blend="b", features=True, precision=precision)
    manifests = encode(lab, media, tmp_path, layer, token, precision)
    store = open_features(manifests, tmp_path / "model", model, processor, run)
    assert len(store) == 4 and store.nbytes == 4 * count * 32 * 2
    write_pixels(str(lab.bases["vision"]), "coco", media, SHARDS[0], tmp_path / "pixels")
    crops = np.fromfile(tmp_path / f"pixels/{SHARDS[0]}.u8", np.uint8).reshape(-1, 3, 32, 32)
    with torch.no_grad():
        expected = model.vision_tower(torch.from_numpy(crops)).to(torch.bfloat16)
    hashes = (tmp_path / f"{SHARDS[0]}.sha256").read_bytes()
    found = [store.get(hashes[start : start + 32].hex()) for start in range(0, len(hashes), 32)]
    assert torch.equal(torch.from_numpy(np.stack(found)).view(torch.bfloat16), expected)


def test_read_from_the_pixel_store_they_are_the_same(lab, media, stores, tmp_path):
    for shard in SHARDS:
        write_pixels(str(lab.bases["vision"]), "coco", media, shard, tmp_path / "pixels")
    for path in encode(lab, media, tmp_path / "features", pixels=tmp_path / "pixels"):
        other = stores["fp32"][0].with_name(path.name)
        for ending in (".json", ".bf16", ".sha256", ".sums"):
            assert path.with_suffix(ending).read_bytes() == other.with_suffix(ending).read_bytes()


def test_batches_hold_features_and_no_image_is_read(lab, stores):
    class WithoutImages(BlendReader):
        def read(self, position, images=True):
            assert not images
            return super().read(position, images)

    model, processor = load_model(lab.model, lab.root, "mmca", check=False)
    options = {"options": model.layout_options(), "global_batch": 4, "micro_batch": 4}
    plain = MicroBatchDataset([BlendReader(lab.blends[0], lab.root)], processor, **options)
    store = of_run(lab, stores["fp32"])
    stored = MicroBatchDataset([WithoutImages(lab.blends[0], lab.root)], processor, features=store, **options)
    for one, two in zip(plain.load(0, 0), stored.load(0, 2), strict=True):
        assert (one.datasets, one.labels, one.tokens) == (two.datasets, two.labels, two.tokens)
        assert "pixel_values" not in two.tensors
        for name in one.tensors.keys() - {"pixel_values"}:
            assert torch.equal(one.tensors[name], two.tensors[name])
        if "pixel_values" in one.tensors:
            features = two.tensors["image_features"]
            assert features.dtype == torch.bfloat16
            assert features.shape == (len(one.tensors["pixel_values"]), IMAGE_TOKENS, 32)
    assert [len(batch.tensors["input_ids"]) for _, batch in stored.conversations(0)] == [1] * 4


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_losses_and_gradients_are_those_without_a_store(lab, stores, precision):
    """Equal to the rounding to bf16; where the tower computes in bf16 already, bit for bit."""
    model, processor = load_model(lab.model, lab.root, "mmca", dtype_of(precision), check=False)
    mark_trainable(model, RunConfig(model="tiny", blend="tiny"))
    reader, found = BlendReader(lab.blends[0], lab.root), []
    for features in (None, of_run(lab, stores[precision], precision)):
        if features is not None:
            model.detach_vision_tower()
        batches = MicroBatchDataset(
            [reader], processor, model.layout_options(), global_batch=10, micro_batch=10, features=features
        )
        for batch in (batches[0], batches[3]):
            inputs = MicroBatchFeed([batch], model.device).take().inputs
            model.zero_grad()
            loss, losses = LossModule(model.train())(**inputs)
            loss.backward()
            found.append((losses, next(model.projector.parameters()).grad.clone()))
    for plain, stored in zip(found[:2], found[2:], strict=True):
        if precision == "bf16":
            assert all(torch.equal(one, two) for one, two in zip(plain, stored, strict=True))
        else:
            assert not torch.equal(plain[1], stored[1]), "nothing was rounded"
            torch.testing.assert_close(plain[0], stored[0], rtol=2e-3, atol=2e-3)


def test_a_run_has_the_losses_of_one_without(lab, undisturbed, stores, tmp_path):
    process = lab.start(tmp_path / "run", flags=["--features", *map(str, stores["fp32"])], features=True)
    output = process.communicate()[1]
    assert process.returncode == 0, output
    losses, expected = (
        [line[name] for line in metrics(out) for name in ("loss", "heldout_loss") if name in line]
        for out in (tmp_path / "run", undisturbed)
    )
    assert len(losses) > STEPS and losses == pytest.approx(expected, rel=2e-3) and losses != expected
    facts = json.loads((state_of(tmp_path / "run") / "throughput.json").read_text())["features"]
    assert (facts["images"], facts["bytes"]) == (4, 4 * IMAGE_TOKENS * 32 * 2)
    assert 0 < facts["encoder_share"] < 0.5 and facts["encoder_flops_per_epoch"] > 0
    assert "features" not in json.loads((state_of(undisturbed) / "throughput.json").read_text())


COMMAND = r"run encode_images again \(snakemake --forcerun encode_images\), or set features: false"


@pytest.mark.parametrize(
    ("ending", "keep"), [(".bf16", 100), (".bf16", None), (".sha256", None), (".sums", None), (".json", None)], ids=str
)
def test_a_file_that_is_missing_or_cut_off_is_named_with_the_command(lab, stores, tmp_path, ending, keep):
    shutil.copytree(stores["fp32"][0].parent, tmp_path / "copy")
    file = tmp_path / f"copy/{SHARDS[0]}{ending}"
    content = file.read_bytes()
    file.unlink()
    if keep is not None:
        file.write_bytes(content[:keep])
    with pytest.raises(UserError, match=rf"{file.name} is missing.*scripts\.verify"):
        of_run(lab, [tmp_path / f"copy/{shard}.json" for shard in SHARDS])


def test_features_of_another_encoder_layer_or_precision_are_refused(lab, media, stores, tmp_path):
    other = make_bases(tmp_path / "bases", seed=5)["vision"]
    for manifests, words in (
        (encode(lab, media, tmp_path / "weights", vision=other), "other weights of the vision encoder than this run's"),
        (encode(lab, media, tmp_path / "layer", layer=-2), "another vision_layer than"),
        (encode(lab, media, tmp_path / "token", token="keep"), "another class_token than"),
        (stores["bf16"], "another precision than"),
    ):
        with pytest.raises(UserError, match=f"{SHARDS[0]}.bf16 was made with {words}.*: {COMMAND}"):
            of_run(lab, manifests)


def test_an_image_that_is_not_in_the_store_is_an_error(lab, stores):
    with pytest.raises(UserError, match=rf"the feature store lacks the image with the sha256 00.*; {COMMAND}"):
        of_run(lab, stores["fp32"]).get("0" * 64)
    process = lab.start(lab.root / "train/unencoded", features=True, ranks=1)
    assert "no feature store was given: name its shards with --features" in process.communicate()[1]
    assert process.returncode == 1


def test_the_flag_needs_the_setting(lab, stores):
    process = lab.start(lab.root / "train/unset", flags=["--features", *map(str, stores["fp32"])])
    assert "--features needs `features: true`" in process.communicate()[1] and process.returncode == 1


def test_an_encoder_that_is_trained_has_no_features_to_store():
    for how in ("lora", "full"):
        with pytest.raises(ValueError, match=f"features: true needs train_vision: frozen, not {how}"):
            RunConfig(model="m", blend="b", features=True, train_vision=how)


def test_a_folder_that_is_no_encoder_is_refused(lab, tmp_path):
    with pytest.raises(UserError, match="cannot be used as a vision encoder"):
        load_encoder(str(lab.bases["tokenizer"]), lab.root, -1, "drop", "fp32")
