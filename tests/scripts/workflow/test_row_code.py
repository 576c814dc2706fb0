"""What edits of the code that reads own data run again: the steps of own data, and none of published datasets."""

import re

import pytest

from scripts.common.fingerprint import code_files, code_fingerprint
from scripts.config import settings
from scripts.config.custom import CustomDatasetConfig
from scripts.config.registry import DATASETS
from scripts.workflow import lock_inputs, row_code
from tests.workflow.project import ROOT, TINY

OWN = "scripts/adapters/own/"
READERS = ("fetch", "validate", "shard", "convert")


@pytest.fixture
def tiny():
    return settings.load(TINY)


def with_own(tiny):
    return tiny.model_copy(update={"custom": {"pets": CustomDatasetConfig(folder="pets")}})


def test_published_datasets_do_not_depend_on_the_code_of_own_data():
    adapters = {f"scripts.adapters.{entry.adapter}" for entry in DATASETS.values() if entry.adapter}
    files = code_files(*(f"scripts.{program}" for program in READERS), *adapters)
    assert not [path for path in files if path.startswith(OWN)]


def test_steps_of_own_data_depend_on_all_code_and_the_table_of_forms(tiny, tmp_path, monkeypatch):
    config = with_own(tiny)
    assert row_code.row_code(config, "coco", "scripts.fetch") == code_fingerprint("scripts.fetch")
    found = row_code.row_code(config, "pets", "scripts.convert", "scripts.adapters.custom")
    files = code_files("scripts.convert", "scripts.adapters.custom", *row_code.OWN_MODULES)
    python = {path.relative_to(ROOT).as_posix() for path in (ROOT / OWN).glob("*.py") if path.name != "__init__.py"}
    assert python <= set(files)
    # Only the forms differ.
    (tmp_path / "forms.yaml").write_text("forms: []\n")
    monkeypatch.setattr(row_code, "FORMS", "*.yaml")
    monkeypatch.setattr("scripts.common.fingerprint.ROOT", tmp_path)
    assert row_code.row_code(config, "pets", "scripts.convert", "scripts.adapters.custom") != found


def test_every_rule_that_reads_rows_has_that_code():
    for file in (ROOT / "rules").glob("*.smk"):
        for rule in re.split(r"^rule ", file.read_text(), flags=re.MULTILINE)[1:]:
            if re.search(rf"-m scripts\.({'|'.join(READERS)}) ", rule):
                assert "code=lambda w: row_code(" in rule, rule.partition(":")[0]


def test_the_lock_of_a_run_on_own_data_covers_that_code(tiny):
    blend = tiny.blends["mixed"]
    own = blend.model_copy(update={"datasets": {"pets": next(iter(blend.datasets.values()))}})
    config = with_own(tiny).model_copy(update={"blends": {"mixed": own}})
    assert set(row_code.OWN_MODULES) <= set(lock_inputs.provenance_programs(config, "first"))
    assert not set(row_code.OWN_MODULES) & set(lock_inputs.provenance_programs(with_own(tiny), "first"))
