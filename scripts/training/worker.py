"""One rank of a training run: started by torchrun (see `launch.py`), it joins the others and runs a `Trainer`.

What it writes into `state/<fingerprint>/` is described in `checkpoints.py` and `metrics.py`. How it ended is in
`ranks/<rank>.json`, or `ranks/<rank>.stack` if it hung (`watchdog.py`); the launcher reads both.
"""

import argparse
import os
import signal
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

from scripts.common.cli import load_settings
from scripts.common.errors import PermanentError, UserError, machine_error
from scripts.common.files import write_json
from scripts.config.run import RunConfig
from scripts.training.dry_run import take_steps
from scripts.training.launch import redirect_output
from scripts.training.parent_death import die_with_parent
from scripts.training.runlock import RunLock

# The least timeout of a collective: before the first step, ranks wait while rank 0 alone hashes the bases.
_COLLECTIVE_TIMEOUT = timedelta(hours=1)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def start_distributed(timeout: timedelta = _COLLECTIVE_TIMEOUT) -> None:
    """Join the other ranks; gloo on CPUs, NCCL on GPUs. `timeout` is how long a rank waits for the others."""
    import torch

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed.ops

    if on_cpu:
        # DeepSpeed would compile a shared-memory all-reduce on first use. It is not used in training, takes a minute,
        # and needs a C++ compiler, which a machine need not have.
        deepspeed.ops.__compatible_ops__ = {}
    import deepspeed

    deepspeed.accelerator.get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(verbose=False, timeout=timeout)


def check_precision(settings: RunConfig) -> None:
    """Raise UserError if this machine cannot compute in the run's number format."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    supported = {"fp32": True, "bf16": accelerator.is_bf16_supported(), "fp16": accelerator.is_fp16_supported()}
    if not supported[settings.precision]:
        raise UserError(
            f"precision {settings.precision} is not supported on this machine ({accelerator.device_name()}); "
            f"set it to {' or '.join(name for name, works in supported.items() if works)}"
        )


def enable_determinism() -> None:
    """Let a GPU use only deterministic algorithms: the fastest ones add numbers in no fixed order.

    Those of a CPU are deterministic anyway.
    """
    import torch

    if torch.cuda.is_available():
        # Read when cuBLAS is first called. Without it streams share a workspace, and sums depend on their timing.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # By default this would also fill all new memory, which helps to find bugs and takes time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # made on import


def nondeterminism_hint(error: Exception) -> str | None:
    """What to do about an operation without a deterministic algorithm; None if `error` is another."""
    if "does not have a deterministic implementation" not in str(error):
        return None
    return (
        f"{str(error).partition(' does not ')[0]} has no deterministic algorithm on this GPU. Set "
        "`deterministic: false` for this run: it then trains, but after an interruption its numbers differ slightly"
    )


def parse() -> argparse.Namespace:
    """Read the command line that `launch.py` writes."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--settings", required=True)
    arguments.add_argument("--name", required=True)
    arguments.add_argument("--fingerprint", required=True)
    for flag in ("--model", "--heldout", "--root", "--state"):
        arguments.add_argument(flag, required=True, type=Path)
    arguments.add_argument("--blend", required=True, type=Path, nargs="+")
    arguments.add_argument("--pixels", type=Path, nargs="*", default=[])
    arguments.add_argument("--features", type=Path, nargs="*", default=[])
    arguments.add_argument("--deadline", type=float, help="when to have stopped, in seconds since 1970")
    arguments.add_argument("--hang-timeout", type=float, default=60.0, help="minutes without progress that mean a hang")
    arguments.add_argument("--dry-run-steps", type=int, default=0, help="take so many steps, and keep nothing")
    return arguments.parse_args()


def main() -> int:
    """Run the rank and record how it ended; the exit status is 0 if it finished, or stopped when asked to."""
    die_with_parent()
    args = parse()
    rank = int(os.environ["RANK"])
    settings = load_settings(RunConfig, args.settings)
    send = redirect_output(args.state / "log.txt")
    lock = RunLock(args.state / "lock")
    lock.take_rank(rank)
    end: dict[str, Any] = {}
    trainer = None

    def stop(number: int, frame: object) -> None:
        nonlocal end
        end = {"status": "stopped"}
        if trainer is not None:
            trainer.stopping = True

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    try:
        import torch

        from scripts.inference.quantization import check_bitsandbytes
        from scripts.training.compiled_layers import compiler_hint
        from scripts.training.fused_layers import check_fused_layers
        from scripts.training.trainer import Trainer

        torch.set_num_threads(settings.threads)
        if settings.deterministic:
            enable_determinism()
        # The watchdog names the rank that hangs, so collectives must wait longer than the watchdog.
        start_distributed(max(_COLLECTIVE_TIMEOUT, timedelta(minutes=2 * args.hang_timeout)))
        check_precision(settings)
        check_fused_layers(settings)
        if settings.quantize != "none":
            check_bitsandbytes(f"`quantize: {settings.quantize}`", "set `quantize: none` for this run")
        trainer = Trainer(args, settings, send)
        trainer.stopping = bool(end)
        reached_end = take_steps(trainer, args.dry_run_steps) if args.dry_run_steps else trainer.run()
        end = {"status": "finished"} if reached_end else {"status": "stopped", "step": trainer.done}
    except UserError as error:
        end = {"status": "error", "message": str(error), "permanent": isinstance(error, PermanentError)}
    except OSError as error:
        end = disk_error(error, args.state)
    except Exception as error:  # noqa: BLE001 - whatever it is, the launcher must learn how this rank ended
        traceback.print_exc()
        end = {"status": "crash", "message": traceback.format_exc(limit=-3)}
        if hint := nondeterminism_hint(error) or compiler_hint(error):
            end = {"status": "error", "message": hint, "permanent": False}
    try:
        write_json(args.state / "ranks" / f"{rank}.json", end)
    except OSError as error:
        send({"log": f"{error}; {end.get('message', end['status'])}"})
    lock.release()
    return 1 if end["status"] in ("error", "crash") else 0


def disk_error(error: OSError, state: Path) -> dict[str, Any]:
    """How a rank ended that could not read or write: an error of the machine has its message, anything else crashed."""
    from scripts.training.checkpoints import DISK_FULL, Checkpoints

    if error.errno not in DISK_FULL and (message := machine_error(error)):
        return {"status": "error", "message": message, "permanent": False}
    if error.errno not in DISK_FULL:
        traceback.print_exception(error)
        return {"status": "crash", "message": "".join(traceback.format_exception(error, limit=-3))}
    steps = Checkpoints(state / "checkpoints", 1).steps()
    kept = f"the checkpoint of step {steps[-1]} is whole" if steps else "there is no checkpoint yet"
    where = f" ({error.filename})" if error.filename else ""
    message = f"the disk of {state} is full: {error.strerror}{where}; {kept}. Free space and run the same command"
    return {"status": "error", "message": f"{message}: it continues from there", "permanent": False}


if __name__ == "__main__":
    status = main()
    # Skips the interpreter's shutdown: libraries' threads and process groups are torn down there in no fixed order, and
    # a rank that has written everything must not fail in it.
    sys.stdout.flush()
    os._exit(status)
