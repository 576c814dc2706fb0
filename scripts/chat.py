"""Chat with a trained model about images, in the terminal.

    python -m scripts.chat --model exported/mmca/final --image kitchen.jpg

Type a question, and drop images into it or type their paths, anywhere, at any time. Every image keeps its number for
the whole conversation, so "image 1" means the same image in every question; one that stands within the words is named
there: "Is cat.jpg older than image 1?". Tab completes paths and commands, the arrow keys bring back what was typed,
and Ctrl-C stops an answer.

Where standard input is not a terminal, every line is a question or a command; with `--ask` one question is answered and
the program ends.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.inference.image_files import decode, read_file
from scripts.terminal.input_line import read_line, read_paths

if TYPE_CHECKING:
    from PIL.Image import Image

    from model.chat import ChatSession
    from model.modeling import VisualChatForConditionalGeneration

COMMANDS = {
    "/image": "PATH ...: add images to the next question",
    "/images": "list the images of this conversation with their numbers",
    "/undo": "take back the last question and its answer",
    "/regenerate": "answer the last question anew, by drawing instead of taking the likeliest words",
    "/save": "FOLDER: write the conversation and its images into a folder",
    "/load": "FOLDER: take up a conversation that was saved",
    "/clear": "forget the conversation and its images",
    "/help": "this list",
    "/quit": "end (also Ctrl-D)",
}
PLAIN_COMMANDS = ("clear", "quit")


@dataclass
class Conversation:
    """A chat session and the images that the next question will bring; `names` are the images' names by number."""

    session: "ChatSession"
    max_new_tokens: int
    names: list[str] = field(default_factory=list)
    pending_images: list["Image"] = field(default_factory=list)

    def add(self, paths: Sequence[str]) -> None:
        """Read images and number them; either all of `paths` are added or none.

        Raises:
            UserError: an image cannot be read.
        """
        images = [decode(read_file(Path(path).expanduser(), path), path) for path in paths]
        for path, image in zip(paths, images, strict=True):
            self.names.append(path)
            self.pending_images.append(image)
            print(f"  image {len(self.names)}: {path} ({image.width} x {image.height})", file=sys.stderr)

    def ask(self, question: str) -> None:
        """Print the answer to a question as it is generated. One without an answer counts as not asked.

        Raises:
            UserError: the conversation no longer fits into the model.
        """
        show = partial(print, end="", flush=True)
        with _told():
            answer = self.session.ask(question, self.pending_images, self.max_new_tokens, show)
        print()
        if answer:
            self.pending_images = []
        else:
            print("  the model says nothing to this; ask in another way", file=sys.stderr)

    def take_back(self, count: int) -> None:
        """Forget the last `count` images that wait for a question."""
        kept = len(self.pending_images) - count
        self.pending_images, self.names = self.pending_images[:kept], self.names[: len(self.names) - count]

    def regenerate(self) -> None:
        """Print another answer to the last question, drawn at random.

        Raises:
            UserError: nothing was asked yet.
        """
        show = partial(print, end="", flush=True)
        with _told():
            self.session.regenerate(self.max_new_tokens, show, do_sample=True, temperature=0.8, top_p=0.95)
        print()

    def undo(self) -> None:
        """Take back the last question, its answer and its images.

        Raises:
            UserError: nothing was asked yet.
        """
        with _told():
            self.session.undo()
        shown = len(self.names) - len(self.pending_images)
        self.names = self.names[: len(self.session.images)] + self.names[shown:]

    def save(self, folder: Path) -> None:
        """Write the conversation into `folder`.

        Raises:
            UserError: it cannot be written.
        """
        with _told():
            self.session.save(folder)
        print(f"  saved to {folder}", file=sys.stderr)

    def load(self, folder: Path) -> None:
        """Go on with the conversation that was saved in `folder`, instead of this one.

        Raises:
            UserError: there is none.
        """
        with _told():
            self.session = self.session.load(folder, self.session.model, self.session.processor)
        self.names = [f"{folder}, image {number}" for number in range(1, len(self.session.images) + 1)]
        self.pending_images = []
        print(f"  {len(self.session.history) // 2} rounds", file=sys.stderr)

    def clear(self) -> None:
        """Forget everything said and shown."""
        self.session.clear()
        self.names, self.pending_images = [], []


