"""The documentation is correct where a program can check it: links, commands, files, messages, generated pages."""

import ast
import json
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
from scripts.inspection.hints import HINTS
from scripts.workflow.program_list import first_sentence
from tests.workflow.project import ROOT

PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), ROOT / "scripts/README.md"]

EXAMPLES = {"recipes/x.yaml", "scripts/adapters/pets.py", "scripts/evaluation/length.py"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Relative links of a page: path ("" for the page itself) and anchor."""
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    heads = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
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


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_commands_and_files_exist(page):
    """The changelog is left out: it names what no longer exists."""
    text = page.read_text()
    for program, rest in re.findall(r"python -m scripts\.([\w.]*\w)([^`\n]*)", text):
        source = ROOT / f"scripts/{program.replace('.', '/')}.py"
        assert source.is_file(), f"{page.name}: scripts.{program}"
        for flag in re.findall(r"(--[a-z][a-z-]+)", rest.split("#")[0]):
            assert f'"{flag}"' in source.read_text() or flag == "--help", f"{page.name}: scripts.{program} {flag}"
    for name in re.findall(r"\b((?:recipes|profiles|rules|envs|tests|benchmarks|scripts|model)/[\w/.-]*\w\.\w+)", text):
        assert (ROOT / name).is_file() or name in EXAMPLES, f"{page.name}: {name}"
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)|`make ([a-z-]+)", text, re.MULTILINE):
        assert re.search(rf"^{''.join(target)}:", makefile, re.MULTILINE), f"{page.name}: make {''.join(target)}"


def test_the_readme_is_for_the_first_hour():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    """The pages that are generated from the rules, in a new process because Snakemake changes global state."""
    code = "import json; from scripts.workflow.rules_reference import generated; print(json.dumps(generated()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("page", ["docs/rules.md", "scripts/README.md"])
def test_generated_pages_are_up_to_date(generated, page):
    assert generated[page] == (ROOT / page).read_text(), "run `make docs`"


def test_every_program_is_listed_once_or_more():
    listed = set(re.findall(r"^\| \[([\w/]+)\]", (ROOT / "scripts/README.md").read_text(), re.MULTILINE))
    programs = {path.relative_to(ROOT / "scripts").with_suffix("") for path in (ROOT / "scripts").glob("*.py")}
    assert listed >= {str(program) for program in programs} - {"__init__"}


def test_the_list_of_programs_has_the_first_sentence_of_each(tmp_path):
    (tmp_path / "program.py").write_text('"""Count\nthe words. Then stop.\n\nAnd more.\n"""\n')
    assert first_sentence(tmp_path / "program.py") == "Count the words"


def words_of_the_glossary() -> list[tuple[str, str]]:
    """Every row of the glossary's tables: its word, and the last cell."""
    rows = re.findall(r"^\| (.*) \|$", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    cells = [re.split(r"(?<!\\) \| ", row) for row in rows]
    return [(row[0], row[-1]) for row in cells if row[0] != "word"]


@pytest.mark.parametrize(("word", "where"), words_of_the_glossary())
def test_what_the_glossary_defines_is_in_the_code(word, where):
    names = re.findall(r"`([^`]+)`", where)
    assert names, f"{word}: nothing in the last column"
    code = "".join(path.read_text() for folder in ("scripts", "model") for path in (ROOT / folder).rglob("*.py"))
    for name in names:
        defined = rf"^ *(?:class|def) {name}\b|^ *{name}(?:: .*)? = "
        assert (ROOT / name).is_file() if "/" in name else re.search(defined, code, re.MULTILINE), f"{word}: {name}"


def test_the_reference_of_rules_has_every_rule():
    written = set(re.findall(r"^### `(\w+)`", (ROOT / "docs/rules.md").read_text(), re.MULTILINE))
    files = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    assert written == set(re.findall(r"^rule (\w+):", files, re.MULTILINE)) | {
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


def reasons_of_own_data() -> set[str]:
    """Every reason for which rows of own data are dropped or noted, where the code has it as a text."""
    adapters = ROOT / "scripts/adapters"
    paths = [
        *(adapters / "own").glob("*.py"),
        *(adapters / f"{name}.py" for name in ("custom", "base", "image_lookup")),
    ]
    calls = [node for path in paths for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    made = [call.args[0] for call in calls if ast.unparse(call.func) in ("RowError", "Note", "Broken") and call.args]
    return {reason.value for reason in made if isinstance(reason, ast.Constant)}


def test_every_reason_of_own_data_is_explained():
    described = (ROOT / "docs/records.md").read_text()
    found = {reason for reason in reasons_of_own_data() if not reason.startswith("ignored:")}
    assert len(found) > 30
    assert not {reason for reason in found if f"`{reason}`" not in described}
    assert HINTS.keys() <= found | {"unreadable_image"}


def test_every_message_that_is_explained_exists():
    texts = list(messages())
    ours, snakemakes = (ROOT / "docs/troubleshooting.md").read_text().split("## From Snakemake")
    quoted = re.findall(r"^\| `(.*?)` \|", ours, re.MULTILINE)
    assert len(quoted) > 30
    missing = [quote for quote in quoted if not any(quote in text for text in texts)]
    assert not missing
    assert all(hasattr(snakemake.exceptions, name) for name in re.findall(r"^\| `(\w+)` \|", snakemakes, re.MULTILINE))


def test_examples_of_configuration_are_valid():
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/extending.md").read_text(), re.MULTILINE | re.DOTALL)
    (source,), (dataset,) = map(yaml.safe_load, blocks)
    Source.model_validate(source)
    Dataset.model_validate(dataset)
    for page, default in (("README.md", "recipes/own-data.yaml"), ("docs/blends.md", "config.yaml")):
        config = yaml.safe_load((ROOT / default).read_text())
        for block in re.findall(r"^```yaml\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
            for section, entries in yaml.safe_load(block).items():
                config[section] = config.get(section, {}) | entries
        if "llama" in str(config["blends"]):
            config["tokens"]["llama"] = config["tokens"]["miniature"]
        settings.load(config)
