"""Putting a suite to a model, which carries its own answers along as it would in a chat.

Round r of all dialogues is one batch. As in a chat, a question without an answer is forgotten; its images stay and are
shown with the next question. Rounds whose answer is given are told and not asked. Choices are not generated: every one
is measured as the answer, and so is a reference whose likelihood some metric needs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scripts.evaluation.choice_metrics import likeliest
from scripts.evaluation.suites import CHOICES, LIKELIHOOD, Dialogue, Suite, SuiteImage
from scripts.evaluation.turns import Turn
from scripts.inference.answering import ModelRunner, Prompt


@dataclass
class _State:
    """What was said and shown in one dialogue so far.

    `shown` holds the round of every image; `unseen` counts images that no answered question has shown.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    images: list[SuiteImage] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    unseen: int = 0

    def ask(self, dialogue: Dialogue, number: int) -> Prompt:
        """The prompt of round `number` (from 0)."""
        current = dialogue.rounds[number]
        if number == 0 and dialogue.system:
            self.history.append({"role": "system", "content": dialogue.system})
        self.images += current.images
        self.shown += [number + 1] * len(current.images)
        self.unseen += len(current.images)
        new = range(len(self.images) - self.unseen, len(self.images))
        parts = [{"type": "image", "index": index} for index in new] + [{"type": "text", "text": current.question}]
        images = list(self.images)
        return Prompt(
            name=f"test {dialogue.name!r}, round {number + 1}",
            messages=[*self.history, {"role": "user", "content": parts}],
            hashes=[image.sha256 for image in images],
            read_images=lambda: [image.data for image in images],
        )

    def told(self, prompt: Prompt, answer: str) -> None:
        """Note the model's answer."""
        if answer:
            self.history = answered(prompt, answer).messages
            self.unseen = 0


def answered(prompt: Prompt, answer: str) -> Prompt:
    """The same conversation with an answer to its last question, which alone counts where losses are measured."""
    said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return replace(prompt, messages=[*prompt.messages, said], last_answer_only=True)


def run_dialogues(answerer: ModelRunner, suite: Suite, label: str, needs: frozenset[str] = frozenset()) -> list[Turn]:
    """Hold all dialogues; their turns come back dialogue by dialogue, in the order of the suite, not yet judged.

    Args:
        answerer: the model.
        suite: what to ask.
        label: what is shown as progress.
        needs: what metrics need besides outputs: "answer_loss".

    Raises:
        UserError: a dialogue outgrows what the model can read; the message names the test and the round.
    """
    states = {dialogue.name: _State() for dialogue in suite.dialogues}
    turns: dict[str, list[Turn]] = {dialogue.name: [] for dialogue in suite.dialogues}
    for number in range(max(len(dialogue.rounds) for dialogue in suite.dialogues)):
        asked: list[tuple[Dialogue, Prompt]] = []
        for dialogue in suite.dialogues:
            if number < len(dialogue.rounds):
                state, given = states[dialogue.name], dialogue.rounds[number].given
                prompt = state.ask(dialogue, number)
                if given is None:
                    asked.append((dialogue, prompt))
                else:
                    state.told(prompt, given)
        if not asked:
            continue
        for (dialogue, prompt), turn in zip(
            asked, _answer(answerer, suite, number, asked, states, f"{label}, round {number + 1}", needs), strict=True
        ):
            turns[dialogue.name].append(turn)
            states[dialogue.name].told(prompt, turn.output)
    return [turn for dialogue in suite.dialogues for turn in turns[dialogue.name]]


def _answer(
    answerer: ModelRunner,
    suite: Suite,
    number: int,
    asked: Sequence[tuple[Dialogue, Prompt]],
    states: dict[str, _State],
    label: str,
    needs: frozenset[str],
) -> list[Turn]:
    """The turns of one round, in the order of `asked`."""
    prompts = [prompt for _, prompt in asked]
    turns = [_turn(dialogue, number, states[dialogue.name], answerer.prompt_text(prompt)) for dialogue, prompt in asked]
    if "answer_loss" in needs:
        turns = _with_answer_losses(answerer, prompts, turns, label)
    if suite.output_type == LIKELIHOOD:
        return turns
    if suite.output_type == CHOICES:
        return _with_choices(answerer, prompts, turns, label)
    outputs = answerer.generate(prompts, label, generation=suite.generation)
    return [replace(turn, output=output) for turn, output in zip(turns, outputs, strict=True)]


def _with_choices(answerer: ModelRunner, prompts: Sequence[Prompt], turns: Sequence[Turn], label: str) -> list[Turn]:
    """TokenTables every choice; the output is the likeliest one."""
    conversations = [
        answered(prompt, each) for prompt, turn in zip(prompts, turns, strict=True) for each in turn.choices
    ]
    measured = iter(answerer.losses(conversations, f"{label}, choices"))
    result = []
    for turn in turns:
        losses = [next(measured)[0] for _ in turn.choices]
        result.append(replace(turn, losses=losses, output=turn.choices[likeliest(losses, turn.choices)]))
    return result


def _with_answer_losses(
    answerer: ModelRunner, prompts: Sequence[Prompt], turns: Sequence[Turn], label: str
) -> list[Turn]:
    """TokenTables the first reference of every turn that has one."""
    places = [place for place, turn in enumerate(turns) if turn.references]
    conversations = [answered(prompts[place], turns[place].references[0]) for place in places]
    measured = answerer.losses(conversations, f"{label}, references")
    found = dict(zip(places, measured, strict=True))
    return [replace(turn, answer_loss=found.get(place)) for place, turn in enumerate(turns)]


def _turn(dialogue: Dialogue, number: int, state: _State, prompt: str) -> Turn:
    current = dialogue.rounds[number]
    return Turn(
        test=dialogue.name,
        round=number + 1,
        question=current.question,
        prompt=prompt,
        images=[{"path": image.path, "sha256": image.sha256} for image in state.images],
        new_images=len(current.images),
        shown=list(state.shown),
        output="",
        references=list(current.references),
        correct=None,
        choices=list(current.choices) or None,
        target=current.target,
        cluster=dialogue.cluster,
    )
