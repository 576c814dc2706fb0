"""The evaluation of one checkpoint: held-out loss, held-out questions seen and unseen, suites.

Writes the files of every part and returns its numbers; `evaluate` puts those together.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from scripts.common.files import file_sha256, read_json, text_sha256
from scripts.common.fingerprint import code_fingerprint
from scripts.config.evaluate import EvaluationConfig
from scripts.evaluation.dialogues import run_dialogues
from scripts.evaluation.filters import pipeline
from scripts.evaluation.heldout_questions import Question, questions
from scripts.evaluation.question_kinds import QuestionKind
from scripts.evaluation.results import HELDOUT, summarise_heldout, summarise_suite, write_summary, write_turns
from scripts.evaluation.scoring import score_turns
from scripts.evaluation.statistics import is_correct, mean_loss
from scripts.evaluation.suites import Suite
from scripts.evaluation.turns import Turn
from scripts.inference.answer_cache import AnswerCache
from scripts.inference.answering import ModelRunner, Prompt
from scripts.inference.blend_reader import BlendReader

JOURNALS = ".journal"
"""Folder of the journals below the evaluation's; no suite can have this name."""


class CheckpointEvaluation:
    """The evaluation of one checkpoint."""

    def __init__(self, checkpoint: str, model: Path, settings: EvaluationConfig, out: Path):
        self.checkpoint, self.settings, self.out = checkpoint, settings, out
        self.answerer = ModelRunner(model, settings)
        self.sha256 = model_sha256(model)
        device = self.answerer.model.device
        identity = {
            "model": self.sha256,
            "code": code_fingerprint("scripts.inference.answering"),
            "versions": versions(),
            "device": device_name(device),
            "dtype": str(self.answerer.model.dtype),
            "threads": settings.threads,
        }
        self.answerer.journal = self.journal = AnswerCache(out / JOURNALS / f"{checkpoint}.jsonl", identity)
        self.common = {
            "checkpoint": self.sha256,
            "settings": {"max_new_tokens": settings.max_new_tokens, "decoding": "greedy"},
            "seed": settings.seed,
            "versions": versions(),
        }

    def heldout(self, blend: BlendReader, kinds: Sequence[QuestionKind]) -> dict[str, Any]:
        """TokenTables the loss and the accuracy on held-out conversations, write their files and return the numbers."""
        whole, datasets, asked = [], [], []
        for unit in range(min(len(blend), self.settings.limit or len(blend))):
            sample = blend[unit]
            whole.append(_prompt(f"held-out conversation {unit}", sample.messages, sample.image_sha256, blend, unit))
            datasets.append(sample.dataset)
            asked += [question for question in questions(unit, sample, kinds) if question.kind.scored]
        if not kinds:
            # An answer longer than what may be generated (a caption, an essay) has no chance of an exact match.
            limit = self.settings.max_new_tokens
            asked = [question for question in asked if self.answerer.count_tokens(question.reference) <= limit]
        losses = self.answerer.losses(whole, f"{self.checkpoint}: held-out loss")
        by_dataset = {
            name: [loss for dataset, loss in zip(datasets, losses, strict=True) if dataset == name]
            for name in sorted(set(datasets))
        }
        turns = self._answered(blend, asked)
        write_turns(self.out / HELDOUT, self.checkpoint, turns, {"suite": HELDOUT} | self.common)
        summary = {
            "loss": {
                "overall": mean_loss(losses),
                "datasets": {name: mean_loss(values) for name, values in by_dataset.items()},
            },
            **summarise_heldout(list(zip(asked, turns, strict=True)), kinds, self.settings.confidence),
        }
        write_summary(self.out / HELDOUT, self.checkpoint, {"suite": HELDOUT} | self.common | summary)
        return summary

    def suite(self, name: str, suite: Suite) -> tuple[dict[str, Any], list[Turn]]:
        """Put a suite to the model, write its files and return the numbers, and the turns as they were judged.

        Where a suite has several pipelines of filters, the metrics of all but the first carry the pipeline's name.
        """
        needs = frozenset(each.metric.needs for each in suite.metrics if each.metric.needs)
        raw = run_dialogues(self.answerer, suite, f"{self.checkpoint}: suite {name}", needs)
        turns, rows = judge_all(raw, suite, self.settings.confidence)
        common = self.common | {"suite": name, "output_type": suite.output_type, "suite_version": suite.version}
        common["settings"] = _settings(suite, self.settings)
        write_turns(self.out / name, self.checkpoint, turns, common)
        summary = summarise_suite(turns, self.settings.confidence) | {"metrics": rows}
        write_summary(self.out / name, self.checkpoint, common | summary)
        return summary | {"output_type": suite.output_type, "version": suite.version}, turns

    def _answered(self, blend: BlendReader, asked: Sequence[Question]) -> list[Turn]:
        """Ask every question, and ask it again without seeing."""
        prompts = [
            _prompt(f"held-out conversation {q.unit}, round {q.round}", q.messages, q.gallery, blend, q.unit)
            for q in asked
        ]
        seen = self.answerer.generate(prompts, f"{self.checkpoint}: held-out questions")
        blind: Sequence[str | None] = [None] * len(asked)
        if self.settings.blank_images:
            blind = self.answerer.generate(prompts, f"{self.checkpoint}: the same, images blanked", blank=True)
        return [
            _turn(question, self.answerer.prompt_text(prompt), output, without)
            for question, prompt, output, without in zip(asked, prompts, seen, blind, strict=True)
        ]


