"""What makes two runs the same run."""

import json
from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.config.run import RunConfig
from scripts.training import fingerprint
from scripts.training.fingerprint import input_hashes, run_fingerprint
from tests.runs import SETTINGS, TrainingSetup


def test_settings_that_change_numbers_change_the_fingerprint_and_others_do_not(lab: TrainingSetup):
    read = input_hashes(lab.model, lab.blends, lab.heldout)
    base = run_fingerprint(RunConfig(**SETTINGS), read)
    same = {"ranks": 7, "micro_batch": 1, "zero": 0, "workers": 3, "checkpoint_every": 9, "keep_checkpoints": 5}
    same |= {"nodes": 2, "offload": "optimizer", "gradient_checkpointing": 2, "trackers": [], "project": "other"}
    same |= {"early_stopping_patience": 0, "features": False, "pixels": True}
    for key, value in same.items():
        assert run_fingerprint(RunConfig(**SETTINGS | {key: value}), read) == base, key
    other = {"learning_rate": 1e-4, "threads": 2, "seed": 1, "attention": "causal", "epochs": 3, "evaluate_every": 6}
    other |= {"early_stopping_patience": 2, "fused_layers": "liger", "compile": True}
    other |= {"features": True}
    for key, value in other.items():
        assert run_fingerprint(RunConfig(**SETTINGS | {key: value}), read) != base, key
    assert run_fingerprint(RunConfig(**SETTINGS | {"zero": 3, "zero_hpz": 2}), read) == base
    assert run_fingerprint(RunConfig(**SETTINGS), read | {"model": "x"}) != base


def test_settings_that_were_added_leave_earlier_fingerprints_unchanged():
    assert not RunConfig.LATER & RunConfig(**SETTINGS).numbers().keys()
    changed = RunConfig(**SETTINGS | {"compile": True}).numbers()
    assert changed["compile"] is True and "fused_layers" not in changed


def test_a_manifest_counts_by_its_values(tmp_path: Path):
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"a": 1, "b": 2}))
    before = fingerprint.manifest_sha256(tmp_path)
    manifest.write_text(json.dumps({"b": 2, "a": 1}, indent=4))
    assert fingerprint.manifest_sha256(tmp_path) == before
    manifest.write_text(json.dumps({"a": 1, "b": 3}))
    assert fingerprint.manifest_sha256(tmp_path) != before
    manifest.unlink()
    with pytest.raises(UserError, match=r"manifest.json"):
        fingerprint.manifest_sha256(tmp_path)
