"""Change one thing: exactly what depends on it is made again, and nothing else."""

import copy
import hashlib
import json
import shutil
import tarfile

import pytest
from PIL import Image

from scripts.common.files import file_sha256, read_table
from scripts.config.holdout import HoldoutConfig
from scripts.holdout import is_held_out
from tests.synthetic_data import make_synthetic_data
from tests.workflow.project import TINY, Project

AFTER_TRAINING = {"export": 1, "evaluate_run": 1, "lock": 1, "report_page": 1}
RUN = {"train_run": 1, **AFTER_TRAINING}
RUNS = {"train_run": 2, "export": 2, "evaluate_run": 2, "lock": 2, "report_page": 1}
MIXED = {"plan": 2, "blend": 3, "blend_manifest": 2, "preview": 1, **RUN}
PLAIN = {"plan": 2, "blend": 2, "blend_manifest": 2, "preview": 1, **RUN}
BLENDS = {"plan": 4, "blend": 5, "blend_manifest": 4, "preview": 2}


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
    ("place", "value", "jobs"),
    [
        (("evaluate", "max_new_tokens"), 4, {"evaluate_run": 2, "lock": 2, "report_page": 1}),
        (("runs", "first", "learning_rate"), 5e-4, RUN),
        # A mix, its seed, and what packs are like.
        (("blends", "mixed", "datasets", "coco_caption"), {"samples": 12}, MIXED),
        (("blends", "mixed", "datasets", "llava_otter_blend"), {"samples": 10, "conversations": 1}, MIXED),
        (("blends", "mixed", "seed"), 9, MIXED),
        (("blends", "plain", "max_images_per_pack"), 9, PLAIN),
        # Follow-ups are counted apart, for the datasets they are taken from.
        (
            ("blends", "mixed", "datasets", "llava_otter_blend"),
            {"samples": 10, "followup": False},
            {"count_tokens": 2, **MIXED},
        ),
        # How shards are stored changes no plan; shards of another number are others.
        (("blends", "plain", "images"), "embedded", {"blend": 2, "blend_manifest": 2, "preview": 1, **RUN}),
        (("blends", "mixed", "shards"), 3, {"blend": 3, "blend_manifest": 1, "preview": 1, **RUN}),
        # An epoch more for one run: one plan, its two shards, and that run.
        (("runs", "first", "epochs"), 2, {"plan": 1, "blend": 2, "blend_manifest": 1, **RUN}),
        # A tokenizer: all counts and what is made of them, and the models; no image is touched.
        (
            ("pretrain", "tokenizer", "vocabulary"),
            430,
            {"pretrain_tokenizer": 1, "pretrain_language": 1, "count_tokens": 5, **BLENDS, "make_model": 1, **RUNS},
        ),
        (("tokens", "words", "template"), {"system": "Look."}, {"count_tokens": 5, **BLENDS, "make_model": 1, **RUNS}),
        # A processor: the crops, the features and the models; no plan and no shard.
        (
            ("pretrain", "vision"),
            {"image_size": 48, "patch_size": 24, "scenes": 50, "steps": 5},
            {"pretrain_vision": 1, "preprocess_images": 2, "encode_images": 2, "make_model": 1, **RUNS},
        ),
        # Another layer: other features. Another projector: the same.
        (("models", "small", "vision_layer"), -2, {"encode_images": 2, "make_model": 1, **RUNS}),
        (("runs", "first", "features"), False, RUN),
        (("runs", "first", "pixels"), True, {"encode_images": 2, **RUN}),
        # It has preprocessed images, so the features that both read are computed from these.
        (("runs", "second", "features"), True, {"encode_images": 2, **RUNS}),
        (
            ("models", "small", "projector"),
            "mlp",
            {"make_model": 1, **RUNS},
        ),
        (("evaluate", "confidence"), 0.95, {}),
        # How the work is divided, and what else is kept of a run.
        (("runs", "first", "ranks"), 2, {}),
        (("runs", "first", "micro_batch"), 2, {}),
        (("runs", "second", "keep_checkpoints"), 3, {}),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_a_setting_reruns_exactly_what_reads_it(scratch, place, value, jobs):
    scratch.configure(_changed(place, value))
    assert scratch.jobs() == jobs


def test_an_epoch_more_for_one_run_rebuilds_nothing_of_another_on_the_same_blend(scratch):
    config = copy.deepcopy(TINY)
    config["runs"]["first"]["epochs"] = 2
    config["runs"]["second"] |= {"blend": "mixed"}
    scratch.configure(config)
    scratch.snakemake("data")
    config["runs"]["second"]["epochs"] = 3
    scratch.configure(config)
    before = scratch.hashes("blend/mixed/**/*")
    scratch.snakemake("data")
    after = scratch.hashes("blend/mixed/**/*")
    added = {name for name in after if name not in before}
    assert added and all(name.startswith("blend/mixed/epoch-002/") for name in added)
    assert {name: after[name] for name in before} == before
    planned = scratch.snakemake("-n", "-p", "out/train/first/finished.json", "--rerun-triggers", "mtime", "input")
    assert "epoch-002" not in planned


def test_an_adapters_code_counts_and_its_comments_do_not(scratch):
    adapter = scratch.folder / "scripts/adapters/coco_caption.py"
    source = adapter.read_text()
    adapter.write_text(source + "\n# a remark\n")
    assert scratch.jobs() == {}
    adapter.write_text(source + "\nUNUSED = 1\n")
    assert scratch.jobs() == {"validate_dataset": 1, "convert": 1, "count_tokens": 1, **MIXED}


@pytest.mark.parametrize(
    ("module", "old", "new", "jobs"),
    [
        # What shows progress, ends a program or moves bytes cannot change a result.
        ("scripts/common/progress.py", "_LOG_EVERY_SECONDS = 0.2, 10.0", "_LOG_EVERY_SECONDS = 0.2, 20.0", {}),
        ("scripts/common/errors.py", "return 130", "return 131", {}),
        (
            "scripts/common/files.py",
            "            yield file\n",
            "            yield file\n            file.flush()\n",
            {},
        ),
        # A definition that none of the steps reaches.
        ("scripts/common/files.py", "def text_sha256", "def unused():\n    return 1\n\n\ndef text_sha256", {}),
        # A definition of a shared module: the steps that reach it.
        (
            "scripts/media/pixel_store.py",
            "_VERSION = ",
            "_VERSION = 100 + ",
            {"preprocess_images": 2, "encode_images": 2, **RUNS},
        ),
    ],
    ids=["progress", "errors", "atomic", "unused", "pixels"],
)
def test_code_counts_where_it_is_reached(scratch, module, old, new, jobs):
    path = scratch.folder / module
    source = path.read_text()
    assert old in source
    path.write_text(source.replace(old, new, 1))
    assert scratch.jobs() == jobs


def test_jobs_behind_files_that_came_out_the_same_do_not_run(scratch):
    program = scratch.folder / "scripts/shard.py"
    program.write_text(program.read_text() + "\nUNUSED = 1\n")
    # The lock file names the code.
    assert scratch.run_jobs() == {"shard": 2, "lock": 2, "report_page": 1}
    assert scratch.jobs() == {}
    # A job that was asked for runs, also behind such a step.
    assert scratch.run_jobs("--forcerun", "shard", "holdout") == {"shard": 2, "holdout": 1}


def test_an_entry_of_tokens_may_be_renamed(scratch):
    config = json.loads(json.dumps(TINY).replace('"words"', '"renamed"'))
    scratch.configure(config)
    before = scratch.hashes("blend/**/*")
    # The tables have other places, and the plans other inputs; nothing else differs.
    assert scratch.run_jobs() == {"count_tokens": 5, "plan": 4, "lock": 2, "report_page": 1}
    assert scratch.hashes("blend/**/*") == before
    assert scratch.jobs() == {}


def test_a_copied_folder_and_touched_files_are_no_reason(scratch, tmp_path):
    for name in (
        "records/llava.parquet",
        "media/coco/coco-00000-of-00002.tar",
        "bases/miniature/tokenizer/manifest.json",
    ):
        (scratch.folder / "out" / name).touch()
    assert scratch.jobs() == {}
    other = Project.create(tmp_path / "other")
    # Without times, and without what Snakemake knows of the jobs.
    shutil.copytree(scratch.folder / "out", other.folder / "out", symlinks=True, copy_function=shutil.copyfile)
    assert other.jobs() == {}
    # Another setting is a reason, also where Snakemake has no record of the jobs.
    other.configure(_changed(("evaluate", "max_new_tokens"), 4))
    assert other.jobs() == {"evaluate_run": 2, "lock": 2, "report_page": 1}
    other.configure(TINY)
    # Another content is a reason.
    report = other.folder / "out/records/llava.report.json"
    report.write_text(report.read_text().replace("kept", "kepT", 1))
    assert other.jobs().get("count_tokens") == 1


def test_a_tokenizer_and_bases_that_were_replaced_are_a_reason(scratch, tmp_path):
    folders = {kind: tmp_path / "bases" / kind for kind in ("tokenizer", "vision", "language")}
    for kind, folder in folders.items():
        shutil.copytree(scratch.folder / "out/bases/miniature" / kind, folder)
    config = copy.deepcopy(TINY)
    config["tokens"]["words"]["tokenizer"] = str(folders["tokenizer"])
    config["models"]["small"] |= {kind: str(folders[kind]) for kind in ("vision", "language")}
    scratch.configure(config)
    scratch.snakemake("out/models/small/manifest.json", "out/tokens/words/llava.json")
    targets = ("out/models/small/manifest.json", "out/tokens/words/llava.json")
    assert scratch.jobs(*targets) == {}
    for file in folders["vision"].iterdir():
        file.touch()
    assert scratch.jobs(*targets) == {}
    settings = folders["language"] / "config.json"
    settings.write_text(settings.read_text() + " ")
    assert scratch.jobs(*targets) == {"make_model": 1}
    tokenizer = folders["tokenizer"] / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert scratch.jobs(*targets) == {"count_tokens": 1, "make_model": 1}


def test_a_root_refuses_another_configuration(scratch):
    scratch.configure(TINY | {"name": "other"})
    output = scratch.snakemake("-n", check=False)
    assert "holds the results of the configuration 'tiny', not of 'other'" in output


OWN = copy.deepcopy(TINY) | {"data_path": "data", "runs": {}, "suites": {}, "models": {}}
OWN["blends"] = {
    "captions": TINY["blends"]["plain"] | {"datasets": {"coco_caption": {}}},
    "talk": TINY["blends"]["plain"] | {"datasets": {"llava": {}}, "images": "embedded"},
}


@pytest.fixture(scope="module")
def of_a_user(tmp_path_factory):
    """The data of a user's own files, built."""
    project = Project.create(tmp_path_factory.mktemp("user") / "project", OWN)
    world = make_synthetic_data(tmp_path_factory.mktemp("world"), images=60)
    (world / "miniature.json").unlink()
    shutil.copytree(world, project.folder / "data")
    project.snakemake("data")
    return project


ONE_BLEND = {"plan": 2, "blend": 2, "blend_manifest": 2, "preview": 1}
TWO_BLENDS = {"plan": 4, "blend": 4, "blend_manifest": 4, "preview": 2}


@pytest.mark.parametrize(
    ("file", "jobs"),
    [
        (
            "coco_caption/dataset.json",
            {"fetch": 1, "validate_source": 1, "validate_dataset": 1, "convert": 1, "count_tokens": 1, **ONE_BLEND},
        ),
        (
            "coco/train2017",
            {
                "fetch": 1,
                "validate_source": 1,
                "validate_dataset": 2,
                "shard": 2,
                "media_index": 1,
                "holdout": 1,
                "convert": 2,
                "count_tokens": 2,
                **TWO_BLENDS,
            },
        ),
    ],
    ids=["captions", "image"],
)
def test_an_edited_file_reruns_exactly_what_reads_it(of_a_user, tmp_path, file, jobs):
    shutil.copytree(of_a_user.folder, tmp_path / "project", symlinks=True)
    project = Project(tmp_path / "project")
    assert project.jobs("data") == {}
    place = project.folder / "data" / file
    for each in [place, *(place.iterdir() if place.is_dir() else ())]:
        each.touch()
    assert project.jobs("data") == {}, "files that were only touched"
    if place.is_dir():
        Image.new("RGB", (40, 30), "red").save(next(place.iterdir()))
    else:
        place.write_text(place.read_text().replace(" a ", " one ", 1))
    assert project.jobs("data") == jobs


def test_edits_that_leave_all_counts_as_they_were_reach_every_step(of_a_user, tmp_path):
    shutil.copytree(of_a_user.folder, tmp_path / "project", symlinks=True)
    project = Project(tmp_path / "project")
    captions = project.folder / "data/coco_caption/dataset.json"
    captions.write_text(captions.read_text().replace(" a ", " A "))
    before = project.hashes("records/coco_caption.parquet")
    assert project.run_jobs("data")["convert"] == 1
    assert project.hashes("records/coco_caption.parquet") != before

    # An image that is not held out, before and after: the plan stays as it is.
    index = read_table(project.folder / "out/media/coco/index.parquet", columns=["key", "sha256"]).to_pylist()
    with tarfile.open(project.folder / "out/blend/talk/epoch-000/train-00000-of-00001.tar") as tar:
        embedded = {hashlib.sha256(tar.extractfile(member).read()).hexdigest() for member in tar}
    shown = next(row["key"] for row in index if row["sha256"] in embedded)
    (image,) = [path for path in (project.folder / "data/coco/train2017").iterdir() if path.stem in shown]
    settings = HoldoutConfig(**OWN["holdout"])
    with Image.open(image) as opened:
        pixels = opened.convert("RGB")
    for red in range(256):
        pixels.putpixel((0, 0), (red, 0, 0))
        pixels.save(image)
        if file_sha256(image) not in embedded and not is_held_out(file_sha256(image), settings):
            break
    assert "blend" in project.run_jobs("data")
    with tarfile.open(project.folder / "out/blend/talk/epoch-000/train-00000-of-00001.tar") as tar:
        assert image.read_bytes() in [tar.extractfile(member).read() for member in tar]
