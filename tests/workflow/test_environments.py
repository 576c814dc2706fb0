"""The conda environments and the pinned requirements say the same, and cover what the code imports."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = sorted((ROOT / "envs").glob("*.yaml"))


def _pins(path: Path) -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in path.read_text().splitlines()]
    return {_name(line.split("==")[0]): line.split("==")[1] for line in lines if line}


def _name(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


PINS = _pins(ROOT / "envs/requirements.txt") | _pins(ROOT / "envs/requirements-torch.txt")


@pytest.mark.parametrize("path", ENVIRONMENTS, ids=lambda p: p.stem)
def test_every_package_of_an_environment_is_pinned_alike(path):
    packages = next(part["pip"] for part in yaml.safe_load(path.read_text())["dependencies"] if isinstance(part, dict))
    for package in packages:
        name, version = package.split("==")
        assert PINS[_name(name)] == version, f"{path.name}: {name}"


def test_every_environment_is_named_by_a_rule_and_every_rule_names_one():
    used = set()
    for file in (ROOT / "rules").glob("*.smk"):
        text = file.read_text()
        used |= set(re.findall(r'conda:\s+"\.\./envs/([a-z]+)\.yaml"', text))
        counts = [len(re.findall(rf"^\s+{directive}:$", text, re.M)) for directive in ("shell", "conda", "log")]
        assert len(set(counts)) == 1, file.name
    assert used == {path.stem for path in ENVIRONMENTS}


def test_no_cuda_package_is_pinned():
    assert not [name for name in PINS if name.startswith(("nvidia", "triton"))]
