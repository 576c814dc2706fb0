"""Runs a suite: the model answers dialogues round by round, with its own answers in the history as in a chat.

Round r of all dialogues is one call of the runner. As in a chat, a question with an empty answer is dropped from the
history; its images stay and are shown with the next question. A round with a given answer is context and not generated.
Multiple choice generates nothing: the loss of every choice is measured, and so is the loss of a reference if a metric
needs it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from scripts.evaluation.choice_metrics import most_likely_choice
from scripts.evaluation.suites import LOGLIKELIHOOD, MULTIPLE_CHOICE, Dialogue, Suite, SuiteImage
from scripts.evaluation.turns import Turn
from scripts.inference.answering import ModelRunner, Prompt


@dataclass
class _State:
    """The history of one dialogue.

    `shown` holds for each of `images` the round that brought it; the last `pending` images are in no message of
    `history` yet.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    images: list[SuiteImage] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)
    pending: int = 0

    def ask(self, dialogue: Dialogue, number: int) -> Prompt:
        """Add the images of round `number` (from 0) and return its prompt."""
        current = dialogue.rounds[number]
        if number == 0 and dialogue.system:
            self.history.append({"role": "system", "content": dialogue.system})
        self.images += current.images
        self.shown += [number + 1] * len(current.images)
        self.pending += len(current.images)
        first = len(self.images) - len(current.images)
        placed = current.parts or (*range(len(current.images)), current.question)
        kept = range(len(self.images) - self.pending, first)
        parts = [
            *map(_image, kept),
            *(_text(part) if isinstance(part, str) else _image(first + part) for part in placed),
        ]
        images = list(self.images)
        return Prompt(
            name=f"test {dialogue.name!r}, round {number + 1}",
            messages=[*self.history, {"role": "user", "content": parts}],
            hashes=[image.sha256 for image in images],
            read_images=lambda: [image.data for image in images],
        )

    def add_answer(self, prompt: Prompt, answer: str) -> None:
        """Append the question of `prompt` and its answer to the history; an empty answer leaves it unchanged."""
        if answer:
            self.history = with_answer(prompt, answer).messages
            self.pending = 0


def _image(index: int) -> dict[str, Any]:
    return {"type": "image", "index": index}


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def with_answer(prompt: Prompt, answer: str) -> Prompt:
    """The same conversation with an answer to its last question; losses are measured on that answer alone."""
    message = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
    return replace(prompt, messages=[*prompt.messages, message], last_answer_only=True)


def run_dialogues(runner: ModelRunner, suite: Suite, label: str, needs: frozenset[str] = frozenset()) -> list[Turn]:
    """Run all dialogues of a suite and return their turns, unscored, dialogue by dialogue in the order of the suite.

    Args:
        runner: the model.
        suite: the dialogues and how they are answered.
        label: title of the progress line.
        needs: what metrics need besides outputs: "answer_loss" or "losses".

    Raises:
        UserError: a dialogue outgrows the model's context; the message names the test and the round.
    """
    states = {dialogue.name: _State() for dialogue in suite.dialogues}
    turns: dict[str, list[Turn]] = {dialogue.name: [] for dialogue in suite.dialogues}
    for number in range(max(len(dialogue.rounds) for dialogue in suite.dialogues)):
        open_rounds: list[tuple[Dialogue, Prompt]] = []
        for dialogue in suite.dialogues:
            if number < len(dialogue.rounds):
                state, given = states[dialogue.name], dialogue.rounds[number].given
                prompt = state.ask(dialogue, number)
                if given is None:
                    open_rounds.append((dialogue, prompt))
                else:
                    state.add_answer(prompt, given)
        if not open_rounds:
            continue
        answered = _answer(runner, suite, number, open_rounds, states, f"{label}, round {number + 1}", needs)
        for (dialogue, prompt), turn in zip(open_rounds, answered, strict=True):
            turns[dialogue.name].append(turn)
            states[dialogue.name].add_answer(prompt, turn.output)
    return [turn for dialogue in suite.dialogues for turn in turns[dialogue.name]]


def _answer(
    runner: ModelRunner,
    suite: Suite,
    number: int,
    open_rounds: Sequence[tuple[Dialogue, Prompt]],
    states: dict[str, _State],
    label: str,
    needs: frozenset[str],
) -> list[Turn]:
    """The turns of one round, in the order of `open_rounds`."""
    prompts = [prompt for _, prompt in open_rounds]
    turns = [
        _turn(dialogue, number, states[dialogue.name], runner.prompt_text(prompt)) for dialogue, prompt in open_rounds
    ]
    if "answer_loss" in needs:
        turns = _with_answer_losses(runner, prompts, turns, label)
    if suite.output_type == LOGLIKELIHOOD:
        return turns
    if suite.output_type == MULTIPLE_CHOICE:
        return _with_choices(runner, prompts, turns, label)
    outputs = runner.generate(prompts, label, generation=suite.generation)
    return [replace(turn, output=output) for turn, output in zip(turns, outputs, strict=True)]


def _with_choices(runner: ModelRunner, prompts: Sequence[Prompt], turns: Sequence[Turn], label: str) -> list[Turn]:
    """Measure the loss of every choice; the output is the most likely one."""
    choices = [turn.choices or [] for turn in turns]
    conversations = [
        with_answer(prompt, choice) for prompt, row in zip(prompts, choices, strict=True) for choice in row
    ]
    measured = iter(runner.losses(conversations, f"{label}, choices"))
    result = []
    for turn, row in zip(turns, choices, strict=True):
        losses = [next(measured)[0] for _ in row]
        result.append(replace(turn, losses=losses, output=row[most_likely_choice(losses, row)]))
    return result


def _with_answer_losses(
    runner: ModelRunner, prompts: Sequence[Prompt], turns: Sequence[Turn], label: str
) -> list[Turn]:
    """Measure the loss of the first reference of every turn that has one."""
    indices = [index for index, turn in enumerate(turns) if turn.references]
    conversations = [with_answer(prompts[index], turns[index].references[0]) for index in indices]
    losses = dict(zip(indices, runner.losses(conversations, f"{label}, references"), strict=True))
    return [replace(turn, answer_loss=losses.get(index)) for index, turn in enumerate(turns)]


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
