"""Blend shards: equal bytes, readable by others, and the same conversations whether images are embedded or referred
to."""

import hashlib
import json
import shutil
import struct
import sys
import tarfile
from itertools import pairwise

import pyarrow.parquet as pq
import pytest
import webdataset
from transformers import AutoTokenizer

from model.template import Template, encode
from scripts import blend_manifest
from scripts.blend import main
from scripts.blend_manifest import write_manifest
from scripts.blending.record_store import RecordStore
from scripts.common.errors import UserError
from scripts.common.files import file_sha256, read_json, write_json
from scripts.inference.blend_reader import BlendReader
from scripts.media.store import MediaStore
from tests.scripts.blending.plan_fixtures import PlanWorkspace, llava, record, turn
from tests.scripts.blending.synthetic_blend import TOKENS, World, write_blend


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.build(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def plan(world):
    return world.plan()


@pytest.fixture(scope="module")
def embedded(world, plan):
    world.blend(plan, world.root / "blend/embedded")
    return world.root / "blend/embedded"


@pytest.fixture(scope="module")
def referenced(world, plan):
    world.blend(plan, world.root / "blend/referenced", images="referenced")
    return world.root / "blend/referenced"


def samples(folder):
    """Every sample as stock webdataset reads it: key and members."""
    found = []
    for shard in read_json(folder / "manifest.json")["shards"]:
        for sample in webdataset.WebDataset(str(folder / shard["name"]), shardshuffle=False, empty_check=False):
            members = {name: data for name, data in sample.items() if not name.startswith("__")}
            found.append((sample["__key__"], members))
    return found


def test_embedded_equals_referenced(world, embedded, referenced):
    pairs = list(zip(samples(embedded), samples(referenced), strict=True))
    assert len(pairs) > 50
    for (key, whole), (same_key, thin) in pairs:
        assert key == same_key
        assert set(thin) == {"json"}
        content, expected = json.loads(thin["json"]), json.loads(whole["json"])
        for place, image in enumerate(content["images"]):
            shard, offset, length = image.pop("ref")
            data = (world.root / shard).read_bytes()[offset : offset + length]
            assert data == whole[f"i{place}.jpg"]
            assert hashlib.sha256(data).hexdigest() == image["sha256"]
        assert content == expected
        assert len(whole) == 1 + len(content["images"])


def test_members_hold_what_the_plan_holds(world, plan, embedded):
    tokenizer = AutoTokenizer.from_pretrained(world.tokenizer)
    rows = pq.read_table(plan).to_pylist()
    reports = [world.root / f"records/{name}.report.json" for name in ("llava", "otter_mimicit_cgd")]
    licences = sorted(read_json(report)["licence"] for report in reports)
    store = MediaStore(world.media)
    forms = set()
    for row, (key, members) in zip(rows, samples(embedded), strict=True):
        content = json.loads(members["json"])
        assert key == f"e000-{row['position']:09d}"
        for name in ("uids", "epoch", "position", "pack", "n_tokens", "n_labels", "form", "dataset"):
            assert content[name] == row[name]
        assert content["v"] == 1
        assert content["datasets"] == [uid.split(":")[0] for uid in row["uids"]]
        if row["dataset"] == "llava_otter_blend":
            assert content["licences"] == licences
        for image, planned in zip(content["images"], row["images"], strict=True):
            found = store.lookup(planned["source"], planned["key"])
            assert image == planned | {"width": found.width, "height": found.height, "sha256": found.sha256}
        encoded = encode(content["messages"], tokenizer, Template(), TOKENS.image_tokens)
        assert len(encoded) == row["n_tokens"]
        forms.add(row["form"])
    assert forms == {"single", "concat", "join"}


def test_two_builds_give_equal_bytes(world, embedded, tmp_path):
    again = world.blend(world.plan(), tmp_path / "again")
    assert again == read_json(embedded / "manifest.json")
    for path in sorted(embedded.glob("*.*")):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_the_manifest_describes_the_shards(plan, embedded):
    manifest = read_json(embedded / "manifest.json")
    planned = read_json(plan.with_suffix(".json"))
    assert [shard["name"] for shard in manifest["shards"]] == [f"train-0000{i}-of-00003.tar" for i in range(3)]
    assert sum(shard["units"] for shard in manifest["shards"]) == manifest["units"] == planned["units"]
    units = [shard["units"] for shard in manifest["shards"]]
    assert max(units) - min(units) <= 1 and units == [shard["conversations"] for shard in manifest["shards"]]
    for shard in manifest["shards"]:
        assert file_sha256(embedded / shard["name"]) == shard["sha256"]
        assert (embedded / shard["name"]).stat().st_size == shard["bytes"]
    assert manifest["plan"] == planned["sha256"]
    assert manifest["n_images"] == planned["images"]
    assert manifest["images"] == "embedded"
    for key in ("blend", "epoch", "tokens_identity", "global_batch", "conversations", "tokens", "labels", "datasets"):
        assert manifest[key] == planned[key]


def test_offsets_are_where_samples_begin(embedded):
    for shard in read_json(embedded / "manifest.json")["shards"]:
        path = embedded / shard["name"]
        offsets = struct.unpack(f"<{shard['units'] + 1}Q", (embedded / f"{shard['name']}.idx").read_bytes())
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        starts = [member.offset for member in members if member.name.endswith(".json")]
        last = members[-1]
        assert list(offsets) == [*starts, last.offset_data + -(-last.size // 512) * 512]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o444)}


def test_the_training_reader_reads_both(world, embedded, referenced):
    whole, thin = BlendReader(embedded, world.root), BlendReader(referenced, world.root)
    assert len(whole) == len(thin) == read_json(embedded / "manifest.json")["units"]
    for unit in range(0, len(whole), 7):
        assert whole[unit] == thin[unit]
        assert whole[unit].position == unit


def test_the_heldout_part_is_one_shard_of_its_own_name(world, tmp_path):
    manifest = world.blend(world.plan(None), tmp_path / "heldout")
    assert [shard["name"] for shard in manifest["shards"]] == ["heldout-00000-of-00001.tar"]
    assert manifest["epoch"] == "heldout"
    assert len(BlendReader(tmp_path / "heldout", world.root)) == manifest["units"] > 0


def test_an_empty_heldout_part_and_more_shards_than_units_can_be_read(tmp_path):
    workspace = PlanWorkspace(tmp_path, [record(f"own:{i}", [], [turn("Hello?", f"Hi {i}.")]) for i in range(2)])
    for epoch, units in ((None, 0), (0, 2)):
        workspace.plan_file({"own": {}}, epoch)
        out = tmp_path / f"blend-{epoch}"
        write_blend(workspace.path(epoch=epoch), tmp_path / "records", {}, out, tmp_path, shards=4)
        reader = BlendReader(out, tmp_path)
        assert len(reader) == len(samples(out)) == units
    assert {reader[unit].messages[1]["content"][0]["text"] for unit in range(2)} == {"Hi 0.", "Hi 1."}


def test_media_outside_of_the_root_cannot_be_referred_to(world, plan, tmp_path):
    with pytest.raises(UserError, match=r"is not below .*: use images: embedded"):
        write_blend(plan, world.root / "records", world.media, tmp_path / "out", tmp_path / "elsewhere")
    assert not list((tmp_path / "out").iterdir())


def test_an_unfinished_rebuild_leaves_no_manifest(world, plan, tmp_path):
    out = tmp_path / "blend"
    world.blend(plan, out)
    with pytest.raises(UserError):
        write_blend(plan, world.root / "records", world.media, out, tmp_path / "elsewhere")
    assert not (out / "manifest.json").exists()


def test_inputs_that_do_not_belong_together_are_refused(world, plan, tmp_path):
    with pytest.raises(UserError, match="counted with the tokens 'tiny', not 'other'"):
        world.blend(plan, tmp_path / "out", tokens="other")
    workspace = PlanWorkspace(tmp_path / "workspace", [llava(0, "a")])
    workspace.plan_file({"llava": {}})
    with pytest.raises(UserError, match=r"llava.parquet has changed since the plan: run count_tokens and plan again"):
        write_blend(workspace.path(), world.root / "records", world.media, tmp_path / "out", tmp_path)
    with pytest.raises(UserError, match=r"names the record llava:1, which .* does not hold: run plan again"):
        RecordStore(workspace.folder / "records", ["llava:0", "llava:1"])
    with pytest.raises(UserError, match="shows the image a of coco"):
        write_blend(workspace.path(), workspace.folder / "records", world.media, tmp_path / "out", tmp_path)
    with pytest.raises(UserError, match="does not exist: run plan first"):
        world.blend(tmp_path / "none.parquet", tmp_path / "out")


def run(monkeypatch, program, **arguments):
    words = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["program", *words])
    program()


def test_the_programs(world, plan, embedded, tmp_path, monkeypatch):
    common = {"plan": plan, "shards": 3, "out": tmp_path / "out"}
    records, media = world.root / "records", f"coco={world.media['coco']}"
    settings = '{"tokens":"tiny","images":"embedded"}'
    for index in range(3):
        run(monkeypatch, main, records=records, media=media, settings=settings, root=world.root, index=index, **common)
    run(monkeypatch, blend_manifest.main, **common)
    assert read_json(tmp_path / "out/manifest.json") == read_json(embedded / "manifest.json")


def test_shards_that_do_not_belong_together_are_not_described(world, plan, embedded, tmp_path):
    out = tmp_path / "blend"
    shutil.copytree(embedded, out)
    other = tmp_path / "other"
    world.blend(plan, other, images="referenced")
    described = out / "parts/train-00001-of-00003.json"
    shutil.copy(other / "parts" / described.name, described)
    with pytest.raises(UserError, match=r"train-00001-of-00003.tar is missing or has another size.*scripts\.verify"):
        write_manifest(plan, 3, out)
    for path in (*other.glob("train-00001*"),):
        shutil.copy(path, out)
    with pytest.raises(UserError, match="holds shards with embedded and with referenced images"):
        write_manifest(plan, 3, out)
    write_json(described, read_json(described) | {"plan": "0" * 64})
    with pytest.raises(UserError, match=r"train-00001-of-00003.tar was built from another plan"):
        write_manifest(plan, 3, out)
    described.unlink()
    with pytest.raises(UserError, match=r"run blend for train-00001-of-00003.tar first"):
        write_manifest(plan, 3, out)


def test_the_content_has_one_hash_however_it_is_stored(world, plan, embedded, referenced, tmp_path):
    fewer = world.blend(plan, tmp_path / "fewer", shards=1)
    manifests = [read_json(folder / "manifest.json") for folder in (embedded, referenced)]
    assert manifests[0]["content"] == manifests[1]["content"] == fewer["content"]
    other = world.blend(world.plan(seed=4), tmp_path / "other", shards=1)
    world.plan()
    assert other["content"] != fewer["content"]


def test_a_pack_lies_in_one_shard_and_is_read_as_a_unit(world, tmp_path):
    plan = world.plan(packing=True, sequence=900)
    manifest = world.blend(plan, tmp_path / "packed", shards=4)
    rows = pq.read_table(plan).to_pylist()
    world.plan()
    reader = BlendReader(tmp_path / "packed", world.root)
    assert reader.units == manifest["units"] < manifest["conversations"] == len(reader) == len(rows)
    found = [[reader[position].uids for position in reader.members(unit)] for unit in range(reader.units)]
    assert found == [[row["uids"] for row in rows if row["pack"] == unit] for unit in range(reader.units)]
    assert [uid for uids in found[3] for uid in uids] == reader.uids(3)
    packs = [[json.loads(m["json"])["pack"] for _, m in members] for members in by_shard(tmp_path / "packed")]
    assert all(set(one).isdisjoint(other) for one, other in pairwise(packs))
    assert [len(set(shard)) for shard in packs] == [shard["units"] for shard in manifest["shards"]]


def by_shard(folder):
    """The samples of every shard."""
    found, place = samples(folder), 0
    for shard in read_json(folder / "manifest.json")["shards"]:
        yield found[place : place + shard["conversations"]]
        place += shard["conversations"]
