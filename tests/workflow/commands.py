"""The commands that the documentation shows: in its pages, in the headers of recipes and profiles, and in `make help`.

fenced blocks    without a language, or `bash`: every line is a command; output and file trees carry a language
inline code      what begins with one of `INLINE`, in tables and in prose; "…" marks a quoted message
comments         of configurations, profiles and the Makefile: indented lines that begin with one of `FIRST_WORDS`,
                 and inline code
make help        the first words of each line
"""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FIRST_WORDS = ("make", "snakemake", "python", "pip", "source", "export", "git", "curl", "cd")
INLINE = re.compile(r"(?:make|snakemake|python -m|pip install|source) \S")
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)
PAGES = ("README.md", "CONTRIBUTING.md", "docs/*.md", "benchmarks/RESULTS.md")
COMMENTED = ("Makefile", "Snakefile", "config.yaml", "recipes/*.yaml", "profiles/*/profile.yaml")


@dataclass(frozen=True)
class Command:
    """One command as it is written in `file`, without its trailing comment."""

    file: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}: {self.text}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def documented(root: Path) -> list[Command]:
    """Every command of the documentation below `root`, each once per file, without those of `make help`."""
    found: dict[Command, None] = {}
    for path in (path for pattern in PAGES for path in sorted(root.glob(pattern))):
        text = path.read_text(encoding="utf-8")
        for line in [*of_fences(text), *of_inline_code(without_fences(text))]:
            found[Command(str(path.relative_to(root)), line)] = None
    for path in (path for pattern in COMMENTED for path in sorted(root.glob(pattern))):
        for line in of_comments(path.read_text(encoding="utf-8")):
            found[Command(str(path.relative_to(root)), line)] = None
    return list(found)


def of_fences(text: str) -> Iterator[str]:
    """Commands of the fenced blocks of a Markdown page; lines that end in a backslash or an open quote go on."""
    for language, block in FENCE.findall(text):
        if language not in ("", "bash"):
            continue
        pending = ""
        for line in block.splitlines():
            pending = f"{pending}\n{line}" if pending else line.strip()
            if pending.endswith("\\"):
                pending = pending[:-1].rstrip()
            elif is_whole(pending):
                yield from [bare] if (bare := without_comment(pending)) else []
                pending = ""
        assert not pending, f"a command has no end: {pending}"


def without_fences(text: str) -> str:
    return FENCE.sub("", text)


def of_inline_code(text: str) -> Iterator[str]:
    """Commands in inline code, which may be broken over lines."""
    for code in re.findall(r"`([^`]+)`", text):
        code = " ".join(code.split())
        if INLINE.match(code) and "…" not in code:
            yield code


def of_comments(text: str) -> Iterator[str]:
    """Commands in comments that fill their lines."""
    comments = "\n".join(re.findall(r"^#(.*)$", text, re.M))
    for line in comments.splitlines():
        if line.startswith("  ") and line.split()[0] in FIRST_WORDS:
            yield without_comment(line.strip())
    yield from of_inline_code(re.sub(r"\n ?", " ", comments))


def of_make_help(root: Path) -> list[Command]:
    """The targets that `make help` lists, as commands."""
    command = ["make", "--no-print-directory", "help"]
    shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    return [Command("make help", f"make {name}") for name in re.findall(r"^  make (\S+) ", shown, re.M)]


def is_whole(line: str) -> bool:
    """Whether a line of shell ends outside quotes."""
    try:
        shlex.split(line, comments=True)
    except ValueError:
        return False
    return True


def without_comment(line: str) -> str:
    """A line of shell without the comment at its end."""
    return re.sub(r"(^|\s+)#.*$", "", line) if "'" not in line else line
