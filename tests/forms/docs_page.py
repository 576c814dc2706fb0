"""Generates docs/forms.md, the forms in which rows may come, from the cases of this suite and the table of forms.

    python -m tests.forms.docs_page            prints it
    python -m tests.forms.docs_page --write    writes it

So every example of the page is a case that the tests run.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from scripts.adapters.own.forms import FORMS
from scripts.common.cli import parser
from scripts.common.errors import run_program
from scripts.common.files import atomic
from tests.forms.cases import Case, Expected, File, Form, Turn, forms

PAGE = "docs/forms.md"
_ROOT = Path(__file__).resolve().parents[2]
_WIDTH = 118
_REFERENCES = {
    "path": "/absolute/path/of/{}",
    "base64": "<base64 of {}>",
    "data_url": "data:image/...;base64,<base64 of {}>",
}
_HEAD = """# Forms of rows

Generated from `tests/forms/cases/` and `scripts/adapters/own/forms.yaml` by `python -m tests.forms.docs_page --write`.
Every example is a test. What a record is, and what the reasons mean: [records.md](records.md).

If rows have one of these forms, `custom.<name>` in a configuration needs `folder` alone; further lines are shown where
they are needed. In a conversation `[cat.png]` is an image in its place. `<bytes of cat.png>` and `<base64 of cat.png>`
stand for an image inside of a row.
"""


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--write", action="store_true", help="write the page instead of printing it")
    if arguments.parse_args().write:
        with atomic(_ROOT / PAGE, "w") as file:
            file.write(page())
    else:
        sys.stdout.write(page())


def page() -> str:
    """The page as Markdown."""
    every = sorted(forms().values(), key=lambda form: form.form.lower().strip("`"))
    lines = [_HEAD, "| form | rows |", "|---|---|"]
    lines += [f"| [{form.form}](#{_anchor(form.form)}) | {_cell(form.about)} |" for form in every]
    for form in every:
        lines += ["", *_section(form)]
    lines += ["", *_table()]
    return "\n".join(lines) + "\n"


def _section(form: Form) -> Iterator[str]:
    pages = ", ".join(f"[{_site(address)}]({address})" for address in form.documentation)
    yield from (f"## {form.form}", "", f"{form.about} Documented at {pages}.")
    for case in form.cases:
        if case.shown:
            yield from ("", *_case(case))


def _case(case: Case) -> Iterator[str]:
    about = f" {case.about}" if case.about else ""
    yield f"**{case.name[0].upper()}{case.name[1:]}.**{about}"
    yield ""
    if case.config:
        yield from ("```yaml", *_yaml(case.config), "```", "")
    yield "```text"
    for name, file in case.files.items():
        yield from _file(name, file)
    images = [*case.images, *(f"{archive}: {path}" for archive, members in case.archives.items() for path in members)]
    if images:
        yield f"images: {', '.join(images)}"
    yield from _conversations(case.expect)
    yield "```"
    yield from _remarks(case.expect)


def _yaml(config: dict[str, Any]) -> list[str]:
    """The lines below `custom.<name>`, an inner section on one line where it fits."""
    lines = []
    for key, value in config.items():
        text = yaml.safe_dump({key: value}, default_flow_style=True, allow_unicode=True, width=10 * _WIDTH).strip()
        block = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=_WIDTH).splitlines()
        lines += [text[1:-1]] if len(text) <= _WIDTH else block
    return lines


def _file(name: str, file: File) -> Iterator[str]:
    """A file's name and its rows, each as JSON."""
    remarks = [file.kind and f"a {file.kind}" if file.kind else "", "" if file.encoding == "utf-8" else file.encoding]
    remark = ", ".join(filter(None, remarks))
    yield f"{name}{f' ({remark})' if remark else ''}"
    if file.text is not None:
        yield from (f"  {line}" for line in file.text.splitlines())
    for split, rows in file.splits.items():
        yield from (f"  {split}: {_row(row)}" for row in rows)
    yield from (f"  {_row(row)}" for row in file.rows)


def _row(row: Any) -> str:
    text = json.dumps(row, ensure_ascii=False)
    text = re.sub(r'"\$bytes\(([^)]*)\)"', r"<bytes of \1>", text)
    return re.sub(r"\$(path|base64|data_url)\(([^)]*)\)", lambda match: _REFERENCES[match[1]].format(match[2]), text)


def _conversations(expect: Expected) -> Iterator[str]:
    for number, turns in enumerate(expect.conversations):
        yield ""
        split = f"  ({expect.splits[number]})" if expect.splits and expect.splits[number] != "train" else ""
        for turn in turns:
            yield from _turn(turn, split)
            split = ""


def _remarks(expect: Expected) -> Iterator[str]:
    remarks = [f"Nothing is built; the error names {_list(expect.error)}"] if expect.error else []
    remarks += [f"Dropped: {_counts(expect.dropped)}"] if expect.dropped else []
    remarks += [f"Noted: {_counts(expect.notes)}"] if expect.notes else []
    if remarks:
        yield from ("", f"{'. '.join(remarks)}.")


def _turn(turn: Turn, split: str) -> Iterator[str]:
    """A turn, its further lines indented below the first."""
    role, value = next((name, value) for name, value in turn if name != "supervised" and value is not None)
    parts = (value,) if isinstance(value, str) else value
    text = "".join(part if isinstance(part, str) else f"[{part['image']}]" for part in parts)
    remark = "" if turn.supervised else "  (not trained on)"
    first, *others = text.split("\n")
    head = f"{role}: "
    yield from (f"{head}{first}{remark}{split}", *(f"{' ' * len(head)}{line}" for line in others))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} `{reason}`" for reason, count in counts.items())


def _table() -> Iterator[str]:
    """What forms.yaml recognises: members, roles and markers."""
    yield from ("## Members that are recognised", "")
    yield "A form fits a row whose members have values; null and empty ones do not count. `columns:` maps other names."
    yield from ("", "| form | members | |", "|---|---|---|")
    for form in FORMS.forms:
        members = [form.turns] if form.turns else [form.question, form.context, form.answer]
        yield f"| {form.name} | {'; '.join(_list(names) for names in members if names)} | {_cell(form.about)} |"
    images = _list(name for group in FORMS.row.images for name in group)
    yield from ("", f"System texts: {_list(FORMS.row.system)}. Images: {images}.")
    yield from ("", "| role | words for it |", "|---|---|")
    for role in ("user", "assistant", "system"):
        yield f"| {role} | {_list(word for word in getattr(FORMS.roles, role))} |"
    yield from ("", "Markers of media that drop a row:")
    yield from ("", f"{_list(marker.text or marker.example for marker in FORMS.markers)}.")


def _list(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _site(address: str) -> str:
    return re.sub(r"^(www|docs)\.", "", address.split("/")[2])


if __name__ == "__main__":
    run_program(main)
