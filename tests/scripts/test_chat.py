"""The chat program with a tiny trained model: at a terminal, through a pipe, and with a single question."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest

from scripts import chat
from tests.preload import client as preload
from tests.scripts.evaluation.trained_model import trained, write_suite

__all__ = ["trained"]

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 300
COLOUR = "Which colour is the first image?"


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of plain-coloured images, one of them with a space in its name, and a file that is no image."""
    folder = write_suite(tmp_path / "suite").parent / "images"
    shutil.copy(folder / "red.png", folder / "red one.png")
    (folder / "broken.png").write_bytes((folder / "red.png").read_bytes()[:-25])
    return folder


def chat_process(model: Path, folder: Path, **streams) -> subprocess.Popen:
    words = [sys.executable, "-m", "scripts.chat", "--model", str(model), "--max-new-tokens", "16"]
    # A separate state folder, so that the user's history is not changed.
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(folder)}
    environment |= {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    return preload.Popen(words, cwd=folder, env=environment, **streams)


class Terminal:
    """A pseudo-terminal in which a chat runs, seen from the user's side."""

    def __init__(self, model: Path, folder: Path):
        self.end, other = pty.openpty()
        self.process = chat_process(model, folder, stdin=other, stdout=other, stderr=other)
        os.close(other)
        self.seen = ""

    def expect(self, text: str) -> str:
        """Read until `text` appears; return everything before it that was not expected yet."""
        while text not in self.seen:
            ready, _, _ = select.select([self.end], [], [], PATIENCE)
            assert ready, f"waiting for {text!r}, the terminal shows {self.seen!r}"
            self.seen += os.read(self.end, 4096).decode().replace("\r", "")
            self.seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.seen)  # how the prompt moves and colours
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, keys: str) -> None:
        os.write(self.end, keys.encode())

    def send(self, line: str, answer: str) -> None:
        """Wait for the prompt, type a line, and wait for `answer`."""
        self.expect("you>")
        self.type(f"{line}\r")
        self.expect(answer)


def test_a_conversation_at_a_terminal(trained, pictures):
    terminal = Terminal(trained.model, pictures)
    try:
        terminal.expect("attention mmca, 16 tokens per image")
        terminal.send(f"nowhere.png {COLOUR}", "nowhere.png does not exist")
        terminal.send("broken.png", "broken.png is damaged")
        terminal.send(f"{pictures / 'green.png'} {COLOUR}", "image 1: ")
        terminal.expect("model> It is green.")
        terminal.send("How many images are there?", "model> ")
        terminal.send("'red one.png'", "image 2: red one.png")
        terminal.send("/imags", "no command /imags")
        terminal.send("/images", "image 2: red one.png")
        terminal.send("clear", "started a new conversation")
        terminal.send(f"file://{pictures}/red%20one.png {COLOUR}", "model> It is red.")
        terminal.send("/clear", "started a new conversation")
        terminal.expect("you>")
        terminal.type("/image blu\t")
        terminal.expect("e.png")
        terminal.type("\r")
        terminal.expect("image 1: blue.png")
        terminal.send(COLOUR, "model> It is blue.")
        terminal.expect("you>")
        terminal.type("/quit\r")
        assert terminal.process.wait(PATIENCE) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.end)


def test_an_answer_is_stopped_at_a_terminal(trained, pictures):
    """The same line, sent again, adds its image once."""
    from scripts.terminal.line_editor import make_session

    session = chat.load_session(chat.arguments().parse_args(["--model", str(trained.model)]))
    conversation = chat.Conversation(session, max_new_tokens=16)
    line = f"{pictures / 'green.png'} {COLOUR}"

    def interrupt(module, args):
        raise KeyboardInterrupt

    hook = session.model.get_decoder().register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        chat.handle_line(conversation, line)
    hook.remove()
    assert not conversation.names and not conversation.pending_images
    assert chat.handle_line(conversation, line) and len(conversation.session.images) == 1
    assert make_session(chat.COMMANDS).completer.commands is chat.COMMANDS


