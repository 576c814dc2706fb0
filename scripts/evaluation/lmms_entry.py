"""The entry point `lmms_eval.models` of lmms-eval: names of our classes, without slow imports."""

from typing import Any


def manifest() -> Any:
    """The model `visualchat`: its chat class, and for `--force_simple` a class that also gives likelihoods."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="visualchat",
        chat_class_path="scripts.evaluation.lmms.VisualChat",
        simple_class_path="scripts.evaluation.lmms.VisualChatSimple",
    )
