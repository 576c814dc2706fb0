"""What a run with `features: true` expects of the feature store, and what the store costs and saves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from scripts.common.errors import UserError
from scripts.common.files import read_json
from scripts.config.run import RunConfig
from scripts.media.feature_store import EncoderOutput, FeatureStore
from scripts.media.pixel_store import pixels_key
from scripts.training.dataset import MicroBatchDataset


def open_features(
    manifests: Sequence[Path],
    folder: Path,
    model: VisualChatForConditionalGeneration,
    processor: VisualChatProcessor,
    settings: RunConfig,
) -> FeatureStore | None:
    """Open the feature store of a run; None unless its settings have `features: true`.

    Args:
        manifests: of the store's shards.
        folder: models/<model>, which `model` and `processor` were loaded from.
        model: whose vision tower the features replace.
        processor: of the model.
        settings: of the run.

    Raises:
        UserError: it is incomplete, or was made with another encoder, layer, precision or crop.
    """
    if not settings.features:
        return None
    if not manifests:
        raise UserError("the run has features: true, but no feature store was given: name its shards with --features")
    expected = EncoderOutput(
        weights=read_json(folder / "manifest.json")["bases"]["vision"]["sha256"],
        layer=model.config.vision_feature_layer,
        class_token=model.config.vision_class_token,
        image_size=model.config.image_size,
        precision=settings.precision,
        pixels=pixels_key(processor.image_processor.to_dict()),
    )
    return FeatureStore(manifests, expected)


def savings(
    store: FeatureStore, per_image: float, batches: MicroBatchDataset, lines: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The images and bytes of the store, and the operations of the encoder that a run did without.

    Args:
        store: what the run read.
        per_image: operations of the encoder for an image.
        batches: of all epochs.
        lines: of `metrics.jsonl`.

    Returns `images`, `bytes`, `encoder_flops_per_epoch` (mean), and `encoder_share`: what share of a step's operations
    the encoder would be.
    """
    taken = [line["flops_per_second"] * line["seconds"] for line in lines if "loss" in line]
    encoder = per_image * sum(reader.manifest["n_images"] for reader in batches.epochs)
    others = sum(taken) / len(taken) * batches.steps
    return {
        "images": len(store),
        "bytes": store.nbytes,
        "encoder_flops_per_epoch": round(encoder / len(batches.epochs)),
        "encoder_share": round(encoder / (encoder + others), 4),
    }
