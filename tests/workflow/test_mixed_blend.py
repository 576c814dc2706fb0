"""Own data runs alone without the miniature, and several own datasets train and are scored beside a published one."""

import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from tests.workflow.project import ROOT, TINY, Project

IMAGES = sorted((ROOT / "examples/images").iterdir())
TALK = {"folder": "talk", "files": ["rows.jsonl"], "split": {"rows": 0.25}}
PETS = {"folder": "pets", "files": ["rows.jsonl"], "images": "images/", "split": {"files": ["val.jsonl"]}}


def conversation(question, answer, **row):
    return row | {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def configuration(datasets, custom, suites):
    blend = {"tokens": "words", "sequence": 512, "global_batch": 8, "shards": 1, "datasets": datasets}
    run = {"model": "small", "blend": "mine", "train_language": "full", "ranks": 1, "micro_batch": 4}
    return TINY | {
        "custom": custom,
        "blends": {"mine": blend},
        "runs": {"first": run},
        "suites": suites,
        "evaluate": {"max_new_tokens": 4},
        "media": {},
    }


@pytest.fixture
def project(tmp_path):
    project = Project.create(tmp_path / "project")
    write(
        project.folder / "talk/rows.jsonl",
        [
            conversation(f"What is {n} plus {n}, as I learned it in school?", f"It is {2 * n}, as always.")
            for n in range(40)
        ],
    )
    shutil.copytree(ROOT / "examples/images", project.folder / "pets/images")
    asked = [(n, image) for n in range(3) for image in IMAGES]
    write(
        project.folder / "pets/rows.jsonl",
        [conversation(f"<image>\nPicture {n}?", image.stem, image=image.name) for n, image in asked],
    )
    write(
        project.folder / "pets/val.jsonl",
        [conversation("<image>\nWhich one?", image.stem, image=image.name) for image in IMAGES[:2]]
        + [conversation("And without a picture?", "None.")],
    )
    return project


def test_own_data_draws_no_miniature(project):
    project.configure(configuration({"talk": {}, "pets": {}}, {"talk": TALK, "pets": PETS}, {}))
    jobs = project.jobs("evaluate")
    assert "miniature" not in jobs and jobs["fetch"] == 2 and jobs["evaluate_run"] == 1
    project.configure(configuration({"talk": {}}, {"talk": TALK}, {"dialogues": "miniature"}))
    assert project.jobs("evaluate")["miniature"] == 1


@pytest.mark.long
def test_two_own_datasets_and_a_published_one_train_and_are_scored(project):
    datasets = {"talk": {}, "pets": {"repeat": 2}, "llava": {"samples": 40}}
    project.configure(configuration(datasets, {"talk": TALK, "pets": PETS}, {}))
    output = project.snakemake("report", "--logger", "visualchat")
    assert re.search(
        r"^NOTE: pets: \d+ conversations that may be trained on show an image that a held-out row", output, re.M
    )

    root = project.folder / "out"
    trained = pq.read_table(root / "plan/mine/epoch-000.parquet").to_pylist()
    heldout = pq.read_table(root / "plan/mine/heldout.parquet").to_pylist()
    uids = [{uid for row in rows for uid in row["uids"]} for rows in (trained, heldout)]
    assert not uids[0] & uids[1]
    by_name = [{name: sum(uid.startswith(name) for uid in part) for name in datasets} for part in uids]
    assert all(by_name[0].values()) and 3 <= by_name[1]["talk"] <= 20
    assert {uid for uid in uids[1] if "val.jsonl" in uid} == {f"pets:val.jsonl-{n}" for n in range(3)}
    assert not any("val.jsonl" in uid for uid in uids[0])

    metrics = json.loads((root / "evaluate/first/metrics.json").read_text())["checkpoints"]["final"]["heldout"]
    assert metrics["loss"]["datasets"].keys() == set(datasets)
    assert metrics["datasets"].keys() == {"talk", "pets"}
    assert metrics["datasets"]["talk"]["n"] == by_name[1]["talk"] and not metrics["datasets"]["talk"]["closed"]
    assert metrics["datasets"]["pets"]["closed"] and "exact_match" in metrics["datasets"]["pets"]["metrics"]
    kinds = {kind["name"] for kind in metrics["kinds"] if kind["n"]}
    assert "pets" in kinds and "talk" not in kinds and len(kinds) > 2
    page = (root / "report.html").read_text()
    section = page[page.index('id="heldout"') :]
    assert "Which one?" in section and "It is" in section and "data:image/" in section
    assert project.jobs("report") == {}
