"""The time and memory from a file of own rows to records, beside the `datasets` library and a plain conversion.

    python -m benchmarks.own_data [--rows 1000000] [--peer .neighbours/datasets/bin/python] [--runs 3] [--folder DIR]

Makes rows of our own in two files and measures each, one after the other, each right after the file was read once, so
that no disk is timed:

    llava     JSON lines in the form of LLaVA: an image by name and two rounds
    parquet   a table with a question, an answer and the image itself as PNG bytes, all different

    ours      `python -m scripts.convert`: rows are read, understood and checked, their images looked up among as many
              images as there are rows, and records are written with their hash
    peer      `datasets.load_dataset` into a new cache, then a loop that makes a list of messages of every row and
              writes it as a line of JSON, with the image's path or, for bytes, the number of the row

The images are listed, not made: the index of the media is written as media_index writes it. Times are CPU seconds of
the process with those of its threads, from start to end, because the peer uses several threads; memory is its largest
resident size. The peer's environment is made by `make .neighbours/datasets/.ready`; without it, ours is measured alone.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scripts.common.files import write_table
from scripts.config.custom import CustomDatasetConfig
from scripts.config.registry import custom_dataset, custom_source
from scripts.fetch import fetch
from scripts.media.hashed_names import embedded_path
from scripts.media.store import INDEX, INDEX_SCHEMA, REJECTED, REJECTED_SCHEMA

ROOT = Path(__file__).resolve().parents[1]
_AT_ONCE = 10_000
_WORDS = [
    "red",
    "green",
    "blue",
    "round",
    "small",
    "large",
    "left",
    "right",
    "above",
    "below",
    "two",
    "three",
    "cat",
    "dog",
    "boat",
    "tree",
    "house",
    "road",
    "cloud",
]


class Measured(NamedTuple):
    """CPU seconds and peak memory in MB of one process."""

    cpu_seconds: float
    seconds: float
    peak: float


def sentence(number: int, words: int) -> str:
    """A sentence of some words that depend on `number`."""
    return " ".join(_WORDS[(number * 7 + place * (3 + number % 5)) % len(_WORDS)] for place in range(words))


def png(number: int) -> bytes:
    """A PNG of 16 x 16 pixels of noise (some 860 bytes), another one for every number."""
    pixels = hashlib.shake_128(str(number).encode()).digest(16 * 48)
    lines = b"".join(b"\0" + pixels[start : start + 48] for start in range(0, len(pixels), 48))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 16, 16, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 1)) + chunk(b"IEND", b"")


def make_llava(folder: Path, rows: int) -> Iterator[str]:
    """Write `rows.jsonl`; yield the path of the image of every row."""
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for number in range(rows):
            name = f"{number % 1000:03d}/{number:012d}.jpg"
            turns = [
                {"from": "human", "value": f"<image>\nWhat is {sentence(number, 6)}?"},
                {"from": "gpt", "value": sentence(number + 1, 30)},
                {"from": "human", "value": f"And {sentence(number + 2, 5)}?"},
                {"from": "gpt", "value": sentence(number + 3, 12)},
            ]
            row = {"id": f"{number:012d}", "image": name, "conversations": turns}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            yield f"images/{name}"


def make_parquet(folder: Path, rows: int) -> Iterator[str]:
    """Write `rows.parquet`; yield the path under which the image of every row is listed."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("question", pa.string()), ("answer", pa.string()), ("image", image)])
    with pq.ParquetWriter(folder / "rows.parquet", schema) as file:
        for start in range(0, rows, _AT_ONCE):
            numbers = range(start, min(rows, start + _AT_ONCE))
            images = [png(number) for number in numbers]
            columns = [
                [f"What is {sentence(number, 6)}?" for number in numbers],
                [sentence(number + 1, 30) for number in numbers],
                [{"bytes": data, "path": None} for data in images],
            ]
            arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            file.write_table(pa.Table.from_arrays(arrays, schema=schema))
            yield from map(embedded_path, images)


CASES = {"llava": ("rows.jsonl", make_llava), "parquet": ("rows.parquet", make_parquet)}


