"""How fast images reach a training step, beside other loaders: the same images, the same transform, the same batches.

    python -m benchmarks.loader [--images 400] [--samples 50000] [--runs 7] [--folder DIR]

Draws JPEGs of 640 x 428 pixels and stores them in each library's format. Every loader turns them into uint8 batches of
8 crops (short side to 224 pixels, bicubic, centre), in one process; a checksum over all crops must be the same for all.
The loaders alternate, each run in a new process of the library's environment below --folder (made on first use, with
the same Pillow). Timing begins after the imports, where the data are opened.

    ours         our blend shards with embedded images, read as training does
    ours, refs   the same with references into media shards
    ours, store  the same from the pixel store
    folder       a list of files and a map-style Dataset, as in the original
    webdataset   stock webdataset on our shards
    streaming    MosaicML Streaming on MDS shards of the same files
    datasets     HF datasets on an Arrow table of the same files

Then the time from opening a data set of many samples to the first batch at a random position, as a resumed run needs
it. webdataset cannot seek, so it reads up to the position; HF datasets and the folder index; Streaming restores its
state.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import PIL

from benchmarks.convert import picture
from scripts.common.files import canonical_json, file_sha256, write_json
from scripts.inference.blend_reader import COUNTS, COUNTS_NAME, UNITS
from scripts.media.pixel_store import PixelStore, pixels_key
from scripts.media.tarshard import ShardWriter, shard_name

ROOT = Path(__file__).resolve().parents[1]
BATCH, SIDE = 8, 224
PEERS = {
    "webdataset": ["webdataset==1.0.2", "numpy"],
    "streaming": ["mosaicml-streaming==0.13.0", "torch==2.14.1", "torchvision==0.29.1"],
    "datasets": ["datasets==5.2.0"],
}

COMMON = f"""
import io, json, os, sys, time, zlib
import numpy as np
from PIL import Image
data, start, count, BATCH, SIDE = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), {BATCH}, {SIDE}
def crop(picture):
    picture = picture.convert("RGB")
    scale = {SIDE} / min(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
    left, top = ((side - {SIDE}) // 2 for side in picture.size)
    return np.ascontiguousarray(np.asarray(picture.crop((left, top, left + {SIDE}, top + {SIDE}))).transpose(2, 0, 1))
def decode(data):
    with Image.open(io.BytesIO(data)) as picture:
        return crop(picture)
def batches(crops):
    rows = []
    for one in crops:
        rows.append(one)
        if len(rows) == BATCH:
            yield np.stack(rows)
            rows = []
def measure(open_data):
    begin = time.perf_counter()
    feed = batches(open_data())
    made = [next(feed)]
    first = time.perf_counter() - begin
    begin, cpu = time.perf_counter(), time.process_time()
    for _ in range(count // BATCH - 1):
        made.append(next(feed))
    spent, busy = time.perf_counter() - begin, time.process_time() - cpu
    check = sum(zlib.crc32(row.tobytes()) for batch in made for row in batch)
    print(json.dumps({{"first": first, "seconds": spent, "cpu": busy, "images": count - BATCH, "check": check}}))
"""
OURS = """
from pathlib import Path
from types import SimpleNamespace
from scripts.media.pixel_store import PixelStore, pixels_key
from scripts.inference.decoded_images import DecodedImageCache
from scripts.inference.blend_reader import BlendReader
form = sys.argv[4]
def open_data():
    reader = BlendReader(Path(data) / ("refs" if form == "refs" else "embedded"), data)
    if form == "store":
        store = PixelStore([Path(data) / "pixels/one-00000-of-00001.json"], pixels_key({"side": SIDE}))
        for position in range(start, len(reader)):
            yield from map(store.get, reader.read(position, images=False).image_sha256)
    cache = DecodedImageCache(SimpleNamespace(preprocess_image=crop), max_bytes=0)
    for position in range(start, len(reader)):
        sample = reader[position]
        yield from map(cache.get, sample.image_sha256, sample.images)
measure(open_data)
"""
SCRIPTS = {
    "folder": """
def open_data():
    names = json.load(open(f"{data}/files.json"))
    for name in names[start:]:
        with Image.open(f"{data}/files/{name}") as picture:
            yield crop(picture)
measure(open_data)
""",
    "webdataset": """
import webdataset
def open_data():
    feed = iter(webdataset.WebDataset(f"{data}/embedded/train-00000-of-00001.tar", shardshuffle=False))
    for _ in range(start):
        next(feed)
    for sample in feed:
        json.loads(sample["json"])
        yield decode(sample["i0.jpg"])
measure(open_data)
""",
    "streaming": """
from streaming import StreamingDataset
def open_data():
    feed = StreamingDataset(local=f"{data}/mds", shuffle=False, batch_size=BATCH)
    if start:
        feed.load_state_dict({"epoch": 0, "sample_in_epoch": start, "num_canonical_nodes": 1, "shuffle_seed": 9176,
                              "initial_physical_nodes": 1})
    for sample in feed:
        json.loads(sample["json"])
        yield decode(sample["jpg"])
measure(open_data)
""",
    "datasets": """
import datasets
def open_data():
    table = datasets.load_from_disk(f"{data}/arrow")
    for position in range(start, len(table)):
        sample = table[position]
        json.loads(sample["json"])
        yield decode(sample["jpg"])
measure(open_data)
""",
}
WRITERS = {
    "streaming": """
import json, sys
from streaming import MDSWriter
data = sys.argv[1]
with MDSWriter(out=f"{data}/mds", columns={"jpg": "bytes", "json": "bytes"}) as out:
    for name in json.load(open(f"{data}/files.json")):
        out.write({"jpg": open(f"{data}/files/{name}", "rb").read(), "json": b'{"messages":[]}'})
""",
    "datasets": """
import json, sys
import datasets
data = sys.argv[1]
def rows():
    for name in json.load(open(f"{data}/files.json")):
        yield {"jpg": open(f"{data}/files/{name}", "rb").read(), "json": b'{"messages":[]}'}
features = datasets.Features({"jpg": datasets.Value("binary"), "json": datasets.Value("binary")})
datasets.Dataset.from_generator(rows, features=features, cache_dir=f"{data}/cache").save_to_disk(f"{data}/arrow")
""",
}


def environment(folder: Path, name: str) -> str:
    """The interpreter of a peer's environment, which is made on first use."""
    path = folder / "peers" / name
    if not (path / "bin/python").exists():
        print(f"making the environment of {name} at {path}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", path], check=True)
        packages = [*PEERS[name], f"pillow=={PIL.__version__}"]
        subprocess.run([path / "bin/pip", "install", "--quiet", *packages], check=True)
    return str(path / "bin/python")


def prepare(folder: Path, count: int, width: int, height: int, distinct: int) -> None:
    """Write `count` samples of one image each in every format that needs no peer's library."""
    (folder / "files").mkdir(parents=True)
    pictures = []
    for number in range(distinct):
        buffer = io.BytesIO()
        picture(number, width, height, 18.0).save(buffer, "JPEG", quality=90)
        pictures.append(buffer.getvalue())
    hashes = [hashlib.sha256(data).hexdigest() for data in pictures]
    names: list[str] = []
    checksums: dict[str, list[int]] = {"embedded": [], "refs": []}
    with ShardWriter(folder / "media/one/one-00000-of-00001.tar") as media:
        offsets = [media.add(f"{number:06d}", [("jpg", data)])[0] for number, data in enumerate(pictures)]
    with (
        ShardWriter(folder / "embedded" / shard_name("train", 0, 1)) as embedded,
        ShardWriter(folder / "refs" / shard_name("train", 0, 1)) as refs,
    ):
        for position in range(count):
            number = position % distinct
            names.append(f"{position:07d}.jpg")
            (folder / "files" / names[-1]).write_bytes(pictures[number])
            image = {"source": "one", "key": f"{number:06d}", "sha256": hashes[number]}
            sample = {
                "uids": [f"one:{position}"],
                "dataset": "one",
                "messages": [],
                "n_tokens": 1,
                "n_labels": 1,
                "position": position,
            }
            reference = {"ref": ["media/one/one-00000-of-00001.tar", offsets[number], len(pictures[number])]}
            texts = {"embedded": _json(sample, image), "refs": _json(sample, image | reference)}
            embedded.add(f"e000-{position:09d}", [("json", texts["embedded"]), ("i0.jpg", pictures[number])])
            refs.add(f"e000-{position:09d}", [("json", texts["refs"])])
            for form, text in texts.items():
                checksums[form].append(zlib.crc32(text))
    write_json(folder / "files.json", names)
    for form, shard in (("embedded", embedded), ("refs", refs)):
        np.arange(count + 1, dtype="<u8").tofile(folder / form / UNITS)
        counts = [(0, 1, 1, checksum) for checksum in checksums[form]]
        np.save(folder / form / COUNTS_NAME, np.array(counts, COUNTS))
        listed = {"name": shard.path.name, "bytes": shard.bytes, "conversations": count, "units": count}
        listed["index_sha256"] = shard.index_sha256
        files = {name: file_sha256(folder / form / name) for name in (COUNTS_NAME, UNITS)}
        manifest = {"plan": "", "global_batch": BATCH, "units": count, "conversations": count, "datasets": {"one": {}}}
        images = {"images": "embedded" if form == "embedded" else "referenced"}
        write_json(folder / form / "manifest.json", manifest | images | {"shards": [listed], "files": files})
    scope: dict = {}
    exec(COMMON.split("def batches")[0].replace("sys.argv[1], int(sys.argv[2]), int(sys.argv[3])", "0, 0, 0"), scope)
    facts = {"key": pixels_key({"side": SIDE}), "pillow": PIL.__version__}
    PixelStore.write(folder / "pixels/one-00000-of-00001", map(scope["decode"], pictures), hashes, facts)


def _json(sample: dict, image: dict) -> bytes:
    return canonical_json(sample | {"images": [image]}).encode()


def candidates(folder: Path) -> dict[str, list[str]]:
    """The command of every loader, without the arguments for its data."""
    commands = {
        name: [sys.executable, "-c", COMMON + OURS, form]
        for name, form in (("ours", "embedded"), ("ours, refs", "refs"), ("ours, store", "store"))
    }
    for name, script in SCRIPTS.items():
        python = environment(folder, name) if name in PEERS else sys.executable
        commands[name] = [python, "-c", COMMON + script, ""]
    return commands


def run(command: list[str], data: Path, start: int, count: int) -> dict:
    """Run a loader over `count` images from position `start` on."""
    *program, form = command
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    arguments = [*program, str(data), str(start), str(count), form]
    done = subprocess.run(arguments, cwd=data, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program[0]} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the benchmark and print its tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--images", type=int, default=400)
    arguments.add_argument("--samples", type=int, default=50_000, help="samples of the large data set")
    arguments.add_argument("--runs", type=int, default=7)
    arguments.add_argument("--folder", type=Path, required=True, help="where to work; environments are kept there")
    args = arguments.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    loaders = candidates(args.folder.resolve())
    with tempfile.TemporaryDirectory(prefix="loader-", dir=args.folder.resolve()) as scratch:
        few, many = Path(scratch) / "few", Path(scratch) / "many"
        prepare(few, args.images, 640, 428, args.images)
        prepare(many, args.samples, 64, 48, 64)
        for name, writer in WRITERS.items():
            for data in (few, many):
                subprocess.run([loaders[name][0], "-c", writer, data], cwd=data, check=True, capture_output=True)
        print(
            f"Python {platform.python_version()}, Pillow {PIL.__version__}, {os.cpu_count()} CPUs "
            f"({platform.machine()}), load {os.getloadavg()[0]:.1f}, {args.images} images, {args.runs} runs"
        )
        results = _rates(loaders, few, args)
        _table(
            "images per second", {name: [r["images"] / r["seconds"] for r in runs] for name, runs in results.items()}
        )
        _table(
            "CPU ms per image", {name: [1e3 * r["cpu"] / r["images"] for r in runs] for name, runs in results.items()}
        )
        firsts = _first_batches(loaders, many, args)
        _table(f"seconds to the first batch at a random position of {args.samples:,}", firsts)


def _rates(loaders: dict[str, list[str]], data: Path, args: argparse.Namespace) -> dict[str, list[dict]]:
    results: dict[str, list[dict]] = {name: [] for name in loaders}
    for _ in range(args.runs):
        for name, command in loaders.items():
            results[name].append(run(command, data, 0, args.images // BATCH * BATCH))
    checks = {result["check"] for runs in results.values() for result in runs}
    if len(checks) > 1:
        raise RuntimeError(f"the loaders do not make the same crops: {checks}")
    best = max(_median_rate(results[name]) for name in SCRIPTS)
    ours = {name: _median_rate(results[name]) / best for name in loaders if name not in SCRIPTS}
    print("ours against the best of the others: " + ", ".join(f"{name} {ratio:.2f} x" for name, ratio in ours.items()))
    return results


def _median_rate(runs: list[dict]) -> float:
    """Images per second."""
    return statistics.median(result["images"] / result["seconds"] for result in runs)


def _first_batches(loaders: dict[str, list[str]], data: Path, args: argparse.Namespace) -> dict[str, list[float]]:
    chooser = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(args.runs):
        start = chooser.randrange(args.samples - BATCH)
        for name, command in loaders.items():
            seconds[name].append(run(command, data, start, BATCH)["first"])
    return seconds


def _table(title: str, values: dict[str, list[float]]) -> None:
    print(f"\n{title}")
    for name, numbers in values.items():
        print(f"  {name:12} {statistics.median(numbers):10.4g}   ({min(numbers):.4g} to {max(numbers):.4g})")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
