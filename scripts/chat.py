"""Chat with a trained model about images, in the terminal.

    python -m scripts.chat --model exported/mmca/final --image kitchen.jpg

Type a question; drop images into it or type their paths anywhere in it. Every image keeps its number for the whole
conversation, so "image 1" means the same image in every question; a path within a question stands for its image: "Is
cat.jpg older than image 1?". Tab completes paths and commands, the arrow keys recall earlier lines, and
Ctrl-C stops an answer.

If standard input is not a terminal, every line is a question or a command; with `--ask` the program answers one
question and exits.
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
from scripts.inference.image_files import decode_image, read_image_file
from scripts.terminal.input_line import parse_line, parse_paths

if TYPE_CHECKING:
    from PIL.Image import Image

    from model.chat import ChatSession
    from model.modeling import VisualChatForConditionalGeneration

COMMANDS = {
    "/image": "PATH ...: add images to the next question",
    "/images": "list the images of this conversation with their numbers",
    "/undo": "remove the last question and its answer",
    "/regenerate": "answer the last question again, with sampling",
    "/save": "FOLDER: save the conversation and its images",
    "/load": "FOLDER: continue a saved conversation",
    "/clear": "start a new conversation",
    "/help": "show this list",
    "/quit": "exit (also Ctrl-D)",
}
PLAIN_COMMANDS = ("clear", "quit")


@dataclass
class Conversation:
    """A chat session with the images for its next question (`pending_images`), and the names of all images in order."""

    session: "ChatSession"
    max_new_tokens: int
    names: list[str] = field(default_factory=list)
    pending_images: list["Image"] = field(default_factory=list)

    def add(self, paths: Sequence[str]) -> None:
        """Add images to the next question: all of `paths`, or none of them if one cannot be read.

        Raises:
            UserError: an image cannot be read.
        """
        images = [decode_image(read_image_file(Path(path).expanduser(), path), path) for path in paths]
        for path, image in zip(paths, images, strict=True):
            self.names.append(path)
            self.pending_images.append(image)
            print(f"  image {len(self.names)}: {path} ({image.width} x {image.height})", file=sys.stderr)

    def ask(self, *question: str | int) -> None:
        """Print the answer to a question as it is generated. If the answer is empty, the question is dropped.

        `question` is a text, or texts and, as indices of `pending_images`, images within it; the other images are shown
        before it.

        Raises:
            UserError: the conversation does not fit into the model's context.
        """
        show = partial(print, end="", flush=True)
        with _session_errors():
            pending, placed = self.pending_images, [part for part in question if isinstance(part, int)]
            before = [image for number, image in enumerate(pending) if number not in placed]
            content = [part if isinstance(part, str) else pending[part] for part in question]
            # An empty first text separates the question from the images before it.
            answer = self.session.ask(["", *content] if placed else content, before, self.max_new_tokens, show)
        print()
        if answer:
            self.pending_images = []
        else:
            print("  the model gave an empty answer; try another wording", file=sys.stderr)

    def drop_pending_images(self, count: int) -> None:
        """Remove the last `count` images of the next question."""
        kept = len(self.pending_images) - count
        self.pending_images, self.names = self.pending_images[:kept], self.names[: len(self.names) - count]

    def regenerate(self) -> None:
        """Print another answer to the last question, generated with sampling.

        Raises:
            UserError: there is no question yet.
        """
        show = partial(print, end="", flush=True)
        with _session_errors():
            self.session.regenerate(self.max_new_tokens, show, do_sample=True, temperature=0.8, top_p=0.95)
        print()

    def undo(self) -> None:
        """Remove the last question, its answer and its images.

        Raises:
            UserError: there is no question yet.
        """
        with _session_errors():
            self.session.undo()
        shown = len(self.names) - len(self.pending_images)
        self.names = self.names[: len(self.session.images)] + self.names[shown:]

    def save(self, folder: Path) -> None:
        """Save the conversation in `folder`.

        Raises:
            UserError: it cannot be written.
        """
        with _session_errors():
            self.session.save(folder)
        print(f"  saved to {folder}", file=sys.stderr)

    def load(self, folder: Path) -> None:
        """Replace this conversation by the one that was saved in `folder`.

        Raises:
            UserError: there is none.
        """
        with _session_errors():
            self.session = self.session.load(folder, self.session.model, self.session.processor)
        self.names = [f"{folder}, image {number}" for number in range(1, len(self.session.images) + 1)]
        self.pending_images = []
        print(f"  {len(self.session.history) // 2} rounds", file=sys.stderr)

    def clear(self) -> None:
        """Start a new conversation."""
        self.session.clear()
        self.names, self.pending_images = [], []


@contextmanager
def _session_errors() -> Iterator[None]:
    """Turn errors of the session into `UserError`."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from None


