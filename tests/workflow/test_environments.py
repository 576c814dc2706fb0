"""Dependencies: imports are declared, nothing is declared that is never imported, and all lists agree on versions."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DECLARED = {
    "run": PROJECT["project"]["dependencies"],
    "test": PROJECT["dependency-groups"]["test"],
    "gpu": PROJECT["dependency-groups"]["gpu"],
    "lint": PROJECT["dependency-groups"]["lint"],
}
LOCKED = {
    "run": ("requirements.txt", "requirements-torch.txt"),
    "test": ("requirements-test.txt",),
    "gpu": ("requirements-gpu.txt",),
    "lint": ("requirements-lint.txt",),
}
# Declared and used without an import.
NOT_IMPORTED = {
    "python-multipart": "starlette reads uploads with it",
    "tensorboard": "torch.utils.tensorboard writes with it",
    "snakemake": "its command line runs the rules",
}
# Comes with torch's builds for GPUs, whose release it must fit; declared for the tests, which need it with every build.
WITH_TORCH = {"triton"}
# Imported only where a person has installed them, or part of a package that is declared.
OPTIONAL = {
    "bitsandbytes",
    "liger_kernel",
    "lmms_eval",
    "wandb",
    "trackio",
    "datasets",
    "trl",
    "tests",
    "benchmarks",
    "model",
    "scripts",
    "snakemake_logger_plugin_visualchat",
}


def _name(requirement: str) -> str:
    """The normalised name of the package that a requirement asks for."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\s=<>~!;\[]", requirement, maxsplit=1)[0]).lower()


def _pins(path: Path) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return {_name(line): line.partition(";")[0].strip().split("==")[1] for line in lines if line}


PINS = {
    kind: {k: v for name in names for k, v in _pins(ROOT / "envs" / name).items()} for kind, names in LOCKED.items()
}


@cache
def _distributions() -> dict[str, list[str]]:
    """The installed packages that bring each module."""
    return dict(metadata.packages_distributions())


def _packages(nodes: Iterable[ast.AST]) -> set[str]:
    """The packages that import statements name, without the standard library and ours."""
    distributions = _distributions()
    found = set()
    for node in nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        for module in {name.split(".")[0] for name in names} - OPTIONAL - sys.stdlib_module_names:
            found.add(_name(distributions.get(module, [module])[0]))
    return found


def _imported(paths: Iterable[Path]) -> set[str]:
    """The packages that Python files import."""
    return set().union(*(_packages(ast.walk(ast.parse(path.read_text()))) for path in paths))


def _below(*folders: str) -> list[Path]:
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def test_every_import_is_declared_and_nothing_else_is():
    product = _imported(_below("scripts", "model", "snakemake_logger_plugin_visualchat"))
    declared = {_name(requirement) for requirement in DECLARED["run"]}
    assert product - declared - WITH_TORCH == set(), "imported, but not declared in pyproject.toml"
    assert declared - product == NOT_IMPORTED.keys() - product, "declared in pyproject.toml, but not imported"
    tests = _imported(_below("tests", "benchmarks"))
    for_tests = {_name(requirement) for requirement in DECLARED["test"]}
    assert tests - declared - for_tests == set(), "imported by tests, but not declared"
    assert for_tests - tests <= {"playwright", "pytest-xdist"}, "declared for tests, but not imported"


def test_every_declared_package_has_a_reason():
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'^  "([a-zA-Z0-9_-]+)[<>=~][^"]*",(.*)$', text, re.MULTILINE)
    assert len(listed) == sum(map(len, DECLARED.values()))
    assert not [name for name, comment in listed if not comment.strip().startswith("# ")]


@pytest.mark.parametrize("kind", DECLARED)
def test_what_is_declared_is_locked(kind):
    """`make lock` was run after the last change of pyproject.toml."""
    assert {_name(requirement) for requirement in DECLARED[kind]} <= PINS[kind].keys()


def test_the_locked_lists_agree():
    for kind in ("test", "lint"):
        shared = PINS[kind].keys() & PINS["run"].keys()
        assert {name: PINS[kind][name] for name in shared} == {name: PINS["run"][name] for name in shared}


def test_the_packages_for_the_check_of_a_gpu_are_pinned_alike_and_no_torch_is_among_them():
    pins = _pins(ROOT / "envs/requirements-gpu-check.txt")
    everywhere = PINS["run"] | PINS["test"]
    assert pins == {name: everywhere[name] for name in pins}
    assert not pins.keys() & {"torch", "triton", "pyarrow", "pandas", "tensorboard"}, "too large, or the machine's own"


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda p: p.stem)
def test_every_package_of_a_conda_environment_is_pinned_alike(path):
    packages = next(part["pip"] for part in yaml.safe_load(path.read_text())["dependencies"] if isinstance(part, dict))
    for package in packages:
        assert PINS["run"][_name(package)] == package.split("==")[1], f"{path.name}: {package}"


