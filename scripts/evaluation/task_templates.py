"""What a task file says about a document: fields by name, texts by Jinja, and functions only where they were allowed.

A text that is the name of a field stands for the field; any other is a Jinja template over the document's fields, as in
lmms-eval. Templates come from files that others wrote, so they run in Jinja's sandbox: no attributes that begin with an
underscore, no changing of what they are given, no files. `!function module.name` would run foreign Python; it is
refused unless the user allowed it, and then the module beside the task file is loaded.
"""

import ast
import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

from scripts.common.errors import UserError

_LONGEST = 1 << 20
"""Characters that a template may write; a prompt has some thousands."""


def _environment() -> SandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = lambda text, pattern, by, count=0: re.sub(pattern, by, text, count=count)
    return environment


_JINJA = _environment()


def render(template: str, document: Mapping[str, Any], where: str) -> str:
    """Fill a template with the fields of a document.

    Raises:
        UserError: it is no template, does what the sandbox forbids, or names a field that the document lacks.
    """
    try:
        text = _JINJA.from_string(template).render(**document)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise UserError(f"{where}: the template {template[:80]!r} cannot be filled: {error}") from None
    if len(text) > _LONGEST:
        raise UserError(f"{where}: the template {template[:80]!r} writes more than {_LONGEST} characters")
    return text


def text_of(value: Any, document: Mapping[str, Any], where: str, extra: Mapping[str, Any] | None = None) -> Any:
    """What `doc_to_text` and its kin say about a document: a field, a filled template, or what a function returns.

    `extra` are lmms-eval's specific keyword arguments, for functions that take them.
    """
    if isinstance(value, Function):
        return value(document, extra)
    if not isinstance(value, str):
        return value
    return document[value] if value in document else render(value, document, where)


def literal(text: str, where: str) -> Any:
    """A list, number or text written as Python writes it, as templates write lists."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise UserError(f"{where}: {text[:80]!r} is not a list") from None


class Function:
    """A Python function of the task's own, allowed by the user."""

    def __init__(self, name: str, function: Callable):
        self.name, self._function = name, function

    def __call__(self, document: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> Any:
        """Call it with a document and, if it takes two arguments, with `extra`."""
        code = getattr(self._function, "__code__", None)
        takes_more = code is not None and code.co_argcount > 1
        return self._function(document, extra or {}) if takes_more else self._function(document)

    def results(self, document: Mapping[str, Any], outputs: list[Any]) -> Mapping[str, Any]:
        """Call it as `process_results`."""
        return self._function(document, outputs)


def load_yaml(path: Path, allow_code: bool, call: bool = True, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a task file and the files that it includes; the keys of the including one win.

    Without `call`, functions are noted and their modules not loaded. `within` are the files that include this one.

    Raises:
        UserError: no such file, no YAML of keys, files that include each other, or a function without permission.
    """
    if path.resolve() in within:
        raise UserError(f"{path} includes itself" + (f", through {within[-1]}" if within[-1] != path.resolve() else ""))
    loader = _loader(path.parent, allow_code, call)
    try:
        # A subclass of SafeLoader: it builds nothing but plain values and, if allowed, functions.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a YAML file of keys and values")
    included = content.pop("include", [])
    base: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        base |= load_yaml(path.parent / name, allow_code, call, (*within, path.resolve()))
    return base | content


def _loader(folder: Path, allow_code: bool, call: bool) -> type[yaml.SafeLoader]:
    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: yaml.Node) -> Function:
        name = loader.construct_scalar(node)
        if not allow_code:
            raise UserError(
                f"{folder}: the task calls its own Python function {name!r}. Read that code; if you trust it, allow it "
                "with --allow-code (or `allow_code: true` in the section `evaluate`)"
            )
        return _load_function(folder, name) if call else Function(name, lambda document: None)

    Loader.add_constructor("!function", function)
    return Loader


def _load_function(folder: Path, name: str) -> Function:
    module_name, _, function_name = name.rpartition(".")
    file = folder / f"{module_name}.py"
    if not re.fullmatch(r"\w+", module_name) or not file.is_file():
        raise UserError(f"the function {name!r} should be in {file}, which does not exist")
    spec = importlib.util.spec_from_file_location(f"visualchat_task_{module_name}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function_name, None)):
        raise UserError(f"{file} has no function {function_name!r}")
    return Function(name, getattr(module, function_name))
