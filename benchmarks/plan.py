"""The time and memory of planning: the program `plan` on random tables of records and token counts.

    python -m benchmarks.plan [--conversations 1000000 10000000] [--runs 3] [--folder DIR]

Draws six datasets shaped like the paper's (one round or many, 53 prompts with 5 captions, rounds in any order, pairs of
images, and the join of pairs with conversations about their images) so that the plan has about as many rows as
requested, then runs `python -m scripts.plan` on them as the rule does, packed to 4,096 tokens: reading all tables,
every draw, the join, exact lengths, packing, order, the written table and its hash. Texts are left out, since a plan
never reads them. Times are wall-clock, with the start of the interpreter; memory is the peak of the process.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scripts.blending.plan_summary import padding
from scripts.blending.ragged import nested, starts_from_lengths
from scripts.common.files import write_json, write_table
from scripts.common.records import RECORD_SCHEMA
from scripts.common.table_hash import table_sha256
from scripts.count_tokens import TOKENS_SCHEMA

ROOT = Path(__file__).resolve().parents[1]
_IMAGE_TOKENS = 257
_MAX_IMAGES = 8
SHAPES = {
    # name: (records per conversation of the plan, images, rounds at least, at most, permuted, alternatives of a round)
    "llava": (0.30, 1, 1, 1, False, (1, 1)),
    "llava_dial": (0.20, 1, 3, 6, False, (1, 1)),
    "coco_caption": (0.25, 1, 1, 1, False, (53, 5)),
    "aokvqa": (0.10, 1, 1, 1, False, (1, 7)),
    "otter_mimicit_cgd": (0.25, 2, 2, 6, True, (1, 1)),
}
ENTRIES = {
    "llava": {"concat": 3},
    "llava_dial": {"concat": 2},
    "coco_caption": {},
    "aokvqa": {},
    "otter_mimicit_cgd": {},
    "llava_otter_blend": {"samples": 0.6},
}


def _lists(values: pa.Array, lengths: np.ndarray) -> pa.ListArray:
    return nested(starts_from_lengths(lengths), values)


def _filled(data_type: pa.DataType, lengths: np.ndarray, value: str) -> pa.ListArray:
    """Lists of these lengths, all with one value."""
    return _lists(pa.array(np.full(int(lengths.sum()), value), data_type), lengths)


def draw(name: str, conversations: int, images: int, folder: Path) -> None:
    """Write the records and the token counts of a dataset below `folder`."""
    share, shown, least, most, permuted, alternatives = SHAPES[name]
    count, random = int(share * conversations), np.random.default_rng(len(name))
    rounds = random.integers(least, most + 1, count)
    total, firsts = int(rounds.sum()), starts_from_lengths(rounds)[:-1]
    uids = pa.array([f"{name}:{number:09d}" for number in range(count)])
    first = random.integers(0, images, count)
    codes = np.stack([first, (first + 1 + random.integers(0, 50, count)) % images], axis=1)[:, :shown].ravel()
    keys = pa.array([f"coco/train2017/{code:012d}" for code in range(images)])
    struct = pa.StructArray.from_arrays([pa.array(["coco"] * images), keys], ["source", "key"])
    image_counts = np.zeros(total, np.int64)
    image_counts[firsts] = shown
    groups = [("order", "permute")] if permuted else []
    groups += [(role, "pick") for role, size in zip(("q", "a"), alternatives, strict=True) if size > 1]
    sizes = {"permute": rounds, "q": np.full(count, alternatives[0]), "a": np.full(count, alternatives[1])}
    group_sizes = [sizes["permute" if kind == "permute" else role] for role, kind in groups]
    group_type = RECORD_SCHEMA.field("groups").type.value_type
    columns = [
        pa.array([role for role, _ in groups] * count, pa.string()),
        pa.array([kind for _, kind in groups] * count, pa.string()),
        pa.array(np.stack(group_sizes, 1).ravel() if groups else [], pa.int32()),
    ]
    question_group, answer_group = (
        groups.index((role, "pick")) if (role, "pick") in groups else -1 for role in ("q", "a")
    )
    texts = _filled(pa.string(), np.zeros(total, np.int64), "")
    round_columns = [
        _lists(pa.array(np.tile(np.arange(shown), count), pa.int32()), image_counts),
        texts,
        pa.array(np.full(total, question_group), pa.int32()),
        texts,
        pa.array(np.full(total, answer_group), pa.int32()),
        pa.array(np.ones(total, bool)),
    ]
    round_type = RECORD_SCHEMA.field("rounds").type.value_type
    table = pa.Table.from_arrays(
        [
            uids,
            _lists(struct.take(pa.array(codes)), np.full(count, shown)),
            _lists(pa.StructArray.from_arrays(round_columns, fields=list(round_type)), rounds),
            pa.array([""] * count),
            _lists(pa.StructArray.from_arrays(columns, fields=list(group_type)), np.full(count, len(groups))),
            pa.array(["free"] * count),
            pa.array(["train"] * count),
        ],
        schema=RECORD_SCHEMA,
    )
    write_table(folder / f"records/{name}.parquet", table)
    sha256 = table_sha256(table)
    write_json(folder / f"records/{name}.report.json", {"v": 1, "sha256": sha256})

    def counts(size: int, mean: float) -> pa.ListArray:
        lengths = np.minimum(random.lognormal(np.log(mean), 0.6, total * size), 900).astype(np.int32) + 1
        return _lists(_lists(pa.array(lengths), np.ones(total * size, np.int64)), np.full(total, size))

    fields = [counts(alternatives[0], 15), counts(1, 20), counts(alternatives[1], 60 if name != "llava" else 110)]
    lengths = pa.StructArray.from_arrays(fields, fields=list(TOKENS_SCHEMA.field("rounds").type.value_type))
    measured = pa.Table.from_arrays(
        [uids, pa.array(np.zeros(count), pa.int32()), _lists(lengths, rounds)], schema=TOKENS_SCHEMA
    )
    write_table(folder / f"tokens/{name}.parquet", measured)
    fixed = {
        "prefix": 1,
        "image": [_IMAGE_TOKENS + 10] * _MAX_IMAGES,
        "round_overhead": 12,
        "between_rounds": 2,
        "end": 1,
    }
    manifest = {"identity": "drawn", "max_images": _MAX_IMAGES, "followups": True, "records_sha256": sha256}
    write_json(folder / f"tokens/{name}.json", manifest | fixed)


def prepare(conversations: int, folder: Path) -> None:
    """Write everything that a plan reads."""
    images = max(100, conversations // 8)
    for name in SHAPES:
        draw(name, conversations, images, folder)
    keys = pa.array([f"coco/train2017/{code:012d}" for code in range(images)])
    write_table(folder / "media/coco/index.parquet", pa.table({"key": keys}))
    held_out = {"source": pa.array(["coco"] * (images // 50)), "key": keys.slice(0, images // 50)}
    write_table(folder / "split/heldout.parquet", pa.table(held_out))


def plan(folder: Path) -> tuple[float, float, dict]:
    """Plan once; return seconds, the peak memory in GB, and the manifest."""
    settings = {"tokens": "drawn", "datasets": ENTRIES, "packing": True}
    command = [sys.executable, "-m", "scripts.plan", "--name", "drawn", "--settings", json.dumps(settings)]
    command += ["--epoch", "0", "--media", f"coco={folder / 'media/coco'}"]
    for part in ("records", "tokens", "split", "out"):
        command += [f"--{part}", str(folder / part)]
    start = time.perf_counter()
    child = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"plan ended with status {child.returncode}")
    return seconds, usage.ru_maxrss / 1e6 * 1.024, json.loads((folder / "out/epoch-000.json").read_text())


def _padding(table: pa.Table) -> dict[str, tuple[int, int]]:
    """The padding and all token slots of micro-batches of 8: of packs, and of the same conversations without packing.

    Without packing, the conversations of a global batch of 128 are sorted by length, as in a plan without packing.
    """
    tokens = table["n_tokens"].to_numpy().astype(np.int64)
    packs = np.bincount(table["pack"].to_numpy(), tokens).astype(np.int64)
    shuffled = np.random.default_rng(0).permutation(tokens)
    batches = np.sort(np.pad(shuffled, (0, -len(tokens) % 128)).reshape(-1, 128))[:, ::-1].ravel()[: len(tokens)]
    return {
        "packed": padding(packs, 8),
        "not packed": padding(batches, 8),
        "not packed and not sorted": padding(shuffled, 8),
    }


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--conversations", type=int, nargs="+", default=[1_000_000, 10_000_000])
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    args = arguments.parse_args()
    print(
        f"Python {platform.python_version()}, numpy {np.__version__}, pyarrow {pa.__version__}, {os.cpu_count()} CPUs "
        f"({platform.machine()}), load {os.getloadavg()[0]:.1f}, {args.runs} runs"
    )
    for conversations in args.conversations:
        folder = Path(tempfile.mkdtemp(prefix="plan-", dir=args.folder))
        try:
            prepare(conversations, folder)
            results = [plan(folder) for _ in range(args.runs)]
            padded = _padding(pq.read_table(folder / "out/epoch-000.parquet", columns=["n_tokens", "pack"]))
        finally:
            shutil.rmtree(folder)
        seconds, memory, manifests = zip(*results, strict=True)
        manifest = manifests[0]
        shares = ", ".join(f"{name} {part / whole:.1%}" for name, (part, whole) in padded.items())
        full = manifest["tokens"] / (manifest["units"] * manifest["sequence"])
        print(
            f"{manifest['conversations']:>11,} conversations in {manifest['units']:,} packs: median "
            f"{statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f}), "
            f"peak {max(memory):.2f} GB, packs {full:.1%} full; padding: {shares}",
            flush=True,
        )


if __name__ == "__main__":
    main()