def test_every_environment_is_named_by_a_rule_and_every_rule_names_one():
    used = set()
    for file in (ROOT / "rules").glob("*.smk"):
        text = file.read_text()
        used |= set(re.findall(r'conda:\s+"\.\./envs/([a-z]+)\.yaml"', text))
        counts = [len(re.findall(rf"^\s+{directive}:$", text, re.MULTILINE)) for directive in ("shell", "conda", "log")]
        assert len(set(counts)) == 1, file.name
    assert used == {path.stem for path in ENVIRONMENTS}


def _programs_of_environments() -> dict[str, set[str]]:
    """The modules whose code the rules of each conda environment run."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "rules").glob("*.smk"):
        for rule in re.split(r"^rule ", file.read_text(), flags=re.MULTILINE)[1:]:
            for environment in re.findall(r'conda:\s+"\.\./envs/([a-z]+)\.yaml"', rule):
                found.setdefault(environment, set()).update(re.findall(r"-m (scripts\.[\w.]+)", rule))
    return found


def _loaded(program: str) -> set[str]:
    """The packages that a program needs: all that it imports itself, and what the modules behind it import at once.

    A library half of ours imports in a function what only some programs need.
    """
    packages: set[str] = set()
    seen, pending = set(), [program]
    while pending:
        module = pending.pop()
        if module in seen:
            continue
        seen.add(module)
        path = ROOT / f"{module.replace('.', '/')}.py"
        tree = ast.parse(path.read_text())
        nodes = ast.walk(tree) if module == program else tree.body
        packages |= _packages(nodes := list(nodes))
        inside = [node for node in nodes if isinstance(node, ast.ImportFrom) and not node.level and node.module]
        names = [name for node in inside for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names))]
        pending += [name for name in names if (ROOT / f"{name.replace('.', '/')}.py").is_file()]
    return packages


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda p: p.stem)
def test_a_conda_environment_has_what_its_programs_import(path):
    loaded = set().union(*map(_loaded, _programs_of_environments()[path.stem]))
    packages = next(part["pip"] for part in yaml.safe_load(path.read_text())["dependencies"] if isinstance(part, dict))
    assert loaded - {_name(package) for package in packages} == set()


@pytest.mark.parametrize("kind", PINS)
def test_no_package_of_one_build_of_torch_is_pinned(kind):
    allowed = WITH_TORCH & PINS["test"].keys() if kind == "test" else set()
    assert {name for name in PINS[kind] if name.startswith(("nvidia", "cuda", "triton"))} == allowed


def test_a_package_for_some_machines_is_skipped_on_others():
    """Packages without a build for a machine would end the installation there."""
    lines = [
        line
        for path in (ROOT / "envs").glob("requirements*.txt")
        for line in path.read_text().splitlines()
        if line.startswith("triton")
    ]
    declared = next(requirement for requirement in DECLARED["test"] if requirement.startswith("triton"))
    markers = {line.partition("#")[0].partition(";")[2].strip() for line in [*lines, declared]}
    assert len(lines) == 2 and markers == {"sys_platform == 'linux' and platform_machine == 'x86_64'"}


def test_the_container_recipes_install_the_same_from_what_is_there():
    docker, apptainer = ((ROOT / "envs" / name).read_text() for name in ("Dockerfile", "apptainer.def"))
    installed = [re.findall(r"-r (\S+\.txt)", text) for text in (docker, apptainer)]
    assert installed[0] == installed[1] == ["requirements-torch.txt", "requirements.txt", "requirements-cluster.txt"]
    assert re.search(r"^FROM (.*)$", docker, re.M)[1] == re.search(r"^From: (.*)$", apptainer, re.M)[1]
    packages = [re.search(r"--no-install-recommends ([a-z0-9 -]+)", text)[1].split() for text in (docker, apptainer)]
    assert packages[0] == packages[1]
    copied = re.findall(r"^COPY (.*) \S+$", docker, re.M) + re.findall(r"^    (\S+) /opt/visualchat/$", apptainer, re.M)
    assert len(copied) > 5
    for path in " ".join(copied).split():
        assert (ROOT / path).exists(), path
    # The last user is that of the running container; addresses of package indexes are the builder's to choose.
    assert re.findall(r"^USER (.*)$", docker, re.M)[-1] not in ("root", "0")
    assert "://" not in docker + apptainer
    imported = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert {"scripts", "model"} <= imported <= set(re.findall(r"^    (\w+) /opt", apptainer, re.M))


def test_the_catalog_names_what_the_workflow_can():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    rules = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    deployment = usage["software-stack-deployment"]
    assert deployment["conda"] == ("conda:" in rules) and deployment["apptainer"] == ("container:" in rules)
    assert deployment["report"] == ("report(" in rules)
