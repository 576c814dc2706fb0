"""A decoder's own answers become a dataset of the graph, trained on, held out and made again like any other."""

import json

import pyarrow.parquet as pq
import pytest

from tests.workflow.project import TINY, Project

PROMPTS = [f"How many corners has shape {number}?" for number in range(160)]
# The decoder of a few steps closes an answer only by chance.
REPLAY = {"model": "small", "prompts": "prompts.txt", "temperature": 2.0, "max_new_tokens": 96}


def configuration(**replay):
    blend = {"tokens": "words", "sequence": 512, "global_batch": 4, "packing": True, "shards": 1}
    blend["datasets"] = {"aokvqa": {"samples": 12}, "talk": {"samples": 10}}
    run = {"model": "small", "blend": "mine", "train_language": "full", "ranks": 1, "micro_batch": 4}
    settings = {"replay": {"talk": REPLAY | replay}, "blends": {"mine": blend}, "runs": {"first": run}}
    return TINY | settings | {"suites": {}, "media": {}, "evaluate": {"max_new_tokens": 4}}


@pytest.fixture
def project(tmp_path):
    project = Project.create(tmp_path / "project")
    (project.folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return project


def test_replay_is_made_by_the_decoder_alone_and_read_like_own_data(project):
    project.configure(configuration())
    jobs = project.jobs("data")
    assert jobs["replay"] == 1 and jobs["pretrain_language"] == 1
    only = project.jobs("out/replay/talk/manifest.json")
    assert only.keys() == {"replay", "pretrain_language", "pretrain_tokenizer"}


def test_answers_do_not_depend_on_the_cores_that_snakemake_may_use(project):
    settings = configuration()
    project.configure(settings | {"evaluate": settings["evaluate"] | {"threads": 3}})
    assert "--threads 3 " in project.snakemake("-n", "-p", "out/replay/talk/manifest.json")  # of two cores


def test_questions_of_datasets_are_asked_and_only_these_are_causes(project):
    project.configure(configuration(prompts=None, questions_of=["llava"]))
    jobs = project.jobs("out/replay/talk/manifest.json")
    assert jobs["convert"] == 1 and project.planned("out/replay/talk/manifest.json")["convert"] == {"llava"}
    assert "llava" not in project.planned("out/plan/mine/epoch-000.json")["count_tokens"]


@pytest.mark.long
def test_the_rows_of_replay_are_packed_trained_on_and_held_out(project):
    project.configure(configuration())
    project.snakemake("report")
    root = project.folder / "out"
    rows = [json.loads(line) for line in (root / "replay/talk/rows.jsonl").read_text().splitlines()]
    manifest = json.loads((root / "replay/talk/manifest.json").read_text())
    assert manifest["rows"] == len(rows) > 10
    assert manifest["rows"] + sum(manifest["unanswered"].values()) == len(PROMPTS)
    records = pq.read_table(root / "records/talk.parquet")
    assert records.num_rows == len(rows) and set(records["split"].to_pylist()) == {"train", "heldout"}
    plan = pq.read_table(root / "plan/mine/epoch-000.parquet").to_pylist()
    packs = {}
    for row in plan:
        packs.setdefault(row["pack"], set()).update(uid.split(":")[0] for uid in row["uids"])
    assert {"aokvqa", "talk"} in packs.values()
    assert sum(row["dataset"] == "talk" for row in plan) == 10
    losses = json.loads((root / "evaluate/first/metrics.json").read_text())["checkpoints"]["final"]["heldout"]["loss"]
    assert losses["datasets"]["talk"]["tokens"] > 0
    lock = json.loads((root / "train/first/lock.json").read_text())
    assert "replay/talk/rows.jsonl" in lock["files"] and "scripts.replay" in lock["programs"]
    assert project.jobs("report") == {}

    (project.folder / "prompts.txt").write_text("\n".join(PROMPTS[:150]) + "\n")
    assert project.jobs("report")["replay"] == 1
