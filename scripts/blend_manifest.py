"""Join the shards of a plan into a blend folder that can be trained on: check that all belong to it, and describe them.

Reads   a plan, and what `blend` has written: blend/<blend>/<part>/parts/*.json beside the shards
Writes  blend/<blend>/<part>/units.idx       where each unit begins among the conversations (little-endian uint64)
        blend/<blend>/<part>/counts.npy      of every conversation its dataset (a number: they are in alphabetical
                                             order), tokens and supervised tokens: what a step of training knows of
                                             all its batches before it reads them; and the CRC-32 of its JSON
        blend/<blend>/<part>/manifest.json   last; the interface of all that follows, with the sha256 of both files
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scripts.blending.plan_table import read_plan, unit_ids
from scripts.blending.shard_parts import MANIFEST, part_path, shard_stem
from scripts.common.cli import parser
from scripts.common.errors import UserError, damaged, run_program
from scripts.common.files import atomic, file_sha256, read_json, read_table, write_json
from scripts.inference.blend_reader import COUNTS, COUNTS_NAME, UNITS
from scripts.media.tarshard import index_path, shard_name

_FROM_PLAN = (
    "blend",
    "epoch",
    "seed",
    "tokens_identity",
    "records",
    "sequence",
    "max_images",
    "packing",
    "pack_images",
    "epoch_size",
    "global_batch",
    "units",
    "conversations",
    "rounds",
    "tokens",
    "labels",
    "licences",
    "datasets",
)


def write_manifest(plan: Path, shards: int, out: Path) -> dict[str, Any]:
    """Describe the `shards` shards of `plan` in `out`; return the manifest.

    Raises:
        UserError: a shard is missing, has another size, or was built from another plan.
    """
    _, planned = read_plan(plan)
    parts = [_part(out, shard_name(shard_stem(planned), index, shards), planned["sha256"]) for index in range(shards)]
    forms = sorted({part["images"] for part in parts})
    if len(forms) > 1:
        raise UserError(f"{out} holds shards with {' and with '.join(forms)} images: build them again")
    with atomic(out / UNITS) as file:
        file.write(np.searchsorted(unit_ids(plan), np.arange(planned["units"] + 1)).astype("<u8").tobytes())
    with atomic(out / COUNTS_NAME) as file:
        np.save(file, _counts(plan, sorted(planned["datasets"]), parts), allow_pickle=False)
    manifest = {
        "v": 1,
        **{key: planned[key] for key in _FROM_PLAN},
        "plan": planned["sha256"],
        "content": f"{sum(int(part['content'], 16) for part in parts) % (1 << 256):064x}",
        "images": forms[0],
        "n_images": planned["images"],
        "shards": [part["shard"] for part in parts],
        "files": {name: file_sha256(out / name) for name in (COUNTS_NAME, UNITS)},
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def _counts(plan: Path, datasets: list[str], parts: list[dict[str, Any]]) -> np.ndarray:
    """What every row of a plan counts, (rows,) of `COUNTS`; `datasets` are numbered in their order.

    `parts` are the descriptions of all shards.
    """
    table = read_table(plan, columns=["dataset", "n_tokens", "n_labels"])
    counts = np.empty(table.num_rows, COUNTS)
    counts["dataset"] = pc.index_in(table["dataset"], pa.array(datasets)).to_numpy()
    counts["tokens"], counts["labels"] = table["n_tokens"].to_numpy(), table["n_labels"].to_numpy()
    counts["crc32"] = np.frombuffer(bytes.fromhex("".join(part["crc32"] for part in parts)), ">u4")
    return counts


def _part(out: Path, shard: str, plan: str) -> dict[str, Any]:
    """The description of `shard`, checked against its files and the hash of the plan."""
    path = part_path(out, shard)
    if not path.exists():
        raise UserError(f"{path} does not exist: run blend for {shard} first")
    part = read_json(path)
    if "crc32" not in part:
        raise UserError(f"{path} was written before blends had checksums: run blend for {shard} again")
    if part["plan"] != plan:
        raise UserError(f"{out / shard} was built from another plan: run blend for it again")
    sizes = {out / shard: part["shard"]["bytes"], index_path(out / shard): 8 * (part["shard"]["conversations"] + 1)}
    for file, size in sizes.items():
        if not file.is_file() or file.stat().st_size != size:
            raise damaged(file, "is missing or has another size")
    return part


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--plan", required=True, type=Path, help="plan/<blend>/<part>.parquet, beside its manifest")
    arguments.add_argument("--shards", required=True, type=int, help="how many shards the part has")
    arguments.add_argument("--out", required=True, type=Path, help="folder of the shards: blend/<blend>/<part>")
    args = arguments.parse_args()
    write_manifest(args.plan, args.shards, args.out)


if __name__ == "__main__":
    run_program(main)
