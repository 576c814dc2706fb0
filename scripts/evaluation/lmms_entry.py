"""What lmms-eval finds through the entry point `lmms_eval.models`: the names of our classes, nothing that is slow."""

from typing import Any


def manifest() -> Any:
    """The model `visualchat`: a chat model, and with `--force_simple` one that is asked for likelihoods."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="visualchat",
        chat_class_path="scripts.evaluation.lmms.VisualChat",
        simple_class_path="scripts.evaluation.lmms.VisualChatSimple",
    )
