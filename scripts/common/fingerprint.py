"""Fingerprints of the code that a step uses, so that editing this code makes the step run again, and only this step.

Snakemake sees a rule's shell command, not the code behind it. The rules therefore pass
`code_fingerprint("scripts.plan")` as a parameter. It covers the definitions (functions, classes, constants) of this
repository that the program reaches by name, and what its modules do when they are imported. Comments, docstrings, blank
lines and the Python version do not count, nor does a change of a function that the program does not reach.

Some definitions cannot change the bytes of a result, because what they return or write is fixed by their description:
they show progress, end a program, or move bytes that are given to them (`NEUTRAL`). They do not count either. Should a
correction of such a definition ever change results, `EDITION` is raised, and every step runs again.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from functools import cache

from scripts.common.definitions import ROOT, Piece, module_file, read_module

EDITION = 1
"""Part of every fingerprint."""

NEUTRAL: dict[str, frozenset[str] | None] = {
    "scripts.common.atomic_folder": None,
    "scripts.common.cli": frozenset({"_HiddenModule", "hide_pandas", "parser"}),
    "scripts.common.errors": None,
    "scripts.common.progress": None,
    "scripts.common.files": frozenset(
        {"atomic", "bytes_sha256", "file_sha256", "open_table", "parse_json", "read_json", "read_table", "sync"}
        | {"temporary_prefix", "text_sha256"}
    ),
    "scripts.common.verified_folder": None,
    "scripts.media.direct": None,
}
"""Module -> its definitions that do not count; None: all of them."""

__all__ = ["ROOT", "asset_fingerprint", "code_files", "code_fingerprint", "import_closure", "imports"]


def code_fingerprint(*modules: str) -> str:
    """A hash, 16 hex digits, of the code that `modules` use.

    Args:
        modules: dotted names; modules that are loaded dynamically (adapters) have to be listed as well. Of these
            modules everything counts, of others what they reach.
    """
    digest = hashlib.sha256(f"{EDITION}\n".encode())
    for name, text in sorted(_code(modules).items()):
        digest.update(f"{name}\n{text}\n".encode())
    return digest.hexdigest()[:16]


def code_files(*modules: str) -> dict[str, str]:
    """A hash, 16 hex digits, of the code that `modules` use of each file, by its path in the repository."""
    return {
        str(module_file(name).relative_to(ROOT)): hashlib.sha256(text.encode()).hexdigest()[:16]
        for name, text in sorted(_code(modules).items())
    }


def asset_fingerprint(*patterns: str) -> str:
    """A hash, 16 hex digits, of the files below the repository that match `patterns`.

    For templates and style sheets, which no import statement names.
    """
    digest = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in ROOT.glob(pattern)):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def import_closure(modules: Iterable[str]) -> set[str]:
    """`modules` and all modules of this repository that they import, directly or not."""
    found: set[str] = set()
    pending = list(modules)
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending.extend(imports(name))
    return found


@cache
def imports(module: str) -> tuple[str, ...]:
    """The modules of this repository that `module` imports, also inside functions."""
    return tuple(sorted({imported.module for imported in read_module(module).imports.values()}))


def _code(modules: Iterable[str]) -> dict[str, str]:
    """The text of all code that `modules` use, by module; modules of which nothing is used are left out."""
    used: dict[str, set[Piece]] = defaultdict(set)
    # A module and one of its names; "": all of them.
    seen: set[tuple[str, str]] = set()
    pending = [(name, "") for name in modules]
    loaded: set[str] = set()
    while pending:
        name, wanted = pending.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        module = read_module(name)
        pieces = _acting(name, loaded)
        if wanted in module.imports:
            pending.append((module.imports[wanted].module, module.imports[wanted].name))
        elif not any(wanted in piece.names for piece in module.pieces):
            # The module itself is meant, or a name that it gets in another way.
            pieces += [(name, piece) for piece in module.pieces]
            pending += [(imported.module, imported.name) for imported in module.imports.values()]
        else:
            pieces += [(name, piece) for piece in module.pieces if wanted in piece.names]
        for owner, piece in pieces:
            if piece not in used[owner] and not _is_neutral(owner, piece):
                used[owner].add(piece)
                known = read_module(owner)
                pending += [
                    (owner, mention)
                    for mention in piece.mentions
                    if mention in known.imports or any(mention in each.names for each in known.pieces)
                ]
    return {
        name: "\n".join(piece.text for piece in read_module(name).pieces if piece in pieces)
        for name, pieces in used.items()
        if pieces
    }


def _acting(name: str, loaded: set[str]) -> list[tuple[str, Piece]]:
    """What importing the module `name`, and the modules that it loads, does; modules in `loaded` are left out."""
    if name in loaded:
        return []
    loaded.add(name)
    module = read_module(name)
    found = [(name, piece) for piece in module.pieces if piece.acts and not piece.text.startswith("if __name__")]
    for each in sorted(module.loads):
        found += _acting(each, loaded)
    return found


def _is_neutral(name: str, piece: Piece) -> bool:
    names = NEUTRAL.get(name, frozenset())
    return names is None or (bool(piece.names) and piece.names <= names)
