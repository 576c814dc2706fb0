"""DeepSpeed's configuration, made from a run's settings, so that the two cannot disagree."""

from typing import Any

from scripts.config.run import RunConfig

_LARGEST_BUCKET = 500_000_000


def deepspeed_config(settings: RunConfig, accumulation: int, trained: int, pin: bool) -> dict[str, Any]:
    """Return the configuration for `accumulation` micro-batches per step and `trained` trained parameters.

    It has no sections for an optimizer and a schedule: ours are used (`optimizers.py`, `schedules.py`). `pin`: what is
    offloaded lies in page-locked memory.
    """
    # Buckets are allocated whole, so a small run must not ask for large ones.
    bucket = min(max(trained, 1), _LARGEST_BUCKET)
    zero: dict[str, Any] = {
        "stage": settings.zero,
        "overlap_comm": False,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if settings.zero_hpz > 1:
        zero["zero_hpz_partition_size"] = settings.zero_hpz
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": pin}
    if settings.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": pin}
    return {
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": settings.max_grad_norm,
        "steps_per_print": None,
        "bf16": {"enabled": settings.precision == "bf16"},
        # A scale that DeepSpeed leaves alone: `precision.LossScale` sets it before every step.
        "fp16": {"enabled": True, "loss_scale": 1.0} if settings.precision == "fp16" else {"enabled": False},
        "zero_optimization": zero,
        # DeepSpeed's own Adam for CPUs would have to be compiled.
        "zero_force_ds_cpu_optimizer": False,
        # Optimizers that DeepSpeed has not tested with ZeRO are tested here, at every stage.
        "zero_allow_untested_optimizer": True,
    }
