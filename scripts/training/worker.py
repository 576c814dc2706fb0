"""One rank of a training run: started by torchrun (see `launch.py`), it joins the others and runs a `Trainer`.

What it leaves in `state/<fingerprint>/` is described in `state.py` and `metrics.py`. How it ended is told in
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
from scripts.common.errors import UserError
from scripts.common.files import write_json
from scripts.config.run import RunConfig
from scripts.training.launch import redirect_output
from scripts.training.parent_death import die_with_parent
from scripts.training.runlock import RunLock

# Ranks wait at least so long for each other before the first step: rank 0 alone hashes the bases.
_PATIENCE = timedelta(hours=1)
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def start_distributed(patience: timedelta = _PATIENCE) -> None:
    """Join the other ranks; gloo on CPUs, NCCL on GPUs. `patience` is how long a rank waits for the others."""
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
    deepspeed.init_distributed(verbose=False, timeout=patience)


def check_precision(settings: RunConfig) -> None:
    """Raise UserError if this machine cannot compute in the run's number format."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    able = {"fp32": True, "bf16": accelerator.is_bf16_supported(), "fp16": accelerator.is_fp16_supported()}
    if not able[settings.precision]:
        raise UserError(
            f"precision {settings.precision} is not supported on this machine ({accelerator.device_name()}); "
            f"it can do {', '.join(name for name, known in able.items() if known)}"
        )


def enable_determinism() -> None:
    """Let a GPU use only algorithms whose results repeat: those that are fastest add numbers in whatever order they
    come. A CPU's always repeat."""
    import torch

    if torch.cuda.is_available():
        # Read when cuBLAS is first called. Without it streams share a workspace, and sums depend on who came first.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # By default this would also fill all new memory, which is for finding mistakes and takes time.
        torch.utils.deterministic.fill_uninitialized_memory = False


def nondeterminism_hint(error: Exception) -> str | None:
    """What to do about an operation that has no algorithm whose results repeat; None if `error` is another."""
    if "does not have a deterministic implementation" not in str(error):
        return None
    return (
        f"{str(error).partition(' does not ')[0]} has no algorithm on this GPU whose results repeat. Set "
        "`deterministic: false` for this run: it then trains, but once interrupted it ends with slightly other numbers"
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
    arguments.add_argument("--deadline", type=float, help="when to have stopped, in seconds since 1970")
    arguments.add_argument("--hang-timeout", type=float, default=60.0, help="minutes without progress that mean a hang")
    return arguments.parse_args()


def main() -> int:
    """Run the rank and tell how it ended; the exit status is 0 if it finished, or stopped when asked to."""
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

        from scripts.training.trainer import PermanentError, Trainer

        torch.set_num_threads(settings.threads)
        if settings.deterministic:
            enable_determinism()
        # The watchdog names a rank that hangs, so collectives must wait longer than it does.
        start_distributed(max(_PATIENCE, timedelta(minutes=2 * args.hang_timeout)))
        check_precision(settings)
        trainer = Trainer(args, settings, send)
        trainer.stopping = bool(end)
        end = {"status": "finished"} if trainer.run() else {"status": "stopped", "step": trainer.done}
    except UserError as error:
        end = {"status": "error", "message": str(error), "permanent": isinstance(error, PermanentError)}
    except OSError as error:
        end = disk_error(error, args.state)
    except Exception as error:
        traceback.print_exc()
        end = {"status": "crash", "message": traceback.format_exc(limit=-3)}
        if told := nondeterminism_hint(error):
            end = {"status": "error", "message": told, "permanent": False}
    try:
        write_json(args.state / "ranks" / f"{rank}.json", end)
    except OSError as error:
        send({"log": f"{error}; {end.get('message', end['status'])}"})
    lock.release()
    return 1 if end["status"] in ("error", "crash") else 0


def disk_error(error: OSError, state: Path) -> dict[str, Any]:
    """The end of a rank that could not write: a full disk is nobody's defect, and nothing that was saved is lost."""
    from scripts.training.checkpoints import FULL, Checkpoints

    if error.errno not in FULL:
        traceback.print_exception(error)
        return {"status": "crash", "message": "".join(traceback.format_exception(error, limit=-3))}
    steps = Checkpoints(state / "checkpoints", 1).steps()
    kept = f"the checkpoint of step {steps[-1]} is whole" if steps else "there is no checkpoint yet"
    where = f" ({error.filename})" if error.filename else ""
    message = f"no room to write below {state}: {error.strerror}{where}; {kept}. Free space and run the same command"
    return {"status": "error", "message": f"{message}: it continues from there", "permanent": False}


if __name__ == "__main__":
    status = main()
    # Past the interpreter's own end: libraries' threads and process groups are torn down there in no fixed order, and
    # a rank that has written everything must not fail then.
    sys.stdout.flush()
    os._exit(status)
