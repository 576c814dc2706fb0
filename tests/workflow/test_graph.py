"""The whole graph, built for real: every promised file is there and says what it should."""

import csv
import json
import subprocess
import sys

import webdataset

from tests.workflow.project import ROOT, Project


def test_every_promised_file_is_there(finished):
    root = finished.folder / "out"
    promised = """
        raw/coco/source.json validated/source/coco.json validated/llava.json split/heldout.parquet
        media/coco/coco-00000-of-00002.tar media/coco/coco-00001-of-00002.tar.idx
        media/coco/index.parquet media/coco/manifest.json
        records/llava.parquet records/llava.report.json tokens/words/llava.parquet
        plan/mixed/epoch-000.parquet plan/mixed/heldout.parquet
        blend/mixed/epoch-000/train-00000-of-00002.tar blend/mixed/epoch-000/train-00001-of-00002.tar.idx
        blend/mixed/epoch-000/units.idx pixels/miniature/coco-00001-of-00002.u8
        pixels/miniature/coco-00001-of-00002.sums
        features/miniature/layer-1-drop-fp32/coco-00001-of-00002.bf16
        blend/mixed/epoch-000/manifest.json blend/mixed/heldout/manifest.json blend/mixed/preview.html
        models/small/config.json train/first/finished.json
        exported/first/final/model.safetensors exported/first/best/config.json
        evaluate/first/metrics.json evaluate/first/heldout/final.jsonl evaluate/first/dialogues/final.csv
        train/first/lock.json graph.json report.html
    """
    missing = [name for name in promised.split() if not (root / name).is_file()]
    assert not missing


def test_the_csv_has_the_originals_columns(finished):
    with open(finished.folder / "out/evaluate/first/dialogues/final.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["test_name", "image_path", "question", "answer"] and len(rows) > 1


def test_stock_webdataset_reads_blend_and_media_shards(finished):
    root = finished.folder / "out"
    for pattern in (
        "blend/mixed/epoch-000/train-{00000..00001}-of-00002.tar",
        "media/coco/coco-{00000..00001}-of-00002.tar",
    ):
        samples = list(webdataset.WebDataset(str(root / pattern), shardshuffle=False))
        assert samples and all(sample["__key__"] for sample in samples)


def test_no_manifest_names_an_absolute_path(finished):
    for path in (finished.folder / "out").rglob("*.json"):
        assert str(finished.folder.parent) not in path.read_text(errors="replace"), path


def test_two_clean_builds_give_the_same_bytes(finished, tmp_path):
    again = Project.create(tmp_path / "again")
    again.snakemake("data", "out/models/small/manifest.json", "out/train/first/lock.json")
    for pattern in ("media/**/*", "records/*", "tokens/**/*", "plan/**/*", "blend/**/*", "bases/**/*", "models/**/*"):
        assert finished.hashes(pattern) == again.hashes(pattern), pattern
    assert any(name.endswith(".tar") for name in again.hashes("blend/**/*"))
    # Trained, exported and evaluated again as well: the lock file is the same, environment included.
    assert finished.hashes("train/first/lock.json") == again.hashes("train/first/lock.json") != {}


def test_the_report_draws_the_graph_that_was_built(finished):
    graph = json.loads((finished.folder / "out/graph.json").read_text())
    assert graph["command"].startswith("snakemake --configfile tiny.yaml --cores 2")
    rules = graph["rules"]
    assert rules["train_run"]["jobs"] == 2 and "all" not in rules
    assert {"blend_manifest", "make_model", "preprocess_images", "encode_images"} <= set(rules["train_run"]["reads"])
    assert rules["plan"]["program"] == "plan" and rules["plan"]["stage"] == "blends"
    assert ">validate dataset</text>" in (finished.folder / "out/report.html").read_text()


def test_snakemakes_own_report_holds_what_is_marked_for_it(finished):
    finished.snakemake("--report", "archive.html")
    text = (finished.folder / "archive.html").read_text(encoding="utf-8", errors="replace")
    for name in ("report.html", "preview.html", "metrics.json", "lock.json", "llava.report.json"):
        assert name in text
    assert "VisualChat turns raw vision-language datasets" in text and "ten conversations" in text


def test_the_graph_passes_snakemakes_lint():
    command = [sys.executable, "-m", "snakemake", "--lint", "--configfile", "config.yaml"]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_runs_from_another_directory(tmp_path):
    project = Project.create(tmp_path / "project")
    (tmp_path / "elsewhere").mkdir()
    target = "out/records/llava.report.json"
    project.snakemake("--directory", str(tmp_path / "elsewhere"), target)
    report = json.loads((tmp_path / "elsewhere" / target).read_text())
    assert report["kept"] > 0
