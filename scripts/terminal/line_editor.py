"""The input line of the terminal chat: history, editing, and completion of commands and image paths."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from scripts.terminal.input_line import IMAGE_SUFFIXES


class LineCompleter(Completer):
    """Completes commands at the start of a line, and paths of folders and images in words that look like a path."""

    def __init__(self, commands: dict[str, str]) -> None:
        """`commands` with their descriptions."""
        self.commands = commands
        self._images = PathCompleter(expanduser=True, file_filter=_is_image)
        self._folders = PathCompleter(expanduser=True, only_directories=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """The completions of the text before the cursor; called by prompt_toolkit."""
        before = document.text_before_cursor
        if before.startswith("/") and " " not in before:
            for command, description in self.commands.items():
                if command.startswith(before):
                    yield Completion(command, -len(before), display_meta=description)
        command, _, rest = before.partition(" ")
        word = _last_word(before)
        if command in ("/save", "/load"):
            yield from self._paths(self._folders, rest, event)
        elif command == "/image" or word.startswith(("/", "~", ".", "'", '"')):
            yield from self._paths(self._images, word, event)

    def _paths(self, completer: PathCompleter, word: str, event: CompleteEvent) -> Iterable[Completion]:
        """Paths that begin with `word`; spaces in them are escaped unless the word is in quotes."""
        quote = word[:1] if word[:1] in "'\"" else ""
        typed = word[1:] if quote else word.replace("\\ ", " ")
        for completion in completer.get_completions(Document(typed), event):
            text = completion.text if quote else completion.text.replace(" ", "\\ ")
            yield Completion(text, 0, display=completion.display)


def make_session(commands: dict[str, str]) -> PromptSession[str]:
    """A prompt whose history is kept between chats."""
    return PromptSession(
        history=_history(),
        completer=LineCompleter(commands),
        complete_while_typing=False,
        auto_suggest=AutoSuggestFromHistory(),
        enable_open_in_editor=False,
    )


def _history() -> History:
    """The history in the user's state folder, or in memory if that cannot be written."""
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    try:
        path = state / "visualchat" / "history"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        print(f"  the history is not saved: {error}", file=sys.stderr)
        return InMemoryHistory()
    return FileHistory(str(path))


def _is_image(name: str) -> bool:
    return Path(name).is_dir() or name.lower().endswith(IMAGE_SUFFIXES)


def _last_word(text: str) -> str:
    """The word before the cursor: from an open quote, or from the last space that is not escaped."""
    for quote in "'\"":
        if text.count(quote) % 2 and (start := text.rfind(quote)) >= 0 and (start == 0 or text[start - 1] == " "):
            return text[start:]
    start = len(text)
    while start and (text[start - 1] != " " or text[start - 2 : start - 1] == "\\"):
        start -= 1
    return text[start:]