def test_questions_from_a_pipe(trained, pictures):
    lines = ["Say red.", "/image blue.png red.png", COLOUR, "/help", "", "/quit", "Say blue."]
    pipe = subprocess.PIPE
    process = chat_process(trained.model, pictures, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    answers, notes = process.communicate("\n".join(lines), timeout=PATIENCE)
    assert process.returncode == 0
    assert answers == "It is red.\nIt is blue.\n"
    assert "image 2: red.png (40 x 30)" in notes and "/clear" in notes


@pytest.fixture
def run(monkeypatch, trained):
    """Run the program in this process with the given words and nothing on standard input."""

    def call(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["chat", "--model", str(trained.model), *words])
        monkeypatch.setattr(sys, "stdin", StringIO())
        chat.main()

    return call


def test_one_question(run, pictures, monkeypatch, capsys):
    monkeypatch.chdir(pictures)
    run("--image", "green.png", "--ask", "Which colour is the first image?", "--max-new-tokens", "16")
    assert capsys.readouterr().out == "It is green.\n"


def test_an_image_is_shown_to_the_model_once(trained, pictures):
    session = chat.load_session(chat.arguments().parse_args(["--model", str(trained.model)]))
    conversation = chat.Conversation(session, max_new_tokens=16)
    conversation.add([str(pictures / "green.png")])
    for question in ("Which colour is the first image?", "How many images are there?"):
        conversation.ask(question)
    assert len(session.images) == len(conversation.names) == 1
    assert [len(message["content"]) for message in session.history if message["role"] == "user"] == [2, 1]


def test_images_within_a_question_keep_their_places(trained, pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    session = chat.load_session(chat.arguments().parse_args(["--model", str(trained.model)]))
    conversation = chat.Conversation(session, max_new_tokens=16)
    for line in ("/image green.png", "red.png Is it like blue.png or image 1?"):
        assert chat.handle_line(conversation, line)
    shown = [part.get("text", part.get("index")) for part in session.history[0]["content"]]
    assert shown == [0, 1, "", "Is it like ", 2, " or image 1?"]
    assert conversation.names == ["green.png", "red.png", "blue.png"]
    assert not conversation.pending_images


def test_undo_regenerate_save_and_load(trained, pictures, monkeypatch, capsys):
    monkeypatch.chdir(pictures)
    session = chat.load_session(chat.arguments().parse_args(["--model", str(trained.model)]))
    conversation = chat.Conversation(session, max_new_tokens=16)
    question = "Which colour is the first image?"
    for line in ("/image green.png", question, "/image red.png", question, "/save talk", "/image blue.png", "/undo"):
        assert chat.handle_line(conversation, line)
    assert conversation.names == ["green.png", "blue.png"] and len(conversation.session.images) == 1
    assert chat.handle_line(conversation, "/regenerate") and len(conversation.session.history) == 2
    assert chat.handle_line(conversation, "/load 'talk'")
    assert len(conversation.session.history) == 4 and len(conversation.names) == 2 and not conversation.pending_images
    answer = conversation.session.history[-1]["content"]
    for line in ("/undo", "/image red.png", question):
        assert chat.handle_line(conversation, line)
    assert capsys.readouterr().out.splitlines()[-1] == answer == conversation.session.history[-1]["content"]
    for line, message in (
        ("/load nowhere", "nowhere holds no conversation"),
        ("/save", "/save needs a folder"),
        ("/image", "needs the path"),
    ):
        with pytest.raises(chat.UserError, match=message):
            chat.handle_line(conversation, line)
    conversation.clear()
    for line in ("/undo", "/regenerate"):
        with pytest.raises(chat.UserError, match="no round to undo"):
            chat.handle_line(conversation, line)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "nowhere.png", "--ask", "x"], "image nowhere.png does not exist"),
        (["--image", "broken.png", "--ask", "x"], "image broken.png is damaged"),
        (["--image", "answers.json", "--ask", "x"], "answers.json is not an image"),
        (["--model", "nowhere", "--ask", "x"], "there is no model in nowhere"),
        (["--ask", "word " * 1000], "does not fit"),
    ],
)
def test_invalid_input(run, pictures, monkeypatch, words, message):
    shutil.copy(pictures.parent / "answers.json", pictures)
    monkeypatch.chdir(pictures)
    with pytest.raises(chat.UserError, match=message):
        run(*words)
