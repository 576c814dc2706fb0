"""Change one thing: exactly what depends on it is made again, and nothing else."""

import copy

import pytest

from tests.workflow.project import TINY

AFTER_TRAINING = {"export": 1, "evaluate_run": 1, "report_page": 1}
RUN = {"train_run": 1, **AFTER_TRAINING}
MIXED = {"plan": 2, "blend_mixed_epoch_000": 1, "blend_mixed_heldout": 1, "preview": 1, **RUN}


def _changed(place, value):
    config = copy.deepcopy(TINY)
    inner = config
    for key in place[:-1]:
        inner = inner.setdefault(key, {})
    inner[place[-1]] = value
    return config


def test_a_second_run_has_nothing_to_do(finished):
    assert finished.jobs() == {}


@pytest.mark.parametrize(
    "place, value, jobs",
    [
        (("evaluate", "max_new_tokens"), 4, {"evaluate_run": 2, "report_page": 1}),
        (("runs", "first", "learning_rate"), 5e-4, RUN),
        (("blends", "mixed", "datasets", "coco_caption"), {"samples": 12}, MIXED),
        (("blends", "mixed", "datasets", "llava_otter_blend"), {"samples": 10, "followup": False}, MIXED),
        (("blends", "mixed", "seed"), 9, MIXED),
        (
            ("blends", "plain", "images"),
            "embedded",
            {"blend_plain_epoch_000": 1, "blend_plain_heldout": 1, "preview": 1, **RUN},
        ),
        (
            ("models", "small", "projector"),
            "mlp",
            {"make_model": 1, "train_run": 2, "export": 2, "evaluate_run": 2, "report_page": 1},
        ),
        (("evaluate", "confidence"), 0.95, {}),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_a_setting_reruns_exactly_what_reads_it(scratch, place, value, jobs):
    scratch.configure(_changed(place, value))
    assert scratch.jobs() == jobs


def test_an_adapters_code_counts_and_its_comments_do_not(scratch):
    adapter = scratch.folder / "scripts/adapters/coco_caption.py"
    source = adapter.read_text()
    adapter.write_text(source + "\n# a remark\n")
    assert scratch.jobs() == {}
    adapter.write_text(source + "\nUNUSED = 1\n")
    jobs = scratch.jobs()
    assert {"validate_dataset", "convert", "count_tokens"} <= set(jobs)
    assert all(jobs[rule] == 1 for rule in ("validate_dataset", "convert", "count_tokens"))
    assert jobs == {"validate_dataset": 1, "convert": 1, "count_tokens": 1, **MIXED}


def test_a_root_refuses_another_configuration(scratch):
    scratch.configure(TINY | {"name": "other"})
    output = scratch.snakemake("-n", check=False)
    assert "holds the results of the configuration 'tiny', not of 'other'" in output
