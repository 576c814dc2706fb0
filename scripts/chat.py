"""Talk with a trained model about images, in the terminal.

    python -m scripts.chat --model exported/mmca/final --image kitchen.jpg

Every turn first asks for images (paths, several separated by spaces, empty for none), then for a question. Images may
come at any time and keep their number for the whole conversation, so "image 1" means the same image in every question.
Where standard input is not a terminal, every line is a question or a command; with `--ask` one question is answered and
the program ends.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.common.errors import UserError, run_program
from scripts.common.program import parser
from scripts.evaluation.images import decode, read_file, split_paths

if TYPE_CHECKING:
    from PIL.Image import Image

    from model.chat import ChatSession

HELP = """\
  /image PATH ...   add images to the next question (a path with spaces in quotes)
  /images           list the images of this conversation with their numbers
  /undo             take back the last question and its answer
  /again            answer the last question anew, by drawing instead of taking the likeliest words
  /save FOLDER      write the conversation and its images into a folder
  /load FOLDER      take up a conversation that was saved
  /clear            forget the conversation and its images
  /quit             end
  /help             this list"""
COMMANDS = ("/image", "/images", "/undo", "/again", "/save", "/load", "/clear", "/quit", "/help")
PLAIN_COMMANDS = ("clear", "quit")


@dataclass
class Conversation:
    """A chat session and the images that the next question will bring; `names` are the images' names by number."""

    session: "ChatSession"
    max_new_tokens: int
    names: list[str] = field(default_factory=list)
    waiting: list["Image"] = field(default_factory=list)

    def add(self, paths: list[str]) -> None:
        """Read images and number them; either all of `paths` are added or none.

        Raises:
            UserError: an image cannot be read.
        """
        images = [decode(read_file(Path(path).expanduser(), path), path) for path in paths]
        for path, image in zip(paths, images, strict=True):
            self.names.append(path)
            self.waiting.append(image)
            print(f"  image {len(self.names)}: {path} ({image.width} x {image.height})", file=sys.stderr)

    def ask(self, question: str) -> None:
        """Print the answer to a question as it is generated.

        Raises:
            UserError: the conversation no longer fits into the model.
        """
        show = partial(print, end="", flush=True)
        with _told():
            self.session.ask(question, images=self.waiting, max_new_tokens=self.max_new_tokens, on_text=show)
        self.waiting = []
        print()

    def again(self) -> None:
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
        shown = len(self.names) - len(self.waiting)
        self.names = self.names[: len(self.session.images)] + self.names[shown:]

    def load(self, folder: str) -> None:
        """Go on with the conversation that was saved in `folder`, instead of this one.

        Raises:
            UserError: there is none.
        """
        with _told():
            self.session = self.session.load(folder, self.session.model, self.session.processor)
        self.names = [f"{folder}, image {number}" for number in range(1, len(self.session.images) + 1)]
        self.waiting = []

    def clear(self) -> None:
        """Forget everything said and shown."""
        self.session.clear()
        self.names, self.waiting = [], []


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
            if not turn(conversation, line.strip()):
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
    from scripts.evaluation.answering import load_model

    model, processor = load_model(args.model, args.device, args.bits)
    return ChatSession(model, processor, system=args.system)


def talk(conversation: Conversation) -> None:
    """Converse with a person at a terminal until they end it; what goes wrong is said, and they may go on."""
    print('Image paths, then a question. "/help" lists the commands.', file=sys.stderr)
    open_ended = True
    while open_ended:
        try:
            line = input("\nimages (empty: none)> ").strip()
            # An absolute path also begins with a slash, so here only known commands count.
            if line.split(" ")[0] in COMMANDS or line in PLAIN_COMMANDS:
                open_ended = obey(conversation, line)
                continue
            conversation.add(split_paths(line))
            open_ended = turn(conversation, input("you> ").strip(), "model> ")
        except UserError as error:
            print(f"  {error}", file=sys.stderr)
        except EOFError:
            print(file=sys.stderr)
            return


def turn(conversation: Conversation, line: str, label: str = "") -> bool:
    """Carry out a command or answer a question; return whether the conversation goes on."""
    if line.startswith("/") or line in PLAIN_COMMANDS:
        return obey(conversation, line)
    if line:
        print(label, end="", flush=True)
        conversation.ask(line)
    return True


def obey(conversation: Conversation, line: str) -> bool:
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
        case "again":
            conversation.again()
        case "save" | "load" if not rest.strip():
            raise UserError(f"{name} needs a folder")
        case "save":
            with _told():
                conversation.session.save(rest.strip())
            print(f"  saved to {rest.strip()}", file=sys.stderr)
        case "load":
            conversation.load(rest.strip())
            print(f"  {len(conversation.session.history) // 2} rounds", file=sys.stderr)
        case "image":
            conversation.add(split_paths(rest))
        case "images":
            listed = [f"  image {number}: {path}" for number, path in enumerate(conversation.names, start=1)]
            print("\n".join(listed) or "  no images yet", file=sys.stderr)
        case "help":
            print(HELP, file=sys.stderr)
        case _:
            raise UserError(f"there is no command {name}; /help lists them")
    return True


if __name__ == "__main__":
    run_program(main)
