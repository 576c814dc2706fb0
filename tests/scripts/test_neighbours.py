"""Other tools really read our shards: HF `datasets` and Megatron-Energon, each in an environment of its own.

`make test-all` makes the environments below `.neighbours`; stock `webdataset` is tested with the shards themselves.
"""

import json
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from scripts.common.files import bytes_sha256, read_json
from scripts.inference.blend_reader import BlendReader
from tests.scripts.blending.synthetic_blend import World

pytestmark = pytest.mark.long
ENVIRONMENTS = Path(__file__).resolve().parents[2] / ".neighbours"


def run(neighbour: str, *words: object) -> str:
    program = ENVIRONMENTS / neighbour / "bin" / str(words[0])
    assert program.exists(), f"{program} is missing; `make neighbours` makes it"
    done = subprocess.run([program, *map(str, words[1:])], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    world = World.build(tmp_path_factory.mktemp("world"))
    plan = world.plan(packing=True, sequence=900)
    for form in ("embedded", "referenced"):
        world.blend(plan, world.root / "blend" / form, images=form, shards=2)
    return world


DATASETS = """
import hashlib, json, sys
from datasets import Features, Image, Json, Value, load_dataset
images, streaming, *files = sys.argv[1:]
features = {"__key__": Value("string"), "__url__": Value("string"), "json": Json()}
features |= {f"i{place}.jpg": Image(decode=False) for place in range(int(images))}
found = load_dataset("webdataset", data_files={"train": files}, split="train", features=Features(features),
                     streaming=streaming == "streaming")
def pictures(sample):
    return [sample[name]["bytes"] for name in sorted(sample) if name.endswith(".jpg") and sample[name]]
for sample in found:
    hashes = [hashlib.sha256(data).hexdigest() for data in pictures(sample)]
    print(json.dumps([sample["__key__"], sample["json"], hashes]))
"""


@pytest.mark.parametrize("mode", ["streaming", "table"])
@pytest.mark.parametrize("form", ["embedded", "referenced"])
def test_hf_datasets_reads_blends(world, form, mode, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    folder = world.root / "blend" / form
    shards = [folder / shard["name"] for shard in read_json(folder / "manifest.json")["shards"]]
    output = run("datasets", "python", "-c", DATASETS, 8 if form == "embedded" else 0, mode, *shards)
    samples, reader = [json.loads(line) for line in output.splitlines()], BlendReader(folder, world.root)
    assert len(samples) == len(reader) > 50
    for position, (key, content, hashes) in enumerate(samples):
        expected = reader[position]
        assert key == f"e000-{position:09d}"
        assert (content["uids"], content["messages"]) == (expected.uids, expected.messages)
        assert hashes == (expected.image_sha256 if form == "embedded" else [])


MEDIA = """
import json, sys
from datasets import load_dataset
found = load_dataset("webdataset", data_files={"train": sys.argv[1:]}, split="train", streaming=True)
print(json.dumps({sample["__key__"]: sample["jpg"].size for sample in found}))
"""


def test_hf_datasets_reads_media_without_further_options(world, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    shards = sorted(world.media["coco"].glob("*.tar"))
    sizes = json.loads(run("datasets", "python", "-c", MEDIA, *shards))
    rows = pq.read_table(world.media["coco"] / "index.parquet").to_pylist()
    assert sizes == {row["key"]: [row["width"], row["height"]] for row in rows}


ENERGON = """
import hashlib, json, sys
from megatron.energon import Cooker, DefaultTaskEncoder, Sample, WorkerConfig, basic_sample_keys, edataclass
from megatron.energon import get_loader, get_val_dataset, stateless
@edataclass
class Said(Sample):
    uids: list
    images: list
@stateless
def cook(sample):
    names = sorted(name for name in sample if name.endswith(".jpg"))
    content = sample["json"]
    content = json.loads(content) if isinstance(content, (bytes, str)) else content
    hashes = [hashlib.sha256(sample[name]).hexdigest() if isinstance(sample[name], bytes) else "" for name in names]
    return Said(**basic_sample_keys(sample), uids=content["uids"], images=hashes)
class Task(DefaultTaskEncoder):
    cookers = [Cooker(cook)]
    decoder = None
    def batch(self, samples):
        return samples
worker = WorkerConfig(rank=0, world_size=1, num_workers=0)
data = get_val_dataset(sys.argv[1], split_part="train", batch_size=1, worker_config=worker, task_encoder=Task())
found = [sample for batch in get_loader(data) for sample in batch]
print(json.dumps([[sample.uids, sample.images] for sample in found]))
"""


@pytest.mark.parametrize("form", ["embedded", "referenced"])
def test_energon_prepares_and_reads_blends(world, form, tmp_path):
    folder = tmp_path / "blend"
    shutil.copytree(world.root / "blend" / form, folder)
    before = {path.name: bytes_sha256(path.read_bytes()) for path in folder.glob("train-*")}
    words = ["--non-interactive", "--split-parts", "train:train-.*", "--sample-type", "CrudeWebdataset"]
    run("energon", "energon", "prepare", *words, folder)
    assert {path.name: bytes_sha256(path.read_bytes()) for path in folder.glob("train-*")} == before
    reader = BlendReader(folder, world.root)
    with sqlite3.connect(folder / ".nv-meta/index.sqlite") as index:
        assert index.execute("SELECT count(*) FROM samples").fetchone() == (len(reader),)
    found = json.loads(run("energon", "python", "-c", ENERGON, folder).splitlines()[-1])
    expected = [reader[position] for position in range(len(reader))]
    assert [uids for uids, _ in found] == [sample.uids for sample in expected]
    if form == "embedded":
        assert [hashes for _, hashes in found] == [sample.image_sha256 for sample in expected]


def test_energon_prepares_media(world, tmp_path):
    folder = tmp_path / "coco"
    shutil.copytree(world.media["coco"], folder)
    words = ["--non-interactive", "--split-parts", "train:coco-.*", "--sample-type", "CrudeWebdataset"]
    run("energon", "energon", "prepare", *words, folder)
    with sqlite3.connect(folder / ".nv-meta/index.sqlite") as index:
        found = index.execute("SELECT count(*) FROM samples").fetchone()
    assert found == (pq.read_metadata(folder / "index.parquet").num_rows,)
