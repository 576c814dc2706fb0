"""The top-level definitions of a module of this repository, for fingerprints of the code that a step really uses.

A module is cut into pieces: a function, a class, an assignment or an imported name is a piece that counts where it is
used; any other statement (a call, an assignment to an attribute of another module, a loop) acts when the module is
imported, and so does a function that a decorator of ours registers, or a class that a hook of its base does. Texts of
pieces have no comments, docstrings, trailing spaces and blank lines, except inside of strings.
"""

import ast
import io
import re
import tokenize
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("scripts", "model")

# A name that is not an attribute. Words in strings are found as well, which makes a fingerprint cover more, never less.
_NAME = re.compile(r"(?<![\w.])[^\W\d]\w*")
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class ImportedName:
    """A name that a module imports from this repository: `name` of `module`, or the whole module if `name` is ""."""

    module: str
    name: str


@dataclass(frozen=True)
class Piece:
    """A top-level statement: the names that it defines, its text, and the names that it mentions.

    `acts` is true if it does something when the module is imported.
    """

    names: frozenset[str]
    text: str
    mentions: frozenset[str]
    acts: bool


@dataclass(frozen=True)
class Module:
    """A module: its pieces in order, the names that it imports from this repository, and the modules that it loads.

    Imports inside of functions are in `imports` but not in `loads`; those for type checkers are in neither.
    """

    pieces: tuple[Piece, ...]
    imports: dict[str, ImportedName]
    loads: frozenset[str]


@cache
def read_module(name: str) -> Module:
    """Read the module with the dotted `name`."""
    path = module_file(name)
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines, in_strings = _normalised(source, tree)
    imports: dict[str, ImportedName] = {}
    loads: set[str] = set()
    pieces: list[Piece] = []
    ours = {node.name for node in tree.body if isinstance(node, _FUNCTIONS)}
    for statement, top_level in _imports(tree):
        found = dict(_imported(name, statement))
        imports |= found
        loads |= {each.module for each in found.values()} if top_level else set()
    ours |= set(imports)
    hooks = {node.name for node in tree.body if isinstance(node, ast.ClassDef) and _has_hook(node)}
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom) or _is_for_type_checkers(node):
            continue
        begin = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", ()))])
        numbers = range(begin - 1, node.end_lineno or node.lineno)
        kept = (lines[number] if number in in_strings else lines[number].rstrip() for number in numbers)
        text = "\n".join(line for number, line in zip(numbers, kept, strict=True) if line or number in in_strings)
        if text:
            names = frozenset(_defined(node))
            acts = not names or any(_base_name(each) in ours for each in getattr(node, "decorator_list", ()))
            acts = acts or (isinstance(node, ast.ClassDef) and _is_registered(node, hooks))
            pieces.append(Piece(names, text, frozenset(_NAME.findall(text)), acts))
    return Module(tuple(pieces), imports, frozenset(loads))


def module_file(module: str) -> Path:
    """The file of the module with this dotted name."""
    return ROOT.joinpath(*module.split(".")).with_suffix(".py")


def exists(module: str) -> bool:
    """Whether this repository has such a module."""
    return module.split(".")[0] in PACKAGES and module_file(module).is_file()


def _imports(tree: ast.Module) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """All import statements, and whether each is executed when the module is imported.

    Expressions are not visited: most nodes are such.
    """
    pending: list[tuple[ast.AST, bool]] = [(node, True) for node in tree.body]
    while pending:
        node, top_level = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, top_level
        elif not _is_for_type_checkers(node):
            top_level = top_level and not isinstance(node, _FUNCTIONS)
            for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                pending.extend((inner, top_level) for inner in getattr(node, field, ()))


def _imported(module: str, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, ImportedName]]:
    """The names that an import statement of `module` binds to modules of this repository or to parts of them."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if exists(alias.name):
                yield alias.asname or alias.name.split(".")[0], ImportedName(alias.name, "")
        return
    package = module.split(".")[:-1]
    base = package[: len(package) - node.level + 1] if node.level else []
    parent = ".".join([*base, *([node.module] if node.module else [])])
    for alias in node.names:
        if exists(f"{parent}.{alias.name}"):
            yield alias.asname or alias.name, ImportedName(f"{parent}.{alias.name}", "")
        elif exists(parent):
            yield alias.asname or alias.name, ImportedName(parent, "" if alias.name == "*" else alias.name)


def _defined(node: ast.stmt) -> list[str]:
    """The names that a statement defines, if that is all it does."""
    if isinstance(node, _FUNCTIONS):
        return [node.name]
    if isinstance(node, ast.AnnAssign):
        targets: list[ast.expr] = [node.target]
    elif isinstance(node, ast.Assign):
        targets = [part for each in node.targets for part in (each.elts if isinstance(each, ast.Tuple) else [each])]
    else:
        return []
    return [each.id for each in targets if isinstance(each, ast.Name)] if _are_names(targets) else []


def _are_names(targets: list[ast.expr]) -> bool:
    return all(isinstance(each, ast.Name) for each in targets)


def _base_name(decorator: ast.expr) -> str:
    """The first name of a decorator: `register` of `@register("adamw")`."""
    while not isinstance(decorator, ast.Name):
        inner = getattr(decorator, "func", None) or getattr(decorator, "value", None)
        if inner is None:
            return ""
        decorator = inner
    return decorator.id


def _has_hook(node: ast.ClassDef) -> bool:
    """Whether a class has a hook that runs for each of its subclasses."""
    return any(isinstance(each, ast.FunctionDef) and each.name == "__init_subclass__" for each in node.body)


def _is_registered(node: ast.ClassDef, hooks: Collection[str]) -> bool:
    """Whether a hook of its base may register a class: it gets arguments, or the base is one of `hooks`."""
    return bool(node.keywords) or any(isinstance(base, ast.Name) and base.id in hooks for base in node.bases)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _normalised(source: str, tree: ast.Module) -> tuple[list[str], set[int]]:
    """The lines of a source without comments, and with empty lines where documentation is.

    Also the numbers, from 0, of lines that end inside a string: their spaces, and whether they are there, count.
    """
    # Not `splitlines`, which also splits at characters at which Python does not.
    lines = source.split("\n")
    documentation: set[int] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        # A statement that is only a string is documentation: docstrings and the strings under configuration fields.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documentation.update(range(node.lineno - 1, node.end_lineno or node.lineno))
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            pending.extend(getattr(node, field, ()))
    in_strings: set[int] = set()
    begin: list[int] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        kind, row = tokenize.tok_name[token.type], token.start[0]
        if kind == "COMMENT":
            lines[row - 1] = lines[row - 1][: token.start[1]]
        elif kind == "STRING":
            in_strings.update(range(row - 1, token.end[0] - 1))
        elif kind == "FSTRING_START":
            begin.append(row - 1)
        elif kind == "FSTRING_END":
            in_strings.update(range(begin.pop(), token.end[0] - 1))
    for number in documentation:
        lines[number] = ""
    return lines, in_strings - documentation