@contextmanager
def _told() -> Iterator[None]:
    """Tell the person what the session refuses."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None


def main() -> None:
    args = arguments().parse_args()
    conversation = Conversation(load_session(args), args.max_new_tokens)
    conversation.add(args.image)
    if args.ask is not None:
        conversation.ask(args.ask)
    elif sys.stdin.isatty():
        talk(conversation)
    else:
        for line in sys.stdin:
            # To go on without an image that cannot be read would give wrong answers, so here errors end the program.
            if not handle_line(conversation, line.strip()):
                break


def arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    result.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="an exported model")
    result.add_argument("--image", nargs="+", default=[], metavar="PATH", help="images to begin with")
    result.add_argument("--ask", metavar="QUESTION", help="answer one question and end")
    result.add_argument("--system", default="", help="what the model is told before the conversation")
    result.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default: 256)")
    where = "default: a GPU if any; spread: over all GPUs, for models larger than one"
    result.add_argument("--device", choices=("auto", "cpu", "cuda", "spread"), default="auto", help=where)
    result.add_argument(
        "--bits", type=int, choices=(4, 8), help="load the language model in so many bits (bitsandbytes)"
    )
    return result


def load_session(args: argparse.Namespace) -> "ChatSession":
    """The model, ready to talk."""
    from model.chat import ChatSession
    from scripts.inference.model_loading import load_model

    model, processor = load_model(args.model, args.device, args.bits)
    return ChatSession(model, processor, system=args.system)


def talk(conversation: Conversation) -> None:
    """Converse with a person at a terminal until they end it; what goes wrong is said, and they may go on."""
    from scripts.terminal.line_editor import make_session

    prompt = make_session(COMMANDS)
    model = conversation.session.model
    print(f"{describe(model)}. Ask about images: type or drop their paths into the question. /help", file=sys.stderr)
    while True:
        try:
            line = prompt.prompt("\nyou> ").strip()
        except KeyboardInterrupt:  # the line is thrown away, as in a shell
            continue
        except EOFError:
            return
        try:
            if not handle_line(conversation, line, "model> "):
                return
        except UserError as error:
            print(f"  {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\n  stopped; the conversation is as it was before", file=sys.stderr)


def describe(model: "VisualChatForConditionalGeneration") -> str:
    """A model in a few words."""
    size = sum(value.numel() for value in model.parameters())
    named = next(f"{size / unit:.1f}{letter}" for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if size >= unit)
    return f"{named} parameters, attention {model.config.attention}, {model.config.image_tokens} tokens an image"


def handle_line(conversation: Conversation, line: str, label: str = "") -> bool:
    """Carry out a command, take in images or answer a question; return whether the conversation goes on."""
    # An absolute path also begins with a slash: a command is one word of letters.
    if (line.startswith("/") and line.split()[0][1:].isalpha() and not Path(line.split()[0]).exists()) or (
        line in PLAIN_COMMANDS
    ):
        return run_command(conversation, line)
    read = read_line(line, len(conversation.names) + 1)
    conversation.add(read.images)
    if read.text:
        print(label, end="", flush=True)
        try:
            conversation.ask(read.text)
        except BaseException:
            conversation.take_back(len(read.images))  # asked again, the line brings them again
            raise
    return True


def run_command(conversation: Conversation, line: str) -> bool:
    """Carry out a command; return whether the conversation goes on.

    Raises:
        UserError: there is no such command, or an image cannot be read.
    """
    name, _, rest = line.partition(" ")
    match name.removeprefix("/"):
        case "quit":
            return False
        case "clear":
            conversation.clear()
            print("  the conversation is forgotten", file=sys.stderr)
        case "undo":
            conversation.undo()
            print("  the last round is taken back", file=sys.stderr)
        case "regenerate":
            conversation.regenerate()
        case "save" | "load":
            folders = read_paths(rest)
            if len(folders) != 1:
                raise UserError(f"{name} needs a folder")
            (conversation.save if name == "/save" else conversation.load)(Path(folders[0]).expanduser())
        case "image":
            if not rest.strip():
                raise UserError("/image needs the path of an image")
            conversation.add(read_paths(rest))
        case "images":
            listed = [f"  image {number}: {path}" for number, path in enumerate(conversation.names, start=1)]
            print("\n".join(listed) or "  no images yet", file=sys.stderr)
        case "help":
            print("\n".join(f"  {command:<12} {what}" for command, what in COMMANDS.items()), file=sys.stderr)
        case _:
            raise UserError(f"there is no command {name}; /help lists them")
    return True


if __name__ == "__main__":
    run_program(main)
