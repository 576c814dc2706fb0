"""The history of a dialogue from round to round."""

from scripts.evaluation.dialogues import _State
from scripts.evaluation.suites import Dialogue, SuiteImage, SuiteRound

A, B = (SuiteImage(f"{name}.png", name.encode(), name * 64) for name in "ab")
DIALOGUE = Dialogue("talk", (SuiteRound("one?", (A,)), SuiteRound("two?", ()), SuiteRound("three?", (B,))))


def shown(prompt) -> list[list[int]]:
    """The image indices of every message."""
    return [[part["index"] for part in message["content"] if part["type"] == "image"] for message in prompt.messages]


def test_answers_and_images_stay_in_the_history():
    state = _State()
    for number, answer in enumerate(("1", "2")):
        state.add_answer(state.ask(DIALOGUE, number), answer)
    prompt = state.ask(DIALOGUE, 2)
    assert [message["role"] for message in prompt.messages] == ["user", "assistant", "user", "assistant", "user"]
    assert [message["content"][-1]["text"] for message in prompt.messages] == ["one?", "1", "two?", "2", "three?"]
    assert shown(prompt) == [[0], [], [], [], [1]]
    assert prompt.hashes == ["a" * 64, "b" * 64] and prompt.read_images() == [b"a", b"b"]
    assert prompt.name == "test 'talk', round 3"


def test_a_question_with_an_empty_answer_is_dropped_but_not_its_image():
    state = _State()
    state.add_answer(state.ask(DIALOGUE, 0), "")
    prompt = state.ask(DIALOGUE, 1)
    assert [message["content"][-1]["text"] for message in prompt.messages] == ["two?"]
    assert shown(prompt) == [[0]]
    state.add_answer(prompt, "2")
    assert shown(state.ask(DIALOGUE, 2)) == [[0], [], [1]]


def test_a_prompt_keeps_the_images_of_its_own_round():
    state = _State()
    first = state.ask(DIALOGUE, 0)
    state.add_answer(first, "1")
    state.ask(DIALOGUE, 1)
    state.ask(DIALOGUE, 2)
    assert first.read_images() == [b"a"]


def test_images_keep_their_places_in_a_question():
    placed = SuiteRound("Is \n like\n?", (A, B), parts=("Is ", 1, " like ", 0, "?"))
    dialogue = Dialogue("talk", (SuiteRound("one?", (A,)), placed))
    state = _State()
    state.add_answer(state.ask(dialogue, 0), "")  # its image stays, and is shown before the next question
    prompt = state.ask(dialogue, 1)
    parts = [part.get("text", part.get("index")) for part in prompt.messages[-1]["content"]]
    assert parts == [0, "Is ", 2, " like ", 1, "?"]
    assert prompt.hashes == ["a" * 64, "a" * 64, "b" * 64]
