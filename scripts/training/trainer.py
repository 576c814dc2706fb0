"""The course of a run on one rank: from the last checkpoint to the end, or to a stop.

    before training     measure the held-out loss
    for every step      read this rank's micro-batches, take the step with the other ranks, record it
    where it is due     measure the held-out loss (and keep the weights if they are the best), write a checkpoint
    at the end          write the last weights and `finished.json`

A rank that is asked to stop, or whose time runs out, tells the others in the next collective; all then leave together
after a checkpoint. So does a measurement of the held-out loss, which is put off until the run continues.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from scripts.common.errors import UserError
from scripts.common.files import file_sha256, write_json
from scripts.common.tensors import write_tensors
from scripts.config.run import RunConfig
from scripts.inference.blend_reader import BlendReader
from scripts.inference.model_assembly import load_model
from scripts.media.pixel_store import PixelStore, pixels_key
from scripts.training.checkpoints import Checkpoints, load_weights, weights_of
from scripts.training.dataset import MicroBatchDataset
from scripts.training.engine import StepResult, TrainingEngine
from scripts.training.flops import peak_flops
from scripts.training.metrics import Metrics, memory_bytes, read_metrics, summary, throughput
from scripts.training.plan_check import check_same_plans, plan_facts
from scripts.training.precision import dtype_of
from scripts.training.trackers import TrackedRun, open_trackers
from scripts.training.trainable import mark_trainable, parameter_table
from scripts.training.watchdog import Watchdog

Send = Callable[[dict[str, Any]], None]

_BEGINNING = {
    "step": 0,
    "metrics_bytes": 0,
    "best": None,
    "since_best": 0,
    "eval_pending": False,
}


class PermanentError(UserError):
    """Running again with the same settings and data would end the same way."""


class Trainer:
    """The state of a run on this rank, and what happens to it. Set `stopping` to end it soon, in order."""

    def __init__(self, args: argparse.Namespace, settings: RunConfig, send: Send):
        """Read data and model, and take up the newest checkpoint.

        Raises:
            UserError: data or model are missing, damaged or do not belong together.
        """
        self.args, self.settings, self.send = args, settings, send
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.state: Path = args.state
        self.stopping = False
        self._longest_step = self._longest_save = 0.0
        readers = {folder: BlendReader(folder, args.root) for folder in dict.fromkeys([*args.blend, args.heldout])}
        epochs = [readers[folder] for folder in args.blend]
        # One rank checks the hashes for all: reading a large base twice from a shared disk costs minutes.
        model, processor = load_model(
            args.model,
            args.root,
            settings.attention,
            dtype_of(settings.precision),
            check=self.rank == 0,
            keep_language_dtype=settings.zero == 3,
        )

        share = {
            "global_batch": epochs[0].global_batch,
            "micro_batch": settings.micro_batch,
            "rank": self.rank,
            "ranks": self.ranks,
            "pixels": None,
        }
        if args.pixels:
            share["pixels"] = PixelStore(args.pixels, pixels_key(processor.image_processor.to_dict()))
        self.batches = MicroBatchDataset(epochs, processor, **share)
        self.heldout = MicroBatchDataset([readers[args.heldout]], processor, **share, limit=settings.evaluate_batches)
        if self.batches.steps == 0:
            raise UserError(f"{args.blend[0]} holds no conversations, so there is nothing to train on")
        self.plans = [plan_facts(reader) for reader in epochs]
        self.checkpoints = Checkpoints(self.state / "checkpoints", settings.keep_checkpoints)
        found = [self.checkpoints.newest(self.log) if self.rank == 0 else None]
        dist.broadcast_object_list(found)
        facts = found[0] or _BEGINNING
        if found[0]:
            check_same_plans(facts["plans"], epochs, f"the checkpoint of step {facts['step']}")
        self.done: int = facts["step"]
        self.best: dict[str, Any] | None = facts["best"]
        self.since_best: int = facts["since_best"]
        self.eval_pending: bool = facts["eval_pending"]

        mark_trainable(model, settings)
        self.log(parameter_table(model, settings))
        tensors = self.checkpoints.load(self.done) if self.done else None
        if tensors is not None:
            load_weights(model, weights_of(tensors))
        self.engine = TrainingEngine(
            model,
            settings,
            datasets=sorted({name for reader in readers.values() for name in reader.datasets}),
            accumulation=self.batches.accumulation,
            steps=self.batches.steps,
        )
        if tensors is not None:
            self.engine.restore(tensors, facts["engine"], self.batches.filler(), self.batches.accumulation)
        self.saved = self.done
        self.metrics = self._metrics(facts["metrics_bytes"]) if self.rank == 0 else None
        self.watchdog = Watchdog(self.state / "ranks", self.rank, args.hang_timeout * 60)
        if self.done:
            self.log(f"continuing after step {self.done} of {self.batches.steps}")

    def _metrics(self, keep_bytes: int) -> Metrics:
        write_json(self.state / "deepspeed.json", self.engine.config)
        run = TrackedRun(
            project=self.settings.project,
            name=self.args.name,
            fingerprint=self.args.fingerprint,
            settings=self.settings.model_dump(mode="json"),
            step=self.done,
        )
        return Metrics(self.state, keep_bytes, open_trackers(self.settings, self.state, run))

    def log(self, text: str) -> None:
        """Tell the person something (rank 0 only)."""
        if self.rank == 0:
            self.send({"log": text})

    @property
    def at_end(self) -> bool:
        """Whether nothing is left to do but to write the result."""
        return not self.eval_pending and (self.done == self.batches.steps or self.early_stopped)

    @property
    def early_stopped(self) -> bool:
        """Whether the held-out loss has not improved for as long as the settings allow."""
        return 0 < self.settings.early_stopping_patience <= self.since_best

    def must_stop(self) -> bool:
        """Whether this rank was asked to stop, or the time left is not enough for another step and a checkpoint."""
        needed = 2 * (self._longest_step + self._longest_save)
        return self.stopping or (self.args.deadline is not None and time.time() + needed > self.args.deadline)

    def run(self) -> bool:
        """Train to the end, or until asked to stop; return whether the end was reached."""
        if self.rank == 0:
            self.send({"steps": self.batches.steps, "done": self.done})
        stop = (self.done == 0 or self.eval_pending) and not self.evaluate()
        feed = self.batches.load(self.done, self.settings.workers)
        while not stop and not self.at_end:
            stop = self.step(feed)
        if not self.at_end:
            if self.done:
                self.save()
            else:
                self.log("there was no time for a single step, so the run has not begun")
            self._close()
            return False
        self.finish()
        return True

    def step(self, feed) -> bool:
        """Take one step and do what is due after it; return whether some rank must stop."""
        self.watchdog.restart()
        begin = time.perf_counter()
        batches = [next(feed) for _ in range(self.batches.accumulation)]
        waited = time.perf_counter() - begin
        self.watchdog.restart()
        result = self.engine.step(self.done, batches, self.must_stop())
        if not result.finite:
            what = f"step {self.done + 1}: loss {result.measured.loss}, gradient norm {result.grad_norm}"
            self.raise_nonfinite(what, self.batches, range(self.done, self.done + 1))
        epoch = self.batches.locate(self.done)[0]
        self.done += 1
        seconds = time.perf_counter() - begin
        self._longest_step = max(self._longest_step, seconds)
        self.record(epoch, result, seconds, waited)
        every = self.settings.evaluate_every
        due = self.batches.locate(self.done)[0] > epoch or (every and self.done % every == 0)
        if due and not self.evaluate():
            return True
        if self.done % self.settings.checkpoint_every == 0 or self.at_end:
            self.save()
        return result.stop

    def record(self, epoch: int, result: StepResult, seconds: float, waited: float) -> None:
        """Write the line of the step that was just taken (rank 0)."""
        if not self.metrics:
            return
        line = {
            "step": self.done,
            "epoch": epoch,
            "loss": result.measured.loss,
            "lr": result.learning_rate,
            "learning_rates": result.learning_rates,
            "grad_norm": None if result.skipped else result.grad_norm,
            "tokens": result.tokens,
            "supervised_tokens": result.measured.supervised,
            "padding": 1 - result.tokens / result.padded_tokens,
            "seconds": round(seconds, 6),
            "data_seconds": round(waited, 6),
            "tokens_per_second": round(result.tokens / seconds, 1),
            "supervised_tokens_per_second": round(result.measured.supervised / seconds, 1),
            "flops_per_second": round(result.flops / seconds),
            "memory_bytes": memory_bytes(),
            "datasets": result.measured.by_dataset(),
        }
        if self.engine.loss_scale:
            line |= {"loss_scale": self.engine.loss_scale.scale, "skipped": result.skipped}
        self.metrics.write(line)
        self.send({"step": self.done, "note": f"loss {result.measured.loss:.4f}"})

    def evaluate(self) -> bool:
        """TokenTables the held-out loss, and keep the weights if they are the best so far.

        Return False if there was no time for it; it is then made up for when the run continues.
        """
        self.eval_pending = False
        if len(self.heldout) == 0:
            if self.done == 0:
                self.log("no conversation is held out, so no loss is measured there; the last weights count as best")
            return True
        begin = time.perf_counter()
        measured = self.engine.evaluate(self.heldout.load(0, self.settings.workers), self._interrupted)
        if measured is None:
            self.eval_pending = True
            return False
        if not math.isfinite(measured.loss):
            what = f"held-out loss {measured.loss} after step {self.done}"
            self.raise_nonfinite(what, self.heldout, range(self.heldout.steps))
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
            self.log(f"held-out loss after step {self.done}: {measured.loss:.4f}")
        # The weights before training are no result of the run, however good they are.
        if self.done and (self.best is None or measured.loss < self.best["heldout_loss"]):
            self.best = {"step": self.done, "heldout_loss": measured.loss, **self.keep_weights()}
            self.since_best = 0
        elif self.done:
            self.since_best += 1
            if self.early_stopped:
                self.log(
                    f"ending after step {self.done}: the held-out loss was best after step {self.best['step']}, "
                    f"{self.since_best} measurements ago"
                )
        return True

    def _interrupted(self) -> bool:
        self.watchdog.restart()
        return self.must_stop()

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
        self.watchdog.restart()
        begin = time.perf_counter()
        tensors = self.engine.state()
        self.saved = self.done
        if self.rank == 0:
            epoch, unit = self.batches.locate(self.done)
            facts = {
                "plans": self.plans,
                "epoch": epoch,
                "unit": unit,
                "engine": self.engine.facts(),
                "metrics_bytes": self.metrics.sync(),
                "best": self.best,
                "since_best": self.since_best,
                "eval_pending": self.eval_pending,
            }
            self.checkpoints.save(self.done, tensors, facts, self.log)
            self.prune_weights()
        self._longest_save = max(self._longest_save, time.perf_counter() - begin)

    def prune_weights(self, *keep: dict[str, Any]) -> None:
        """Remove weights that neither the run nor a checkpoint it may return to names as best."""
        named = [self.best, *keep, *(facts["best"] for facts in self.checkpoints.facts())]
        wanted = {Path(entry["weights"]).name for entry in named if entry}
        for path in (self.state / "weights").glob("*"):
            if path.name not in wanted:
                path.unlink()

    def finish(self) -> None:
        """Write the last weights and, as the very last thing, `finished.json`."""
        self.watchdog.restart()
        weights = self.keep_weights()
        self._close()
        if self.rank != 0:
            return
        lines = read_metrics(self.state / "metrics.jsonl")
        speed = throughput(lines, peak_flops(self.ranks))
        write_json(self.state / "throughput.json", speed)
        self.log(_in_words(speed))
        curve = summary(lines)
        heldout = curve["heldout"][-1][1] if curve["heldout"] else None
        final = {"step": self.done, "heldout_loss": heldout, **weights}
        best = self.best or final
        self.prune_weights(final)
        state = f"state/{self.args.fingerprint}"
        finished = {
            "v": 1,
            "run": self.args.name,
            "fingerprint": self.args.fingerprint,
            "state": state,
            "attention": self.settings.attention,
            "precision": self.settings.precision,
            "steps": self.done,
            "planned_steps": self.batches.steps,
            "epochs": self.settings.epochs,
            "final": final | {"weights": f"{state}/{final['weights']}"},
            "best": best | {"weights": f"{state}/{best['weights']}"},
            "curve": curve,
            "plans": [facts["plan"] for facts in self.plans],
            "heldout_plan": self.heldout.epochs[0].plan,
        }
        write_json(self.state / "finished.json", finished)

    def raise_nonfinite(self, what: str, batches: MicroBatchDataset, steps: range) -> None:
        """Raise the error that names the conversations of `steps` whose loss or gradient is not a number."""
        rows = [row for step in steps for row in batches.conversations(step)]
        bad = self.engine.find_nonfinite([batch for _, batch in rows], batches.filler())
        shares: list[list[str]] = [[] for _ in range(self.ranks)]
        dist.all_gather_object(shares, [rows[number][0] for number in bad])
        if found := [uid for share in shares for uid in share]:
            where = f"Run one by one, these conversations give no number: {', '.join(found)}"
        else:
            dist.all_gather_object(shares, [uids for uids, _ in rows])
            all_uids = ", ".join(uid for share in shares for uid in share)
            where = f"Every conversation alone gives a number; they are {all_uids}"
        raise PermanentError(
            f"{what}. The same settings and data lead here again; lower learning_rate, raise warmup_steps, or look at "
            f"the data. {where}"
        )

    def _close(self) -> None:
        self.watchdog.cancel()
        if self.metrics:
            self.metrics.sync()
            self.metrics.close()


def _in_words(speed: dict[str, Any]) -> str:
    """The throughput of a run as a line to read."""
    share = speed["model_flops_utilisation"]
    used = "" if share is None else f" ({share:.1%} of what the devices can do)"
    return (
        f"{speed['tokens_per_second']:,.0f} tokens/s, {speed['supervised_tokens_per_second']:,.0f} of them supervised; "
        f"{speed['flops_per_second']:.3g} flops/s{used}; {speed['data_wait']:.1%} of the time waiting for data; at "
        f"most {speed['memory_bytes'] / 2**30:.2f} GiB"
    )
