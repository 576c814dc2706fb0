"""Generates the reference page and the JSON schema of the configuration from the typed sections.

`python -m scripts.settings --write` writes both below docs/, and a test fails when they are out of date.
"""

import json
from collections.abc import Mapping
from typing import Any

from scripts.config.base import Section
from scripts.config.settings import Settings


def reference(section: type[Section] = Settings) -> str:
    """The configuration reference as Markdown: every section with its keys, types, defaults and documentation."""
    lines = [
        "# Configuration reference",
        "",
        "Generated from `scripts/config/` by `python -m scripts.settings --write`. All keys are checked before",
        "anything runs; unknown keys are errors.",
    ]
    for model in (section, *_subsections(section)):
        lines += ["", f"## {_title(model.__name__)}", "", " ".join((model.__doc__ or "").split()), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for key, field in model.model_fields.items():
            kind = _kind(model.model_json_schema()["properties"][key])
            default = (
                "required" if field.is_required() else f"`{_default(field.get_default(call_default_factory=True))}`"
            )
            lines.append(f"| `{key}` | {kind} | {default} | {' '.join((field.description or '').split())} |")
    return "\n".join(lines) + "\n"


def _title(class_name: str) -> str:
    return class_name.removesuffix("Config")


def _default(value: Any) -> str:
    return "see below" if isinstance(value, Section) else str(value).replace("|", "\\|").replace("\n", "\\n")


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if forms := schema.get("anyOf", schema.get("oneOf")):
        return " or ".join(_kind(part) for part in forms)
    if "$ref" in schema:
        return f"section {_title(schema['$ref'].rsplit('/', 1)[-1])}"
    # Keys with a checked form are patterns of properties, others are additional properties.
    entries = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")]
    if schema.get("type") == "object" and isinstance(entries[0], Mapping):
        return f"{_kind(entries[0])} by name"
    return "`" + str(schema["const"]) + "`" if "const" in schema else schema.get("type", "any")


def _subsections(section: type[Section]) -> list[type[Section]]:
    """The sections inside of `section`, depth first, each once."""
    found: list[type[Section]] = []

    def visit(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Section) and annotation not in found:
            found.append(annotation)
            for field in annotation.model_fields.values():
                visit(field.annotation)
        for argument in getattr(annotation, "__args__", ()):
            visit(argument)

    for field in section.model_fields.values():
        visit(field.annotation)
    return found


def generated() -> dict[str, str]:
    """The generated files: path in the repository -> text."""
    schema = json.dumps(Settings.model_json_schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    return {"docs/config.schema.json": schema, "docs/configuration.md": reference()}
