"""The evaluation of one checkpoint: held-out loss, held-out questions with and without images, suites.

Every part writes its files and returns its numbers; `scripts.evaluate` merges them.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scripts.common.files import file_sha256, read_json, text_sha256
from scripts.common.fingerprint import code_fingerprint
from scripts.config.evaluate import EvaluationConfig
from scripts.evaluation.dialogues import run_dialogues
from scripts.evaluation.filters import pipeline
from scripts.evaluation.free_text import is_closed, loss_row, score_datasets
from scripts.evaluation.heldout_questions import Question, questions
from scripts.evaluation.question_kinds import QuestionKind
from scripts.evaluation.results import HELDOUT, summarise_heldout, summarise_suite, write_summary, write_turns
from scripts.evaluation.scoring import score_turns
from scripts.evaluation.statistics import is_correct
from scripts.evaluation.suites import Suite
from scripts.evaluation.turns import Turn
from scripts.inference.answer_cache import AnswerCache
from scripts.inference.answering import ModelRunner, Prompt
from scripts.inference.blend_reader import BlendReader

ANSWER_CACHES = ".answer_cache"
"""Folder of the answer caches inside the evaluation's folder. No suite can have this name: it begins with a dot."""


class CheckpointEvaluation:
    """One loaded checkpoint and the folder that its results are written to."""

    def __init__(self, checkpoint: str, model: Path, settings: EvaluationConfig, out: Path) -> None:
        """Load the exported model in `model`; `checkpoint` is its name in the results, `out` is `evaluate/<run>`.

        Raises:
            UserError: see `load_model`.
        """
        self.checkpoint, self.settings, self.out = checkpoint, settings, out
        self.runner = ModelRunner(model, settings)
        self.sha256 = model_sha256(model)
        device = self.runner.model.device
        identity = {
            "model": self.sha256,
            "code": code_fingerprint("scripts.inference.answering"),
            "versions": versions(),
            "device": device_name(device),
            "dtype": str(self.runner.model.dtype),
            "threads": settings.threads,
        }
        self.answer_cache = AnswerCache(out / ANSWER_CACHES / f"{checkpoint}.jsonl", identity)
        self.runner.answer_cache = self.answer_cache
        self.common: dict[str, Any] = {
            "checkpoint": self.sha256,
            "settings": {"max_new_tokens": settings.max_new_tokens, "decoding": "greedy"},
            "seed": settings.seed,
            "versions": versions(),
        }

    def heldout(
        self,
        blend: BlendReader | None,
        kinds: Sequence[QuestionKind],
        without_kinds: Collection[str] = (),
        loss_only: Collection[str] = (),
    ) -> dict[str, Any]:
        """Measure loss and answers on held-out conversations, write their files and return the numbers.

        Args:
            blend: the held-out part of a blend; `None` gives the numbers of an empty one.
            kinds: kinds of questions; empty: every dataset is a kind.
            without_kinds: datasets that `kinds` are not about; each of them is a kind.
            loss_only: datasets whose questions are not asked.
        """
        conversations: list[Prompt] = []
        datasets: list[str] = []
        asked: list[Question] = []
        if blend is not None:
            for unit in range(min(len(blend), self.settings.limit or len(blend))):
                sample = blend[unit]
                name = f"held-out conversation {unit}"
                conversations.append(_prompt(name, sample.messages, sample.image_sha256, blend, unit))
                datasets.append(sample.dataset)
                if sample.dataset in loss_only:
                    continue
                found = questions(unit, sample, kinds, without_kinds)
                asked += [question for question in found if question.kind.scored]
        losses = self.runner.losses(conversations, f"{self.checkpoint}: held-out loss")
        by_dataset = {
            name: [loss for dataset, loss in zip(datasets, losses, strict=True) if dataset == name]
            for name in sorted(set(datasets))
        }
        turns = [] if blend is None else self._answer(blend, asked)
        free = without_kinds if kinds else set(datasets)
        turns, exact, by_text = self._scores(asked, turns, free)
        write_turns(self.out / HELDOUT, self.checkpoint, turns, {"suite": HELDOUT} | self.common)
        confidence = self.settings.confidence
        summary = {
            "loss": {
                "overall": loss_row(losses, confidence),
                "datasets": {name: loss_row(values, confidence) for name, values in by_dataset.items()},
            },
            **summarise_heldout(exact, kinds, confidence),
            "datasets": by_text,
        }
        write_summary(self.out / HELDOUT, self.checkpoint, {"suite": HELDOUT} | self.common | summary)
        return summary

    def _scores(
        self, asked: Sequence[Question], turns: Sequence[Turn], free: Collection[str]
    ) -> tuple[list[Turn], list[tuple[Question, Turn]], dict[str, Any]]:
        """Score the answers of the datasets `free` as free text.

        Returns:
            The turns; those that count for exact match, with their questions; and the rows of `score_datasets`, each
            with "long_references", the references that are longer than what may be generated.
        """
        references: dict[str, list[str]] = {}
        for question in asked:
            if question.dataset in free:
                references.setdefault(question.dataset, []).append(question.reference)
        closed = {name: is_closed(texts) for name, texts in references.items()}
        turns, rows = score_datasets(turns, closed, self.settings.confidence)
        # An answer longer than what may be generated (a caption, an essay) has no chance of an exact match.
        limit = self.settings.max_new_tokens
        exact = []
        for question, turn in zip(asked, turns, strict=True):
            long = question.dataset in closed and self.runner.count_tokens(question.reference) > limit
            if long:
                row = rows[question.dataset]
                row["long_references"] = row.get("long_references", 0) + 1
            elif closed.get(question.dataset, True):
                exact.append((question, turn))
        return turns, exact, rows

    def suite(self, name: str, suite: Suite) -> tuple[dict[str, Any], list[Turn]]:
        """Run a suite, write its files, and return its numbers and its scored turns.

        If a suite has several filter pipelines, the metrics of all but the first have the pipeline's name as suffix.

        Raises:
            UserError: see `run_dialogues`.
        """
        needs = frozenset(each.metric.needs for each in suite.metrics if each.metric.needs)
        raw = run_dialogues(self.runner, suite, f"{self.checkpoint}: suite {name}", needs)
        turns, rows = score_filtered_turns(raw, suite, self.settings.confidence)
        common = self.common | {"suite": name, "output_type": suite.output_type, "suite_version": suite.version}
        common["settings"] = _settings(suite, self.settings)
        write_turns(self.out / name, self.checkpoint, turns, common)
        summary = summarise_suite(turns, self.settings.confidence) | {"metrics": rows}
        write_summary(self.out / name, self.checkpoint, common | summary)
        return summary | {"output_type": suite.output_type, "version": suite.version}, turns

    def _answer(self, blend: BlendReader, asked: Sequence[Question]) -> list[Turn]:
        """Answer every question, and answer it again with blanked images if the settings ask for that."""
        prompts = [
            _prompt(f"held-out conversation {q.unit}, round {q.round}", q.messages, q.gallery, blend, q.unit)
            for q in asked
        ]
        outputs = self.runner.generate(prompts, f"{self.checkpoint}: held-out questions")
        blanked: list[str | None] = [None] * len(asked)
        if self.settings.blank_images:
            label = f"{self.checkpoint}: the same, images blanked"
            with_images = [number for number, question in enumerate(asked) if question.images]
            again = self.runner.generate([prompts[number] for number in with_images], label, blank=True)
            blanked = [*outputs]
            for number, output in zip(with_images, again, strict=True):
                blanked[number] = output
        return [
            _turn(question, self.runner.prompt_text(prompt), output, blanked_output)
            for question, prompt, output, blanked_output in zip(asked, prompts, outputs, blanked, strict=True)
        ]


