"""The training loop of one rank: from the last checkpoint to the end of the run, or to a stop.

    before training     measure the held-out loss
    for every step      read this rank's micro-batches, take the step with the other ranks, record it
    when due            measure the held-out loss (and keep the weights if they are the best), write a checkpoint
    at the end          write the last weights and `finished.json`

A rank that is asked to stop, or whose time runs out, signals it in the next collective; all ranks then write a
checkpoint and end together. An evaluation on held-out data is broken off in the same way and remains pending until the
run continues.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from scripts.common.errors import UserError
from scripts.common.files import write_json
from scripts.config.run import RunConfig
from scripts.inference.blend_reader import BlendReader
from scripts.media.pixel_store import PixelStore, pixels_key
from scripts.training.before_training import ChecksBeforeTraining, read_warnings
from scripts.training.checkpoints import Checkpoints, load_weights, weights_of
from scripts.training.dataset import MicroBatchDataset
from scripts.training.engine import TrainingEngine, compute_device
from scripts.training.features import open_features, savings
from scripts.training.feed import MicroBatchFeed
from scripts.training.flops import Flops, peak_flops
from scripts.training.metrics import Metrics, read_metrics, step_line, step_note, summary, throughput, throughput_line
from scripts.training.nonfinite import raise_nonfinite
from scripts.training.plan_check import check_same_plans, plan_facts
from scripts.training.precision import dtype_of
from scripts.training.run_model import load_run_model, values_to_continue
from scripts.training.start import summary as summary_of_start
from scripts.training.step_result import StepResult
from scripts.training.trackers import TrackedRun, open_trackers
from scripts.training.trainable import mark_trainable, parameter_table
from scripts.training.watchdog import Watchdog
from scripts.training.weights_files import BestWeights, WeightsFile, WeightsFiles

Send = Callable[[dict[str, Any]], None]


class _Evaluations(NamedTuple):
    """What is known of evaluations on held-out data.

    `best`: the best weights so far. `since_best`: evaluations after that. `pending`: the last one was broken off.
    """

    best: BestWeights | None
    since_best: int
    pending: bool


_NONE_YET = _Evaluations(best=None, since_best=0, pending=False)


class Trainer:
    """A run on this rank. Set `stopping` to end it soon, with a checkpoint."""

    def __init__(self, args: argparse.Namespace, settings: RunConfig, send: Send) -> None:
        """Read data and model, and restore the newest checkpoint.

        Args:
            args: the command line of a rank, see `worker.parse`.
            settings: of the run.
            send: sends a message to the launcher: `{"log": text}`, `{"steps": n, "done": n}` or
                `{"step": n, "note": text}`.

        Raises:
            UserError: data or model are missing, damaged or do not belong together.
        """
        self.args, self.settings, self.send = args, settings, send
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.state: Path = args.state
        self.stopping = False
        self._longest_step = self._longest_save = 0.0
        self.peak_flops = peak_flops(self.ranks)
        readers = {folder: BlendReader(folder, args.root) for folder in dict.fromkeys([*args.blend, args.heldout])}
        epochs = [readers[folder] for folder in args.blend]
        # One rank checks the hashes for all: reading a large base twice from a shared disk costs minutes.
        model, processor = load_run_model(args, settings, self.rank == 0, self.log)
        options = model.layout_options(compute_device(), dtype_of(settings.precision))
        self.log(f"attention {settings.attention} is computed by the {options.backend} back-end")
        names = sorted({name for reader in readers.values() for name in reader.datasets})
        pixels = PixelStore(args.pixels, pixels_key(processor.image_processor.to_dict())) if args.pixels else None
        self.features = open_features(args.features, args.model, model, processor, settings)

        def micro_batches(parts: Sequence[BlendReader], limit: int = 0) -> MicroBatchDataset:
            return MicroBatchDataset(
                parts,
                processor,
                options,
                global_batch=epochs[0].global_batch,
                micro_batch=settings.micro_batch,
                rank=self.rank,
                ranks=self.ranks,
                limit=limit,
                names=names,
                pixels=pixels,
                features=self.features,
            )

        self.batches = micro_batches(epochs)
        self.heldout = micro_batches([readers[args.heldout]], limit=settings.evaluate_batches)
        if self.batches.steps == 0:
            raise UserError(f"{args.blend[0]} holds no conversations, so there is nothing to train on")
        self.plans = [plan_facts(reader) for reader in epochs]
        self.checkpoints = Checkpoints(self.state / "checkpoints", settings.keep_checkpoints)
        self.weights = WeightsFiles(self.state)
        facts = self._newest_facts()
        if facts:
            check_same_plans(facts["plans"], epochs, f"the checkpoint of step {facts['step']}")
        self.done: int = facts["step"] if facts else 0
        evaluations = _Evaluations(facts["best"], facts["since_best"], facts["eval_pending"]) if facts else _NONE_YET
        self.best, self.since_best, self.eval_pending = evaluations

        self.checks = None if facts else ChecksBeforeTraining(settings, args.model, self.state)
        if self.checks:
            self.checks.check_model(model, processor, list(readers.values()), self.batches.steps)
        mark_trainable(model, settings)
        self.log(parameter_table(model, settings))
        self.encoder_flops = Flops(model).encoder
        tensors = self.checkpoints.load(self.done) if facts else {}
        initial = {} if facts else values_to_continue(model, self.state)
        load_weights(model, weights_of(tensors) if facts else initial)
        self.engine = TrainingEngine(
            model,
            settings,
            datasets=names,
            accumulation=self.batches.accumulation,
            steps=self.batches.steps,
        )
        if facts:
            self.engine.restore(tensors, facts["engine"], self.batches.filler(), self.batches.accumulation)
        elif initial and settings.precision != "fp32":
            self.engine.set_weights(initial, self.batches.filler(), self.batches.accumulation)
        self.saved = self.done
        self.metrics = self._metrics(facts["metrics_bytes"] if facts else 0) if self.rank == 0 else None
        self.watchdog = Watchdog(self.state / "ranks", self.rank, args.hang_timeout * 60)
        if self.done:
            self.log(f"continuing after step {self.done} of {self.batches.steps}")

    def _newest_facts(self) -> dict[str, Any] | None:
        """The facts of the newest checkpoint, which rank 0 reads for all; None if the run has not begun."""
        shared = [self.checkpoints.newest(self.log) if self.rank == 0 else None]
        dist.broadcast_object_list(shared)
        return shared[0]

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
        """Print a message for the user (rank 0 only)."""
        if self.rank == 0:
            self.send({"log": text})

    @property
    def at_end(self) -> bool:
        """Whether nothing remains but to write the result."""
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
        if self.checks:
            self.check_before_training(self.checks)
        stop = (self.done == 0 or self.eval_pending) and not self.evaluate()
        batches = self.engine.feed(self.batches.load(self.done, self.settings.workers))
        while not stop and not self.at_end:
            stop = self.step(batches)
        if not self.at_end:
            if self.done:
                self.save()
            else:
                self.log("there was no time for a single step, so the run has not begun")
            self.close()
            return False
        self.finish()
        return True

    def check_before_training(self, checks: ChecksBeforeTraining) -> None:
        """Measure the first losses, and print and keep the warnings of all checks; all ranks must call it."""
        self.watchdog.restart()
        if line := checks.check_first_loss(self.engine, self.heldout if len(self.heldout) else self.batches):
            self.log(line)
        for warning in checks.warnings if self.rank == 0 else ():
            print(f"WARNING: {warning}", flush=True)
            self.log(f"WARNING: {warning}")
        if self.rank == 0:
            checks.write(self.state)

    def step(self, upcoming: MicroBatchFeed) -> bool:
        """Take one step with the next micro-batches, and do what is due after it; return whether some rank must stop.

        Raises:
            PermanentError: the loss or the gradient is not finite.
        """
        epoch = self.batches.locate(self.done)[0]
        result = self.take_step(upcoming)
        every = self.settings.evaluate_every
        due = self.batches.locate(self.done)[0] > epoch or (every and self.done % every == 0)
        if due and not self.evaluate():
            return True
        if self.done % self.settings.checkpoint_every == 0 or self.at_end:
            self.save()
        return result.stop

    def take_step(self, upcoming: MicroBatchFeed) -> StepResult:
        """Take one step with the next micro-batches and record it.

        Raises:
            PermanentError: the loss or the gradient is not finite.
        """
        self.watchdog.restart()
        begin = time.perf_counter()
        upcoming.waited = 0.0
        result = self.engine.step(self.done, upcoming, self.must_stop())
        if not result.finite:
            what = f"step {self.done + 1}: loss {result.losses.loss}, gradient norm {result.grad_norm}"
            raise_nonfinite(what, self.engine, self.batches, range(self.done, self.done + 1))
        epoch = self.batches.locate(self.done)[0]
        self.done += 1
        seconds = time.perf_counter() - begin
        self._longest_step = max(self._longest_step, seconds)
        self.record(epoch, result, seconds, upcoming.waited)
        return result

    def record(self, epoch: int, result: StepResult, seconds: float, waited: float) -> None:
        """Write the metrics of the step that was just taken (rank 0); `waited`: of `seconds`, those for data."""
        if self.metrics is None:
            return
        line = {"step": self.done, "epoch": epoch} | step_line(result, seconds, waited, self.peak_flops)
        if self.engine.loss_scale:
            line |= {"loss_scale": self.engine.loss_scale.scale, "skipped": result.skipped}
        self.metrics.write(line)
        self.send({"step": self.done, "note": step_note(line)})

    def evaluate(self) -> bool:
        """Measure the held-out loss, and keep the weights if they are the best so far.

        Return False if there was no time for it; it is then done when the run continues.

        Raises:
            PermanentError: the loss is not finite.
        """
        self.eval_pending = False
        if len(self.heldout) == 0:
            if self.done == 0:
                self.log("no conversation is held out, so no held-out loss is measured; the last weights count as best")
            return True
        begin = time.perf_counter()
        losses = self.engine.evaluate(self.heldout.load(0, self.settings.workers), self._interrupted)
        if losses is None:
            self.eval_pending = True
            return False
        if not math.isfinite(losses.loss):
            what = f"held-out loss {losses.loss} after step {self.done}"
            raise_nonfinite(what, self.engine, self.heldout, range(self.heldout.steps))
        if self.metrics is not None:
            self.metrics.write(
                {
                    "step": self.done,
                    "epoch": self.batches.locate(max(self.done - 1, 0))[0],
                    "heldout_loss": losses.loss,
                    "supervised_tokens": losses.supervised,
                    "datasets": losses.by_dataset(),
                    "seconds": round(time.perf_counter() - begin, 6),
                }
            )
            self.log(f"held-out loss after step {self.done}: {losses.loss:.4f}")
        # The weights before training are not a result of the run.
        if self.done and (self.best is None or losses.loss < self.best["heldout_loss"]):
            self.best = {"step": self.done, "heldout_loss": losses.loss, **self.write_weights()}
            self.since_best = 0
        elif self.done:
            self.since_best += 1
            if self.early_stopped and self.best:
                self.log(
                    f"early stopping after step {self.done}: the held-out loss was lowest after step "
                    f"{self.best['step']}, {self.since_best} measurements ago"
                )
        return True

    def _interrupted(self) -> bool:
        self.watchdog.restart()
        return self.must_stop()

    def write_weights(self) -> WeightsFile:
        """Write the current trained weights (rank 0); all ranks must call it."""
        weights = self.engine.weights()
        return self.weights.write(self.done, weights) if self.rank == 0 else self.weights.unwritten(self.done)

    def save(self) -> None:
        """Write a checkpoint of the current step, unless there is one; all ranks must call it."""
        if self.saved == self.done:
            return
        self.watchdog.restart()
        begin = time.perf_counter()
        tensors = self.engine.state()
        self.saved = self.done
        if self.metrics is not None:
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

    def prune_weights(self, *keep: str) -> None:
        """Remove files of weights that are neither the best of the run or of a checkpoint, nor named in `keep`."""
        best = [self.best, *(facts["best"] for facts in self.checkpoints.facts())]
        self.weights.prune([*keep, *(entry["weights"] for entry in best if entry)])

    def finish(self) -> None:
        """Write the last weights and, as the very last thing, `finished.json`."""
        self.watchdog.restart()
        weights = self.write_weights()
        self.close()
        if self.rank != 0:
            return
        lines = read_metrics(self.state / "metrics.jsonl")
        speed = throughput(lines, self.peak_flops)
        if self.features is not None:
            speed["features"] = savings(self.features, self.encoder_flops, self.batches, lines)
        write_json(self.state / "throughput.json", speed)
        self.log(throughput_line(speed))
        curve = summary(lines)
        heldout = curve["heldout"][-1][1] if curve["heldout"] else None
        final = {"step": self.done, "heldout_loss": heldout, **weights}
        best = self.best or final
        self.prune_weights(weights["weights"])
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
            **summary_of_start(self.state),
            "warnings": read_warnings(self.state),
        }
        write_json(self.state / "finished.json", finished)

    def close(self) -> None:
        """Stop the watchdog and close the metrics."""
        self.watchdog.cancel()
        if self.metrics is not None:
            self.metrics.sync()
            self.metrics.close()
