"""The rooms of scripts/ import each other in one direction, no module imports a program, and model/ is independent."""

import ast
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from scripts.common.fingerprint import import_closure, imports

ROOT = Path(__file__).resolve().parents[1]

LEVELS = (
    ("common",),
    ("config",),
    ("media",),
    ("adapters", "fetching", "synthetic"),
    ("blending",),
    ("inference",),
    ("training", "pretraining"),
    ("evaluation",),
    ("serving", "terminal"),
    ("workflow",),
    ("reporting", "provenance"),
    ("inspection",),
    ("estimation",),
)
"""From the bottom to the top: a room may import the rooms of lower levels. Programs are above all of them."""

WITHOUT_TORCH = ("scripts/adapters", "scripts/media", "scripts/blending", "model/template.py", "model/pixels.py")


class Arrow(NamedTuple):
    """One import: `module` imports `imported`, both by their dotted names."""

    module: str
    imported: str


def modules(folder: str) -> list[str]:
    """The dotted names of all Python files at or below a path of the repository."""
    path = ROOT / folder
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    return [
        ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for file in files
        if file.name != "__init__.py" and "__pycache__" not in file.parts
    ]


def room(module: str) -> str | None:
    """The room of a module of scripts/; None for a program, and for what is not in scripts/."""
    package, *inner = module.split(".")
    return inner[0] if package == "scripts" and len(inner) > 1 else None


def is_program(module: str) -> bool:
    """Whether a module lies at the top of scripts/."""
    return module.startswith("scripts.") and room(module) is None


def arrows() -> Iterator[Arrow]:
    """All imports between modules of the repository, also those inside of functions."""
    for module in [*modules("scripts"), *modules("model")]:
        yield from (Arrow(module, imported) for imported in imports(module))


def external_imports(module: str) -> set[str]:
    """The packages from elsewhere that a module imports, also inside of functions, but not only for type checking."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    return {name.split(".")[0] for node in _executed(tree) for name in _names(node)}


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all nodes inside of it, without the blocks of `if TYPE_CHECKING`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING"):
            yield from _executed(child)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


def readable(problems: Iterable[str]) -> str:
    """The problems as lines below each other."""
    return "\n".join(["", *sorted(problems)])


def test_every_room_has_a_level():
    rooms = {room(module) for module in modules("scripts")} - {None}
    known = {name for level in LEVELS for name in level}
    assert rooms == known, f"rooms of scripts/ that are not in LEVELS, or only there: {sorted(rooms ^ known)}"


def test_no_room_imports_a_higher_one():
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    problems = [
        f"{arrow.module} imports {arrow.imported}: the room {importing} must not use {imported}, which is not below it"
        for arrow in arrows()
        if (importing := room(arrow.module)) and (imported := room(arrow.imported))
        if importing != imported and level[imported] >= level[importing]
    ]
    assert not problems, readable(problems)


def test_no_rooms_import_each_other_in_a_circle():
    used: dict[str, set[str]] = {name: set() for level in LEVELS for name in level}
    for arrow in arrows():
        importing, imported = room(arrow.module), room(arrow.imported)
        if importing and imported and importing != imported:
            used[importing].add(imported)

    def circle(path: list[str]) -> list[str]:
        for following in sorted(used[path[-1]]):
            if following in path:
                return [*path[path.index(following) :], following]
            if found := circle([*path, following]):
                return found
        return []

    for name in used:
        rooms = circle([name])
        examples = [
            next(f"{a.module} imports {a.imported}" for a in arrows() if (room(a.module), room(a.imported)) == pair)
            for pair in pairwise(rooms)
        ]
        assert not rooms, f"the rooms {' -> '.join(rooms)} import each other in a circle:{readable(examples)}"


def test_no_program_is_imported():
    problems = [
        f"{arrow.module} imports the program {arrow.imported}: what both need belongs into a room"
        for arrow in arrows()
        if is_program(arrow.imported)
    ]
    assert not problems, readable(problems)


def test_the_model_imports_nothing_of_ours_but_its_own_files():
    """An exported folder contains copies of these files, so they find each other only by flat relative imports."""
    problems = []
    for module in modules("model"):
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                line = ast.unparse(node)
                absolute = isinstance(node, ast.Import) or node.level == 0
                packages = {name.split(".")[0] for name in _names(node)}
                if absolute and packages & {"scripts", "model", "tests", "benchmarks"}:
                    problems.append(f"{module}: `{line}` should be a relative import of a file in model/")
                elif not absolute and (node.level > 1 or node.module is None or "." in node.module):
                    problems.append(f"{module}: `{line}` should be flat: `from .file import name`")
    assert not problems, readable(problems)


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_data_code_never_imports_torch(folder):
    """Data steps run on machines without torch, and its import takes seconds."""
    problems = [
        f"{module} imports {user}, which imports torch" if user != module else f"{module} imports torch"
        for module in modules(folder)
        for user in sorted(import_closure([module]))
        if "torch" in external_imports(user)
    ]
    assert not problems, readable(problems)


def test_package_files_are_empty():
    files = [file for top in ("scripts", "model", "benchmarks") for file in (ROOT / top).rglob("__init__.py")]
    problems = [f"{file.relative_to(ROOT)} should be empty" for file in files if file.read_bytes()]
    assert not problems, readable(problems)