def prepare(work: Path, case: str, rows: int) -> Path:
    """Make the rows of a case below `work`, list them, and write the index of their images; return the file of rows."""
    name, make = CASES[case]
    data, media = work / "data", work / "media"
    for folder in (data / "images", media):
        folder.mkdir(parents=True)
    # Fetch refuses a folder of images without any.
    (data / "images/one.png").write_bytes(png(0))
    paths = pa.array(make(data, rows), pa.string())
    keys = pc.replace_substring_regex(paths, r"\.[a-z]+$", "")
    empty = {field.name: pa.nulls(rows, field.type) for field in INDEX_SCHEMA}
    columns = empty | {"path": paths, "key": keys}
    write_table(media / INDEX, pa.table([columns[name] for name in INDEX_SCHEMA.names], schema=INDEX_SCHEMA))
    write_table(media / REJECTED, REJECTED_SCHEMA.empty_table())
    config = CustomDatasetConfig(folder=str(data), files=(name,), images=("images/",))
    fetch(custom_source("own", config), data, work / "raw", dataset=custom_dataset("own", config))
    return data / name


def run(command: list[str], log: Path) -> Measured:
    """Run a command to its end; its output goes to `log`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    with log.open("wb") as file:
        child = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{command} ended with status {child.returncode}:\n{log.read_text()[-2000:]}")
    return Measured(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss / 1024)


def convert(work: Path) -> Measured:
    """Our conversion of the rows that were prepared in `work`."""
    folders = ["--raw", f"own={work / 'raw'}", "--media", f"own={work / 'media'}", "--out", str(work / "records")]
    return run([sys.executable, "-m", "scripts.convert", "--dataset", "own", *folders], work / "convert.log")


_PEER = """
import json
import sys

from datasets import Image, load_dataset

kind, path, cache, out = sys.argv[1:]
data = load_dataset({"llava": "json", "parquet": "parquet"}[kind], data_files=path, split="train", cache_dir=cache)
if kind == "parquet" and isinstance(data.features["image"], Image):
    data = data.cast_column("image", Image(decode=False))
roles = {"human": "user", "gpt": "assistant"}


def messages(number, row):
    if kind == "parquet":
        parts = [{"type": "image", "image": number}, {"type": "text", "text": row["question"]}]
        return [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": [{"type": "text", "text": row["answer"]}]},
        ]
    turns = []
    for turn in row["conversations"]:
        parts = []
        for place, text in enumerate(turn["value"].split("<image>")):
            if place:
                parts.append({"type": "image", "image": row["image"]})
            if text.strip():
                parts.append({"type": "text", "text": text.strip()})
        turns.append({"role": roles[turn["from"]], "content": parts})
    return turns


with open(out, "w") as file:
    for number, row in enumerate(data):
        file.write(json.dumps(messages(number, row)) + "\\n")
"""


def load(peer: Path, case: str, file: Path, work: Path) -> Measured:
    """The peer's reading and conversion of a file, into a new cache."""
    cache = work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    out = work / "messages.jsonl"
    measured = run([str(peer), "-c", _PEER, case, str(file), str(cache), str(out)], work / "peer.log")
    out.unlink()
    shutil.rmtree(cache, ignore_errors=True)
    return measured


def compare(case: str, rows: int, runs: int, peer: Path | None, work: Path) -> None:
    """Measure one case and print its lines."""
    file = prepare(work, case, rows)
    names = ["ours", "peer"] if peer else ["ours"]
    results: dict[str, list[Measured]] = {name: [] for name in names}
    for _ in range(runs):
        for name, measured in results.items():
            with file.open("rb") as stream:
                while stream.read(1 << 24):
                    pass
            measured.append(convert(work) if name == "ours" or peer is None else load(peer, case, file, work))
    print(f"\n{case}: {rows} rows, {file.stat().st_size / 1e6:.0f} MB")
    for name, measured in results.items():
        speeds = [rows / each.cpu_seconds for each in measured]
        seconds, peak = statistics.median(each.seconds for each in measured), max(each.peak for each in measured)
        print(
            f"  {name}  {statistics.median(speeds):7.0f} rows per CPU second ({min(speeds):.0f} to {max(speeds):.0f}), "
            f"{seconds:6.1f} s, peak {peak:5.0f} MB"
        )


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--cases", nargs="+", choices=sorted(CASES), default=sorted(CASES))
    arguments.add_argument("--peer", type=Path, help="Python with the datasets library; default: ours alone")
    arguments.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    args = arguments.parse_args()
    print(
        f"Python {platform.python_version()}, pyarrow {pa.__version__}, {os.cpu_count()} CPUs ({platform.machine()}), "
        f"{args.runs} runs"
    )
    for case in args.cases:
        work = Path(tempfile.mkdtemp(prefix="own-data-", dir=args.folder))
        try:
            compare(case, args.rows, args.runs, args.peer, work)
        finally:
            shutil.rmtree(work)


if __name__ == "__main__":
    main()
