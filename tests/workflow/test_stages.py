"""A run that starts from another one: its place in the graph, what makes it again, and what provenance says of it."""

import copy
import json
import re
import shutil

from scripts.common.files import file_sha256, read_json
from scripts.provenance.repair import withdraw
from scripts.provenance.verification import verify_root
from tests.workflow.project import TINY

STAGE = {"model": "small", "blend": "plain", "ranks": 1, "micro_batch": 1}
ALIGN = STAGE | {"train_language": "frozen", "train_embeddings": False, "evaluate": False}
TUNE = STAGE | {"train_language": "lora", "language_lora_rank": 2, "train_projector": False, "train_embeddings": False}
AFTER_TRAINING = {"export": 1, "evaluate_run": 1, "lock": 1, "report_page": 1}


def staged(start: str = "align") -> dict:
    config = copy.deepcopy(TINY)
    config["runs"] = {"tune": TUNE | {"start": start}, "align": ALIGN}
    return config


def test_stages_are_trained_in_order_and_again_only_for_other_weights(scratch):
    root = scratch.folder / "out"
    scratch.configure(staged())
    assert scratch.run_jobs() == {"train_run": 2, **AFTER_TRAINING}
    assert scratch.jobs() == {}
    assert not (root / "exported/align").exists() and not (root / "train/align/lock.json").exists()

    finished = read_json(root / "train/tune/finished.json")
    (stage,) = finished["start"]["stages"]
    align = read_json(root / "train/align/finished.json")
    assert (stage["run"], stage["which"], stage["sha256"]) == ("align", "final", align["final"]["sha256"])
    lock = read_json(root / "train/tune/lock.json")
    assert lock["inputs"]["start"] == finished["start"]["sha256"] and lock["settings"]["start"] == "align"
    taken = f"train/tune/{finished['state']}/start/0.safetensors"
    assert lock["files"][taken]["sha256"] == stage["sha256"]
    assert "train/align/finished.json" in lock["files"]
    result = verify_root(root)
    assert result.differences == [] and not [note for note in result.notes if "align" in note]

    report = (root / "report.html").read_text()
    assert re.search(r'class="stage name run-\d">align</span>\s*<span class="arrow".*?>final, step \d+ &rarr;', report)
    assert re.search(r"starts from</th>\s*<td class=\"value\">align</td>\s*<td class=\"value\">the model</td>", report)

    # Trained again with the same result, the first stage makes nothing else run.
    assert scratch.run_jobs("--forcerun", "out/train/align/finished.json") == {"train_run": 1}

    # What it has taken is found if it is damaged, and taken again without training.
    content = (root / taken).read_bytes()
    (root / taken).unlink()
    (root / taken).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = verify_root(root)
    assert [line.split(":")[0] for line in result.differences] == [str(root / taken)]
    withdraw(root, result.damaged)
    before = scratch.hashes(f"train/tune/{finished['state']}/weights/*")
    assert scratch.run_jobs() == {"train_run": 1}
    assert file_sha256(root / taken) == stage["sha256"]
    assert scratch.hashes(f"train/tune/{finished['state']}/weights/*") == before

    # Its result alone is complete.
    shutil.rmtree(root / "exported/tune")
    moved = (root / "train/align").rename(root / "moved")
    exported = scratch.snakemake("out/exported/tune/final/manifest.json", "--allowed-rules", "export", "-R", "export")
    assert "Exporting tune" in exported
    moved.rename(root / "train/align")
    manifest = read_json(root / "exported/tune/final/manifest.json")
    assert manifest["weights"] == finished["final"]["sha256"]


def test_the_other_weights_of_a_run_are_another_start(scratch):
    root = scratch.folder / "out"
    config = staged("first:final")
    config["runs"] = {"first": TINY["runs"]["first"], "tune": config["runs"]["tune"]}
    scratch.configure(config)
    scratch.snakemake("out/train/tune/finished.json")
    config["runs"]["tune"]["start"] = "first"
    scratch.configure(config)
    assert "is finished already" in scratch.snakemake("out/train/tune/finished.json")
    config["runs"]["tune"]["start"] = "first:best"
    scratch.configure(config)
    first = json.loads((root / "train/first/finished.json").read_text())
    output = scratch.snakemake("out/train/tune/finished.json")
    assert ("is finished already" in output) == (first["final"]["sha256"] == first["best"]["sha256"])
