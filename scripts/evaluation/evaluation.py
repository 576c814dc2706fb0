"""The evaluation of one checkpoint: held-out loss, held-out questions seen and unseen, dialogue suites.

Writes the files of every part and returns its numbers; `evaluate` puts those together.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.common.files import file_sha256, read_json, text_sha256
from scripts.evaluation.answering import Answerer, Prompt
from scripts.evaluation.dialogues import converse
from scripts.evaluation.heldout import Question, questions
from scripts.evaluation.kinds import Kind
from scripts.evaluation.metrics import is_correct, mean_loss
from scripts.evaluation.results import HELDOUT, Turn, summarise_heldout, summarise_suite, write_summary, write_turns
from scripts.evaluation.suites import Dialogue
from scripts.sections.evaluate import Evaluate
from scripts.training.loader import BlendReader


class Evaluation:
    """The evaluation of one checkpoint."""

    def __init__(self, checkpoint: str, model: Path, settings: Evaluate, out: Path):
        self.checkpoint, self.settings, self.out = checkpoint, settings, out
        self.answerer = Answerer(model, settings)
        self.sha256 = model_sha256(model)
        self.common = {
            "checkpoint": self.sha256,
            "settings": {"max_new_tokens": settings.max_new_tokens, "decoding": "greedy"},
        }

    def heldout(self, blend: BlendReader, kinds: Sequence[Kind]) -> dict[str, Any]:
        """Measure the loss and the accuracy on held-out conversations, write their files and return the numbers."""
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
            **summarise_heldout(list(zip(asked, turns)), kinds, self.settings.confidence),
        }
        write_summary(self.out / HELDOUT, self.checkpoint, {"suite": HELDOUT} | self.common | summary)
        return summary

    def suite(self, name: str, dialogues: Sequence[Dialogue]) -> dict[str, Any]:
        """Hold the dialogues of a suite, write their files and return the numbers."""
        turns = converse(self.answerer, dialogues, f"{self.checkpoint}: suite {name}")
        write_turns(self.out / name, self.checkpoint, turns, {"suite": name} | self.common)
        summary = summarise_suite(turns, self.settings.confidence)
        write_summary(self.out / name, self.checkpoint, {"suite": name} | self.common | summary)
        return summary

    def _answered(self, blend: BlendReader, asked: Sequence[Question]) -> list[Turn]:
        """Ask every question, and ask it again without seeing."""
        prompts = [
            _prompt(f"held-out conversation {q.unit}, round {q.round}", q.messages, q.gallery, blend, q.unit)
            for q in asked
        ]
        seen = self.answerer.answers(prompts, f"{self.checkpoint}: held-out questions")
        blind: Sequence[str | None] = [None] * len(asked)
        if self.settings.blank:
            blind = self.answerer.answers(prompts, f"{self.checkpoint}: the same, images blanked", blank=True)
        return [
            _turn(question, self.answerer.prompt_text(prompt), output, without)
            for question, prompt, output, without in zip(asked, prompts, seen, blind, strict=True)
        ]


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
