"""Putting a suite's dialogues to a model, which carries its own answers along as it would in a chat.

Round r of all dialogues is one batch. As in a chat, a question without an answer is forgotten; its images stay and are
shown with the next question.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scripts.evaluation.answering import Answerer, Prompt
from scripts.evaluation.metrics import is_correct
from scripts.evaluation.results import Turn
from scripts.evaluation.suites import Dialogue, SuiteImage


@dataclass
class _State:
    """What was said and shown in one dialogue so far; `unseen` counts images that no answered question has shown."""

    history: list[dict[str, Any]] = field(default_factory=list)
    images: list[SuiteImage] = field(default_factory=list)
    unseen: int = 0

    def ask(self, dialogue: Dialogue, number: int) -> Prompt:
        """The prompt of round `number` (from 0)."""
        current = dialogue.rounds[number]
        self.images += current.images
        self.unseen += len(current.images)
        new = range(len(self.images) - self.unseen, len(self.images))
        parts = [{"type": "image", "index": index} for index in new] + [{"type": "text", "text": current.question}]
        images = list(self.images)
        return Prompt(
            name=f"test {dialogue.name!r}, round {number + 1}",
            messages=[*self.history, {"role": "user", "content": parts}],
            hashes=[image.sha256 for image in images],
            read=lambda: [image.data for image in images],
        )

    def told(self, prompt: Prompt, answer: str) -> None:
        """Note the model's answer."""
        if answer:
            self.history = [*prompt.messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
            self.unseen = 0


def converse(answerer: Answerer, dialogues: Sequence[Dialogue], label: str) -> list[Turn]:
    """Hold all dialogues; their turns come back dialogue by dialogue, in the order of the suite.

    Raises:
        UserError: a dialogue outgrows what the model can read; the message names the test and the round.
    """
    states = {dialogue.name: _State() for dialogue in dialogues}
    turns: dict[str, list[Turn]] = {dialogue.name: [] for dialogue in dialogues}
    for number in range(max(len(dialogue.rounds) for dialogue in dialogues)):
        open_dialogues = [dialogue for dialogue in dialogues if number < len(dialogue.rounds)]
        prompts = [states[dialogue.name].ask(dialogue, number) for dialogue in open_dialogues]
        answers = answerer.answers(prompts, f"{label}, round {number + 1}")
        for dialogue, prompt, answer in zip(open_dialogues, prompts, answers, strict=True):
            state = states[dialogue.name]
            turns[dialogue.name].append(_turn(dialogue, number, state, answerer.prompt_text(prompt), answer))
            state.told(prompt, answer)
    return [turn for dialogue in dialogues for turn in turns[dialogue.name]]


def _turn(dialogue: Dialogue, number: int, state: _State, prompt: str, answer: str) -> Turn:
    current = dialogue.rounds[number]
    return Turn(
        test=dialogue.name,
        round=number + 1,
        question=current.question,
        prompt=prompt,
        images=[{"path": image.path, "sha256": image.sha256} for image in state.images],
        new_images=len(current.images),
        output=answer,
        references=list(current.references),
        correct=is_correct(answer, current.references) if current.references else None,
    )