def score_filtered_turns(raw: Sequence[Turn], suite: Suite, confidence: float) -> tuple[list[Turn], dict[str, Any]]:
    """Apply the suite's filters to the outputs and score them.

    Returns:
        The turns with their scores, and by metric its row (see `scoring.score_turns`).
    """
    scored: list[Turn] = []
    rows: dict[str, Any] = {}
    for name, steps in suite.filters or (("none", ()),):
        apply = pipeline(steps, f"filter {name}")
        filtered = [(turn, apply(turn.output)) for turn in raw]
        changed = [
            turn if turn.output == text else replace(turn, output=text, raw=turn.output) for turn, text in filtered
        ]
        turns, pipeline_rows = score_turns(changed, suite.metrics, confidence)
        if not scored:
            scored, rows = turns, pipeline_rows
            continue
        rows |= {f"{metric},{name}": row for metric, row in pipeline_rows.items()}
        added = [{f"{metric},{name}": score for metric, score in turn.scores.items()} for turn in turns]
        scored = [replace(turn, scores=turn.scores | extra) for turn, extra in zip(scored, added, strict=True)]
    return scored, rows


def _settings(suite: Suite, settings: EvaluationConfig) -> dict[str, Any]:
    """The decoding options of a suite, as its result files record them."""
    options = asdict(suite.generation)
    options["max_new_tokens"] = options["max_new_tokens"] or settings.max_new_tokens
    options["until"] = list(options["until"])
    return {"decoding": "sampled" if suite.generation.do_sample else "greedy"} | {
        name: value for name, value in options.items() if value is not None
    }


def _prompt(name: str, messages: list[dict], hashes: Sequence[str], blend: BlendReader, unit: int) -> Prompt:
    """A prompt whose images are read from the blend when its batch is computed."""
    return Prompt(name, messages, hashes, lambda: blend[unit].images)


def _turn(question: Question, prompt: str, output: str, blanked: str | None) -> Turn:
    references = [question.reference]
    return Turn(
        test=question.test,
        round=question.round,
        question=question.question,
        prompt=prompt,
        images=[{"sha256": sha256} for sha256 in question.images],
        new_images=question.new_images,
        output=output,
        references=references,
        correct=is_correct(output, references),
        kind=question.kind.name,
        dataset=question.dataset,
        blanked=None if blanked is None else {"output": blanked, "correct": is_correct(blanked, references)},
    )


def model_sha256(folder: Path) -> str:
    """The sha256 of an exported model: that of its manifest, or else a hash over the hashes of all its files."""
    if (folder / "manifest.json").is_file():
        return read_json(folder / "manifest.json")["sha256"]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return text_sha256("\n".join(f"{path.relative_to(folder)} {file_sha256(path)}" for path in files))


def versions() -> dict[str, str]:
    """Versions of the libraries that answers depend on."""
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def device_name(device: Any) -> str:
    """The device that answers are computed on: "cpu", or the name of the GPU, since kernels differ between GPUs."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
