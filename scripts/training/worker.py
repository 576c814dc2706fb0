"""One rank of a training run: started by torchrun (see `launch.py`), it trains from the last checkpoint to the end.

    for every step: read this rank's micro-batches, take the step with the other ranks, record it,
                    measure the held-out loss and write a checkpoint where the settings say so

What it leaves in `state/<fingerprint>/` is described in `state.py` and `metrics.py`. How it ended is told in
`ranks/<rank>.json`; the launcher reads it.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from scripts.common.errors import UserError
from scripts.common.files import file_sha256, write_json
from scripts.common.program import load_settings
from scripts.sections.run import Run
from scripts.training.launch import RunLock, channel, die_with_parent
from scripts.training.loader import BlendReader
from scripts.training.plans import plan_facts, refuse_other_plans
from scripts.training.state import Checkpoints, load_weights, sync, weights_of, write_tensors

# Ranks wait for each other so long: rank 0 alone hashes the bases and writes checkpoints.
_PATIENCE = timedelta(hours=1)

Send = Callable[[dict[str, Any]], None]


class HopelessError(UserError):
    """Running again with the same settings and data would end the same way."""


class Trainer:
    """The state of a run on this rank, and what happens to it."""

    def __init__(self, args: argparse.Namespace, settings: Run, send: Send):
        """Read data and model, and take up the newest checkpoint.

        Raises:
            UserError: data or model are missing, damaged or do not belong together.
        """
        import torch
        import torch.distributed as dist

        from scripts.media.pixels import PixelStore, pixels_key
        from scripts.training.assembly import load_model
        from scripts.training.batches import Batches
        from scripts.training.engine import Engine
        from scripts.training.metrics import Metrics
        from scripts.training.trainable import prepare, table

        self.args, self.settings, self.send = args, settings, send
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.state: Path = args.state
        self.stopping = False
        readers = {folder: BlendReader(folder, args.root) for folder in dict.fromkeys([*args.blend, args.heldout])}
        epochs = [readers[folder] for folder in args.blend]
        dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        # One rank checks the hashes for all: reading a large base twice from a shared disk costs minutes.
        model, processor = load_model(args.model, args.root, settings.attention, dtype, check=self.rank == 0)

        share = {
            "global_batch": epochs[0].global_batch,
            "micro_batch": settings.micro_batch,
            "rank": self.rank,
            "ranks": self.ranks,
            "pixels": None,
        }
        if args.pixels:
            share["pixels"] = PixelStore(args.pixels, pixels_key(processor.image_processor.to_dict()))
        self.batches = Batches(epochs, processor, **share)
        self.heldout = Batches([readers[args.heldout]], processor, **share, limit=settings.evaluate_batches)
        if self.batches.steps == 0:
            raise UserError(f"{args.blend[0]} holds no conversations, so there is nothing to train on")
        self.plans = [plan_facts(reader) for reader in epochs]
        self.checkpoints = Checkpoints(self.state / "checkpoints", settings.keep_checkpoints)
        found = [self.checkpoints.newest(self.say) if self.rank == 0 else None]
        dist.broadcast_object_list(found)
        facts = found[0] or {"step": 0, "metrics_bytes": 0, "best": None}
        if found[0]:
            refuse_other_plans(facts["plans"], epochs, f"the checkpoint of step {facts['step']}")
        self.done: int = facts["step"]
        self.best: dict[str, Any] | None = facts["best"]

        prepare(model, settings)
        self.say(table(model, settings))
        tensors = self.checkpoints.load(self.done) if self.done else None
        if tensors is not None:
            load_weights(model, weights_of(tensors))
        self.engine = Engine(
            model,
            settings,
            datasets=sorted({name for reader in readers.values() for name in reader.datasets}),
            accumulation=self.batches.accumulation,
            steps=self.batches.steps,
        )
        if tensors is not None:
            self.engine.restore(tensors, self.done, self.batches.filler(), self.batches.accumulation)
        self.saved = self.done
        self.metrics = Metrics(self.state, facts["metrics_bytes"], self.done) if self.rank == 0 else None
        if self.done:
            self.say(f"continuing after step {self.done} of {self.batches.steps}")

    def say(self, text: str) -> None:
        """Tell the person something (rank 0 only)."""
        if self.rank == 0:
            self.send({"say": text})

    def run(self) -> bool:
        """Train to the end, or until asked to stop; return whether the end was reached."""
        if self.rank == 0:
            self.send({"steps": self.batches.steps, "done": self.done})
        if self.done == 0:
            self.evaluate()
        feed = self.batches.load(self.done, self.settings.workers)
        while self.done < self.batches.steps:
            if self.step(feed) and self.done < self.batches.steps:
                self.save()
                if self.metrics:
                    self.metrics.close()
                return False
        self.finish()
        return True

    def step(self, feed) -> bool:
        """Take one step and do what is due after it; return whether some rank was asked to stop."""
        begin = time.perf_counter()
        batches = [next(feed) for _ in range(self.batches.accumulation)]
        waited = time.perf_counter() - begin
        result = self.engine.step(self.done, batches, self.stopping)
        epoch, units = self.batches.units(self.done)
        if not result.finite:
            self.explain(epoch, units, result)
        self.done += 1
        if self.metrics:
            seconds = time.perf_counter() - begin
            self.metrics.write(
                {
                    "step": self.done,
                    "epoch": epoch,
                    "loss": result.measured.loss,
                    "lr": result.learning_rate,
                    "grad_norm": result.grad_norm,
                    "tokens": result.tokens,
                    "supervised_tokens": result.measured.supervised,
                    "padding": 1 - result.tokens / result.places,
                    "seconds": round(seconds, 6),
                    "data_seconds": round(waited, 6),
                    "tokens_per_second": round(result.tokens / seconds, 1),
                    "datasets": result.measured.by_dataset(),
                }
            )
            self.send({"step": self.done, "note": f"loss {result.measured.loss:.4f}"})
        every = self.settings.evaluate_every
        if self.batches.locate(self.done)[0] > epoch or (every and self.done % every == 0):
            self.evaluate()
        if self.done % self.settings.checkpoint_every == 0 or self.done == self.batches.steps:
            self.save()
        return result.stop

    def evaluate(self) -> None:
        """Measure the held-out loss, and keep the weights if they are the best so far."""
        if len(self.heldout) == 0:
            if self.done == 0:
                self.say("no conversation is held out, so no loss is measured there; the last weights count as best")
            return
        begin = time.perf_counter()
        measured = self.engine.evaluate(self.heldout.load(0, self.settings.workers))
        if self.metrics:
            self.metrics.write(
                {
                    "step": self.done,
                    "epoch": self.batches.locate(max(self.done - 1, 0))[0],
                    "heldout_loss": measured.loss,
                    "supervised_tokens": measured.supervised,
                    "datasets": measured.by_dataset(),
                    "seconds": round(time.perf_counter() - begin, 6),
                }
            )
            self.say(f"held-out loss after step {self.done}: {measured.loss:.4f}")
        # The weights before training are no result of the run, however good they are.
        if self.done and (self.best is None or measured.loss < self.best["heldout_loss"]):
            self.best = {"step": self.done, "heldout_loss": measured.loss, **self.keep_weights()}

    def keep_weights(self) -> dict[str, str]:
        """Write the trained weights of this moment; return their place below the state and their hash (rank 0)."""
        weights = self.engine.weights()
        place = f"weights/step-{self.done:08d}.safetensors"
        if self.rank != 0:
            return {"weights": place, "sha256": ""}
        write_tensors(self.state / place, weights)
        return {"weights": place, "sha256": file_sha256(self.state / place)}

    def save(self) -> None:
        """Write a checkpoint of this moment, unless there is one."""
        if self.saved == self.done:
            return
        tensors = self.engine.state()
        self.saved = self.done
        if self.rank == 0:
            epoch, unit = self.batches.locate(self.done)
            place = {"plans": self.plans, "epoch": epoch, "unit": unit}
            self.checkpoints.save(self.done, tensors, place | {"metrics_bytes": self.metrics.sync(), "best": self.best})
            self.prune_weights()

    def prune_weights(self, *keep: dict[str, Any]) -> None:
        """Remove weights that neither the run nor a checkpoint it may return to names as best."""
        named = [self.best, *keep, *(facts["best"] for facts in self.checkpoints.facts())]
        wanted = {Path(entry["weights"]).name for entry in named if entry}
        for path in (self.state / "weights").glob("*"):
            if path.name not in wanted:
                path.unlink()

    def finish(self) -> None:
        """Write the last weights and, as the very last thing, `finished.json`."""
        from scripts.training.metrics import read_metrics, summary

        weights = self.keep_weights()
        if self.rank != 0:
            return
        curve = summary(read_metrics(self.state / "metrics.jsonl"))
        heldout = curve["heldout"][-1][1] if curve["heldout"] else None
        final = {"step": self.done, "heldout_loss": heldout, **weights}
        best = self.best or final
        self.prune_weights(final)
        self.metrics.sync()
        self.metrics.close()
        sync(self.state / "weights")
        state = f"state/{self.args.fingerprint}"
        finished = {
            "v": 1,
            "run": self.args.name,
            "fingerprint": self.args.fingerprint,
            "state": state,
            "attention": self.settings.attention,
            "precision": self.settings.precision,
            "steps": self.batches.steps,
            "epochs": self.settings.epochs,
            "final": final | {"weights": f"{state}/{final['weights']}"},
            "best": best | {"weights": f"{state}/{best['weights']}"},
            "curve": curve,
            "plans": [facts["plan"] for facts in self.plans],
            "heldout_plan": self.heldout.epochs[0].plan,
        }
        write_json(self.state / "finished.json", finished)

    def explain(self, epoch: int, units: range, result) -> None:
        """Raise the error that names the conversations of a batch whose loss or gradient is not a number."""
        uids = [uid for unit in units for uid in self.batches.epochs[epoch].uids(unit)]
        raise HopelessError(
            f"step {self.done + 1}: loss {result.measured.loss}, gradient norm {result.grad_norm}. The same settings "
            "and data lead here again; lower learning_rate, raise warmup_steps or look at these conversations: "
            f"{', '.join(uids)}"
        )


def start_distributed() -> None:
    """Join the other ranks; gloo on CPUs, NCCL on GPUs."""
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
    deepspeed.init_distributed(verbose=False, timeout=_PATIENCE)


def main() -> int:
    """Run the rank and tell how it ended; the exit status is 0 if it finished, or stopped when asked to."""
    die_with_parent()
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--settings", required=True)
    arguments.add_argument("--name", required=True)
    arguments.add_argument("--fingerprint", required=True)
    for flag in ("--model", "--heldout", "--root", "--state"):
        arguments.add_argument(flag, required=True, type=Path)
    arguments.add_argument("--blend", required=True, type=Path, nargs="+")
    arguments.add_argument("--pixels", type=Path, nargs="*", default=[])
    args = arguments.parse_args()
    rank = int(os.environ["RANK"])
    settings = load_settings(Run, args.settings)
    send = channel(args.state / "log.txt")
    lock = RunLock(args.state / "lock")
    lock.take_rank(rank)
    end: dict[str, Any] = {}
    trainer: Trainer | None = None

    def stop(number: int, frame: object) -> None:
        nonlocal end
        end = {"status": "stopped"}
        if trainer is not None:
            trainer.stopping = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        import torch

        torch.set_num_threads(settings.threads)
        start_distributed()
        trainer = Trainer(args, settings, send)
        trainer.stopping = bool(end)
        end = {"status": "finished"} if trainer.run() else {"status": "stopped", "step": trainer.done}
    except UserError as error:
        end = {"status": "error", "message": str(error), "hopeless": isinstance(error, HopelessError)}
    except Exception:
        traceback.print_exc()
        end = {"status": "crash", "message": traceback.format_exc(limit=-3)}
    write_json(args.state / "ranks" / f"{rank}.json", end)
    lock.release()
    return 1 if end["status"] in ("error", "crash") else 0


if __name__ == "__main__":
    status = main()
    # Past the interpreter's own end: libraries' threads and process groups are torn down there in no fixed order, and
    # a rank that has written everything must not fail then.
    sys.stdout.flush()
    os._exit(status)