def judge_all(raw: Sequence[Turn], suite: Suite, confidence: float) -> tuple[list[Turn], dict[str, Any]]:
    """Pass outputs through the suite's filters and judge them: turns with their scores, and the metrics' rows."""
    judged: list[Turn] = []
    rows: dict[str, Any] = {}
    for name, steps in suite.filters or (("none", ()),):
        apply = pipeline(steps, f"filter {name}")
        filtered = [(turn, apply(turn.output)) for turn in raw]
        changed = [
            turn if turn.output == text else replace(turn, output=text, raw=turn.output) for turn, text in filtered
        ]
        turns, found = score_turns(changed, suite.metrics, confidence)
        if not judged:
            judged, rows = turns, found
            continue
        rows |= {f"{metric},{name}": row for metric, row in found.items()}
        more = [{f"{metric},{name}": score for metric, score in turn.scores.items()} for turn in turns]
        judged = [replace(turn, scores=turn.scores | extra) for turn, extra in zip(judged, more, strict=True)]
    return judged, rows


def _settings(suite: Suite, settings: EvaluationConfig) -> dict[str, Any]:
    """How the answers of a suite were written, as its lines say it."""
    how = asdict(suite.generation)
    how["max_new_tokens"] = how["max_new_tokens"] or settings.max_new_tokens
    how["until"] = list(how["until"])
    return {"decoding": "sampled" if suite.generation.do_sample else "greedy"} | {
        name: value for name, value in how.items() if value is not None
    }


def _prompt(name: str, messages: list[dict], hashes: Sequence[str], blend: BlendReader, unit: int) -> Prompt:
    """A prompt whose images are read from the blend only when their batch is due."""
    return Prompt(name, messages, hashes, lambda: blend[unit].images)


def _turn(question: Question, prompt: str, output: str, blind: str | None) -> Turn:
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
        blanked=None if blind is None else {"output": blind, "correct": is_correct(blind, references)},
    )


def model_sha256(folder: Path) -> str:
    """The hash of an exported model: what its manifest says, or for other folders one over the hashes of its files."""
    if (folder / "manifest.json").is_file():
        return read_json(folder / "manifest.json")["sha256"]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return text_sha256("\n".join(f"{path.relative_to(folder)} {file_sha256(path)}" for path in files))


def versions() -> dict[str, str]:
    """Versions of the libraries that answers may depend on."""
    import torch
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__}


def device_name(device: Any) -> str:
    """What answers were computed on: its kind, and which GPU, whose kernels differ."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
