"""Lets DeepSpeed treat the weights of tiny models as it does those of true ones."""

from typing import Any


def divide_small_weights() -> None:
    """Let engines with a second copy of the weights divide small tensors too, which DeepSpeed otherwise keeps whole."""
    from scripts.training import engine
    from scripts.training.deepspeed_config import deepspeed_config

    def changed(*arguments: Any) -> dict[str, Any]:
        config = deepspeed_config(*arguments)
        if "zero_hpz_partition_size" in config["zero_optimization"]:
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    engine.deepspeed_config = changed
