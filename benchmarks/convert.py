"""The time from a container of images to media shards, against decoding the same images alone.

    python -m benchmarks.convert [--gigabytes 1.0] [--processes 2] [--runs 5] [--folder DIR]

Makes a JSON object of base64 PNGs (224 x 224, as in MIMIC-IT) and a zip of JPEGs (640 x 428, as in COCO) of the given
size. Each run measures, one after the other, each right after its files were read once, so that no disk is timed:

    ours      fetch (list the images), shard (read, decode, hash and write each), index: the programs that the rules
              run, one shard per process
    decoding  as many processes, each decoding its share of the same bytes with Pillow and doing nothing else
    script    json.load, or zipfile, and Pillow in one process: a short script

Times are wall-clock, with the start of the interpreters; memory is the largest peak of any one process.
"""

import argparse
import base64
import io
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
_DISTINCT = 256


def picture(number: int, width: int, height: int, noise: float) -> Image.Image:
    """Smooth colours under noise: compresses about as well as a photograph."""
    draw = np.random.default_rng(number)
    coarse = Image.fromarray(draw.integers(0, 256, (7, 9, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(coarse, np.float32) + draw.normal(0, noise, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _encoded(format_: str, width: int, height: int, noise: float) -> list[bytes]:
    images = []
    for number in range(_DISTINCT):
        buffer = io.BytesIO()
        picture(number, width, height, noise).save(buffer, format_, quality=90)
        images.append(buffer.getvalue())
    return images


def make_json(path: Path, size: float) -> None:
    """A JSON object of base64 PNGs of at least `size` bytes."""
    texts = [base64.b64encode(data).decode() for data in _encoded("PNG", 224, 224, 4.0)]
    with path.open("w") as file:
        number = 0
        while file.tell() < size:
            file.write(f'{", " if number else "{"}"SD_IMG_{number:07d}_1": "{texts[number % _DISTINCT]}"')
            number += 1
        file.write("}")


def make_zip(path: Path, size: float) -> None:
    """A zip of JPEGs, stored without compression, of at least `size` bytes."""
    images = _encoded("JPEG", 640, 428, 18.0)
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        number = 0
        while file.tell() < size:
            archive.writestr(f"train2017/{number:012d}.jpg", images[number % _DISTINCT])
            number += 1


def run(commands: list[list[str]]) -> tuple[float, float]:
    """Run commands side by side; return seconds until the last has ended, and the largest peak memory in MB."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    children = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in commands
    ]
    peak = 0
    for command, child in zip(commands, children, strict=True):
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise RuntimeError(f"{command} ended with status {child.returncode}")
        peak = max(peak, usage.ru_maxrss)
    return time.perf_counter() - start, peak / 1024


def ours(source: str, data: Path, work: Path, processes: int) -> tuple[float, float]:
    """Build the media of `source` below `work` with the project's programs."""
    shutil.rmtree(work, ignore_errors=True)
    python, raw, media = [sys.executable, "-m"], str(work / "raw"), str(work / "media")
    images = {"mimicit_sd": "MIMIC-IT/SD/", "coco": "coco/train2017/"}[source]
    fetch = [*python, "scripts.fetch", "--source", source, "--data-path", str(data), "--require", images, "--out", raw]
    common = ["--source", source, "--raw", raw, "--shards", str(processes), "--out", media]
    shards = [[*python, "scripts.shard", *common, "--index", str(index)] for index in range(processes)]
    phases = [run([fetch]), run(shards), run([[*python, "scripts.media_index", *common]])]
    return sum(seconds for seconds, _ in phases), max(peak for _, peak in phases)


_DECODE = """
import io, mmap, sys
from PIL import Image
ranges = [tuple(map(int, line.split())) for line in open(sys.argv[2])]
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
    for offset, length in ranges:
        Image.open(io.BytesIO(data[offset : offset + length])).load()
"""
_JSON = """
import base64, io, json, sys
from PIL import Image
for text in json.load(open(sys.argv[1])).values():
    Image.open(io.BytesIO(base64.b64decode(text))).load()
"""
_ZIP = """
import io, sys, zipfile
from PIL import Image
with zipfile.ZipFile(sys.argv[1]) as archive:
    for name in archive.namelist():
        Image.open(io.BytesIO(archive.read(name))).load()
"""


def write_shares(work: Path, into: Path) -> list[list[str]]:
    """The commands that only decode: each process a shard of ours, copied to `into` with the ranges of its images."""
    media = work / "media"
    index = pq.read_table(media / "index.parquet").to_pylist()
    commands = []
    for number, shard in enumerate(sorted(media.glob("*.tar"))):
        ranges = into / f"{number}.txt"
        ranges.write_text("\n".join(f"{row['offset']} {row['length']}" for row in index if row["shard"] == number))
        copy = into / f"{number}.bytes"
        shutil.copyfile(shard, copy)
        commands.append([sys.executable, "-c", _DECODE, str(copy), str(ranges)])
    return commands


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gigabytes", type=float, default=1.0)
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    args = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="convert-", dir=args.folder))
    print(
        f"Python {platform.python_version()}, Pillow {PIL.__version__}, pyarrow {pa.__version__}, "
        f"{os.cpu_count()} CPUs ({platform.machine()}), {args.gigabytes:g} GB, {args.processes} processes, "
        f"{args.runs} runs"
    )
    cases = (
        ("base64 JSON", "mimicit_sd", "MIMIC-IT/SD.json", make_json, _JSON),
        ("zip of JPEGs", "coco", "coco/train2017.zip", make_zip, _ZIP),
    )
    try:
        for title, source, path, make, script in cases:
            _case(folder, title, source, path, make, script, args)
    finally:
        shutil.rmtree(folder)


def _warm(folder: Path) -> None:
    """Read every file below `folder`, so that the page cache has it."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 20):
                    pass


def _case(
    folder: Path,
    title: str,
    source: str,
    path: str,
    make: Callable[[Path, float], None],
    script: str,
    args: argparse.Namespace,
) -> None:
    data, work, alone = folder / "data", folder / "work", folder / "alone"
    (data / path).parent.mkdir(parents=True)
    alone.mkdir()
    make(data / path, args.gigabytes * 1e9)
    ours(source, data, work, args.processes)
    decoders = write_shares(work, alone)
    script_command = [sys.executable, "-c", script, str(data / path)]
    results: dict[str, list[tuple[float, float]]] = {"ours": [], "decoding": [], "script": []}
    for _ in range(args.runs):
        _warm(alone)
        results["decoding"].append(run(decoders))
        _warm(data)
        results["ours"].append(ours(source, data, work, args.processes))
        _warm(data)
        results["script"].append(run([script_command]))
    images = json.loads((work / "media/manifest.json").read_text())["images"]
    print(f"\n{title}: {(data / path).stat().st_size / 1e9:.2f} GB, {images} images")
    medians = {name: statistics.median(seconds for seconds, _ in values) for name, values in results.items()}
    for name, values in results.items():
        spread = f"{min(s for s, _ in values):.2f} to {max(s for s, _ in values):.2f}"
        peak = max(peak for _, peak in values)
        ratio = medians[name] / medians["decoding"]
        print(f"  {name:9} {medians[name]:6.2f} s ({spread}), {ratio:4.2f} x decoding, peak {peak:5.0f} MB per process")
    shutil.rmtree(data)
    shutil.rmtree(alone)


if __name__ == "__main__":
    main()