def main() -> None:
    """Run the program."""
    args = arguments().parse_args()
    conversation = Conversation(load_session(args), args.max_new_tokens)
    conversation.add(args.image)
    if args.ask is not None:
        conversation.ask(args.ask)
    elif sys.stdin.isatty():
        chat_loop(conversation)
    else:
        for line in sys.stdin:
            # Continuing without an image that cannot be read would give wrong answers, so here errors end the program.
            if not handle_line(conversation, line.strip()):
                break


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    result = parser(__doc__)
    result.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="an exported model")
    result.add_argument("--image", nargs="+", default=[], metavar="PATH", help="images of the first question")
    result.add_argument("--ask", metavar="QUESTION", help="answer one question and exit")
    result.add_argument("--system", default="", help="system message")
    result.add_argument(
        "--max-new-tokens", type=int, default=256, metavar="N", help="maximum tokens of an answer (default: 256)"
    )
    help_device = "default: the first GPU if any; spread: over all GPUs, for models that do not fit on one"
    result.add_argument("--device", choices=("auto", "cpu", "cuda", "spread"), default="auto", help=help_device)
    help_bits = "quantise the language model to so many bits (bitsandbytes)"
    result.add_argument("--bits", type=int, choices=(4, 8), help=help_bits)
    return result


def load_session(args: argparse.Namespace) -> "ChatSession":
    """Load the model and start an empty conversation.

    Raises:
        UserError: see `load_model`.
    """
    from model.chat import ChatSession
    from scripts.inference.model_loading import load_model

    model, processor = load_model(args.model, args.device, args.bits)
    return ChatSession(model, processor, system=args.system)


def chat_loop(conversation: Conversation) -> None:
    """Chat at a terminal until the user exits; errors are printed and do not end the chat."""
    from scripts.terminal.line_editor import make_session

    prompt = make_session(COMMANDS)
    model = conversation.session.model
    print(f"{describe(model)}. Ask about images: type or drop their paths into the question. /help", file=sys.stderr)
    while True:
        try:
            line = prompt.prompt("\nyou> ").strip()
        except KeyboardInterrupt:  # discards the line, as in a shell
            continue
        except EOFError:
            return
        try:
            if not handle_line(conversation, line, "model> "):
                return
        except UserError as error:
            print(f"  {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\n  stopped; the question was removed", file=sys.stderr)


def describe(model: "VisualChatForConditionalGeneration") -> str:
    """A model in one line: its parameters, attention and image tokens."""
    size = sum(value.numel() for value in model.parameters())
    count = next(f"{size / unit:.1f}{suffix}" for unit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if size >= unit)
    return f"{count} parameters, attention {model.config.attention}, {model.config.image_tokens} tokens per image"


def handle_line(conversation: Conversation, line: str, label: str = "") -> bool:
    """Run a command, or add images and answer a question; return whether the chat continues.

    Args:
        conversation: the conversation so far.
        line: what the user typed.
        label: printed before the answer.

    Raises:
        UserError: see `run_command` and `Conversation`.
    """
    if _is_command(line):
        return run_command(conversation, line)
    parsed = parse_line(line)
    first = len(conversation.pending_images)
    conversation.add(parsed.images)
    if parsed.parts:
        print(label, end="", flush=True)
        try:
            conversation.ask(*(first + part if isinstance(part, int) else part for part in parsed.parts))
        except BaseException:
            conversation.drop_pending_images(len(parsed.images))  # sent again, the line adds them again
            raise
    return True


def _is_command(line: str) -> bool:
    """Whether a line is a command: "/" and letters, but not an absolute path that exists; or "clear" or "quit"."""
    if line in PLAIN_COMMANDS:
        return True
    if not line.startswith("/"):
        return False
    word = line.split()[0]
    return word[1:].isalpha() and not Path(word).exists()


def run_command(conversation: Conversation, line: str) -> bool:
    """Run a command; return whether the chat continues.

    Raises:
        UserError: an unknown command, a missing argument, or an image or folder that cannot be read.
    """
    name, _, rest = line.partition(" ")
    match name.removeprefix("/"):
        case "quit":
            return False
        case "clear":
            conversation.clear()
            print("  started a new conversation", file=sys.stderr)
        case "undo":
            conversation.undo()
            print("  removed the last question", file=sys.stderr)
        case "regenerate":
            conversation.regenerate()
        case "save" | "load":
            folders = parse_paths(rest)
            if len(folders) != 1:
                raise UserError(f"{name} needs a folder")
            folder = Path(folders[0]).expanduser()
            if name == "/save":
                conversation.save(folder)
            else:
                conversation.load(folder)
        case "image":
            if not rest.strip():
                raise UserError("/image needs the path of an image")
            conversation.add(parse_paths(rest))
        case "images":
            listed = [f"  image {number}: {path}" for number, path in enumerate(conversation.names, start=1)]
            print("\n".join(listed) or "  no images yet", file=sys.stderr)
        case "help":
            print("\n".join(f"  {command:<12} {text}" for command, text in COMMANDS.items()), file=sys.stderr)
        case _:
            raise UserError(f"there is no command {name}; /help lists them")
    return True


if __name__ == "__main__":
    run_program(main)
