"""Evaluates the values of a task file for a document: names of fields, Jinja templates, and allowed functions.

A text that is the name of a field gives the field; every other text is a Jinja template over the document's fields, as
in lmms-eval. Task files may be untrusted, so templates run in Jinja's sandbox: no attributes that begin with an
underscore, no changes to arguments, no files. `!function module.name` runs Python code that comes with the task; it is
refused unless the user allows it, and then the module is loaded from the folder of the task file.
"""

import ast
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

from scripts.common.errors import UserError

_MAX_CHARACTERS = 1 << 20
"""Limit for the output of a template; a prompt has some thousand characters."""


def _environment() -> SandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    environment.filters["regex_replace"] = lambda text, pattern, by, count=0: re.sub(pattern, by, text, count=count)
    return environment


_JINJA = _environment()


def render(template: str, document: Mapping[str, Any], where: str) -> str:
    """Render a template with the fields of a document.

    Raises:
        UserError: not a template, an operation that the sandbox forbids, an unknown field, or too long an output.
    """
    try:
        text = _JINJA.from_string(template).render(**document)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise UserError(f"{where}: the template {template[:80]!r} cannot be rendered: {error}") from None
    if len(text) > _MAX_CHARACTERS:
        raise UserError(f"{where}: the template {template[:80]!r} gives more than {_MAX_CHARACTERS:,} characters")
    return text


def text_of(value: Any, document: Mapping[str, Any], where: str, extra: Mapping[str, Any] | None = None) -> Any:
    """The value of `doc_to_text` or a similar key for a document: a field, a rendered template, or a function's result.

    A `value` that is neither a text nor a function is returned as it is. `extra` are the `lmms_eval_specific_kwargs`,
    for functions that take them.

    Raises:
        UserError: see `render`.
    """
    if isinstance(value, Function):
        return value(document, extra)
    if not isinstance(value, str):
        return value
    return document[value] if value in document else render(value, document, where)


def literal(text: str, where: str) -> Any:
    """Parse a Python literal, the form in which templates give lists.

    Raises:
        UserError: it is not a literal.
    """
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise UserError(f"{where}: {text[:80]!r} is not a list") from None


class Function:
    """A Python function of a task."""

    def __init__(self, name: str, function: Callable) -> None:
        self.name, self._function = name, function

    def __call__(self, document: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> Any:
        """Call it with a document and, if it takes more than one argument, with `extra`."""
        code = getattr(self._function, "__code__", None)
        takes_more = code is not None and code.co_argcount > 1
        return self._function(document, extra or {}) if takes_more else self._function(document)

    def results(self, document: Mapping[str, Any], outputs: list[Any]) -> Mapping[str, Any]:
        """Call it as `process_results`: points by metric."""
        return self._function(document, outputs)

    def process(self, documents: list[dict[str, Any]]) -> Iterable[Mapping[str, Any]]:
        """Call it as `process_docs`: the documents to use instead."""
        return self._function(documents)


def load_yaml(path: Path, allow_code: bool, call: bool = True, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a task file and the files that it includes; its own keys override included ones.

    Args:
        path: the file.
        allow_code: accept `!function`.
        call: load the modules of functions; otherwise their names are kept and calling one does nothing.
        within: the files that include this one, outermost first.

    Raises:
        UserError: no such file, not YAML with keys, files that include each other, or a function that is not allowed.
    """
    if path.resolve() in within:
        raise UserError(f"{path} includes itself" + (f", through {within[-1]}" if within[-1] != path.resolve() else ""))
    loader = _loader(path.parent, allow_code, call)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 (a subclass of SafeLoader)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} must be a YAML mapping of keys to values")
    included = content.pop("include", [])
    base: dict[str, Any] = {}
    for name in [included] if isinstance(included, str) else included:
        base |= load_yaml(path.parent / name, allow_code, call, (*within, path.resolve()))
    return base | content


def _loader(folder: Path, allow_code: bool, call: bool) -> type[yaml.SafeLoader]:
    class Loader(yaml.SafeLoader):
        pass

    def function(loader: yaml.SafeLoader, node: yaml.Node) -> Function:
        if not isinstance(node, yaml.ScalarNode):
            raise UserError(f"{folder}: write !function module.name")
        name = str(loader.construct_scalar(node))
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
    assert spec is not None and spec.loader is not None  # the file exists and ends in .py
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function_name, None)):
        raise UserError(f"{file} has no function {function_name!r}")
    return Function(name, getattr(module, function_name))
