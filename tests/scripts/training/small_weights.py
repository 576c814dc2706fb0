"""Lets DeepSpeed treat the weights of tiny models as it does those of true ones."""

from typing import Any


def divide_small_weights(every_run: bool = False) -> None:
    """Let engines at stage 3 divide small tensors too, which DeepSpeed otherwise keeps whole.

    Those with a second copy of the weights, or with `every_run` all of them.
    """
    from scripts.training import engine
    from scripts.training.deepspeed_config import deepspeed_config

    def changed(*arguments: Any) -> dict[str, Any]:
        config = deepspeed_config(*arguments)
        zero = config["zero_optimization"]
        if zero["stage"] == 3 and (every_run or "zero_hpz_partition_size" in zero):
            config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config

    engine.deepspeed_config = changed
