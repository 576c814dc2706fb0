"""The documentation is true where a program can tell: links, commands, files, messages, what is generated."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import snakemake.exceptions
import yaml

from scripts.config import settings
from scripts.config.registry import Dataset, Source
from tests.workflow.project import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

EXAMPLES = {"recipes/x.yaml", "scripts/adapters/pets.py", "scripts/evaluation/length.py"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Relative links of a page: path ("" for the page itself) and anchor."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pages
def test_links_lead_somewhere(page):
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {path} does not exist"
        assert not anchor or anchor in anchors(target), f"{page.name}: {path} has no heading #{anchor}"


def test_every_page_is_found_from_the_first():
    found, pending = set(), [ROOT / "README.md"]
    while pending:
        page = pending.pop()
        if page in found or page.suffix != ".md" or not page.exists():
            continue
        found.add(page)
        pending += [(page.parent / path).resolve() for path, _ in links(page) if path]
    assert found >= set(PAGES)


@pages
def test_commands_and_files_exist(page):
    text = page.read_text()
    for program, rest in re.findall(r"python -m scripts\.(\w+)([^`\n]*)", text):
        source = ROOT / f"scripts/{program}.py"
        assert source.is_file(), f"{page.name}: scripts.{program}"
        for flag in re.findall(r"(--[a-z][a-z-]+)", rest.split("#")[0]):
            assert f'"{flag}"' in source.read_text() or flag == "--help", f"{page.name}: scripts.{program} {flag}"
    for name in re.findall(r"\b((?:recipes|profiles|rules|envs|tests|benchmarks|scripts|model)/[\w/.-]*\w\.\w+)", text):
        assert (ROOT / name).is_file() or name in EXAMPLES, f"{page.name}: {name}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.M):
        assert re.search(rf"^{''.join(target)}:", makefile, re.M), f"{page.name}: make {''.join(target)}"


def test_the_readme_is_for_the_first_hour():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


def test_the_reference_of_rules_is_up_to_date():
    done = subprocess.run(
        [sys.executable, "-m", "scripts.workflow.rules_reference"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (ROOT / "docs/rules.md").read_text(), "run `make docs`"


def test_the_reference_of_rules_has_every_rule():
    written = set(re.findall(r"^### `(\w+)`", (ROOT / "docs/rules.md").read_text(), re.M))
    files = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    assert written == set(re.findall(r"^rule (\w+):", files, re.M)) | {
        f"pretrain_{part}" for part in ("tokenizer", "vision", "language")
    }


def messages() -> Iterator[str]:
    """Every text in the code, with "…" where a value is put in."""
    for path in [*(ROOT / "scripts").rglob("*.py"), *(ROOT / "model").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)


def test_every_message_that_is_explained_is_one_that_is_said():
    said = list(messages())
    ours, snakemakes = (ROOT / "docs/troubleshooting.md").read_text().split("## From Snakemake")
    quoted = re.findall(r"^\| `(.*?)` \|", ours, re.M)
    assert len(quoted) > 30
    missing = [quote for quote in quoted if not any(quote in text for text in said)]
    assert not missing
    assert all(hasattr(snakemake.exceptions, name) for name in re.findall(r"^\| `(\w+)` \|", snakemakes, re.M))


def test_examples_of_configuration_are_valid():
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/extending.md").read_text(), re.M | re.S)
    (source,), (dataset,) = map(yaml.safe_load, blocks)
    Source.model_validate(source)
    Dataset.model_validate(dataset)
    for page, default in (("README.md", "recipes/own-data.yaml"), ("docs/blends.md", "config.yaml")):
        config = yaml.safe_load((ROOT / default).read_text())
        for block in re.findall(r"^```yaml\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S):
            for section, entries in yaml.safe_load(block).items():
                config[section] |= entries
        if "llama" in str(config["blends"]):
            config["tokens"]["llama"] = config["tokens"]["miniature"]
        settings.load(config)
