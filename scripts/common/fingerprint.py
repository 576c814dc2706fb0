"""Fingerprints of the code that a step uses, so that editing this code makes the step run again, and only this step.

Snakemake sees a rule's shell command, not the modules behind it. The rules therefore pass
`code_fingerprint("scripts.plan")` as a parameter. It covers the import closure of the program inside this repository;
comments, docstrings, blank lines and the Python version do not count.
"""

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("scripts", "model")


def code_fingerprint(*modules: str) -> str:
    """A hash, 16 hex digits, of the code of `modules` and of every module of this repository that they import.

    Args:
        modules: dotted names; modules that are loaded dynamically (adapters) have to be listed as well.
    """
    digest = hashlib.sha256()
    for name in sorted(import_closure(modules)):
        digest.update(f"{name}\n{_normalised(_file(name))}\n".encode())
    return digest.hexdigest()[:16]


def code_files(*modules: str) -> dict[str, str]:
    """A hash, 16 hex digits, of each file in the import closure of `modules`, by its path in the repository."""
    return {
        str(_file(name).relative_to(ROOT)): hashlib.sha256(_normalised(_file(name)).encode()).hexdigest()[:16]
        for name in sorted(import_closure(modules))
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
    package = module.split(".")[:-1]
    names: list[str] = []
    for node in _statements(_file(module)):
        if isinstance(node, ast.Import):
            names.extend(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parent = ".".join([*base, *([node.module] if node.module else [])])
            names.append(parent)
            names.extend(f"{parent}.{alias.name}" for alias in node.names)
    return tuple(name for name in dict.fromkeys(names) if name.split(".")[0] in _PACKAGES and _exists(name))


@cache
def _statements(path: Path) -> list[ast.AST]:
    """All statements of a file, those inside others as well. Expressions are not visited: most nodes are such."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    found = []
    while pending:
        found.append(node := pending.pop())
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            pending.extend(getattr(node, field, ()))
    return found


def _exists(module: str) -> bool:
    return _file(module).is_file()


def _file(module: str) -> Path:
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


@cache
def _normalised(path: Path) -> str:
    """The source without comments, docstrings, trailing spaces and blank lines."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in _statements(path):
        # A statement that is only a string is documentation: docstrings and the strings under configuration fields.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[number] = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(line.rstrip() for line in lines if line.strip())
