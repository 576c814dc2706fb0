"""Write one shard of a plan: its share of the conversations as WebDataset samples, in the order of the plan.

Reads   a plan, records/<dataset>.parquet, media/<source>
Writes  blend/<blend>/<part>/train-00000-of-00008.tar, .tar.idx       (heldout-00000-of-00001.tar for the held-out part)
        blend/<blend>/<part>/parts/train-00000-of-00008.json           what the shard holds, and the CRC-32 of the JSON
                                                                       of every sample; read by `blend_manifest`

A sample is `<key>.json` with the messages and, with `images: embedded`, the original bytes of its images as
`<key>.i0.jpg`, ... With `images: referenced` the JSON refers to them by shard below the root, offset and length.
Both hold the same conversations. Shards are independent of each other: they are built in parallel, on several machines,
and a build that was killed continues with those that are missing. A pack is never divided between two shards.
"""

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scripts.blending.plan_inputs import check_records, media_folders
from scripts.blending.plan_table import manifest_path, read_rows, unit_ids
from scripts.blending.ragged import flat
from scripts.blending.record_store import RecordStore
from scripts.blending.render import messages
from scripts.blending.shard_parts import MANIFEST, part_path, shard_stem
from scripts.common.cli import load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import canonical_json, read_json, write_json
from scripts.common.progress import Progress
from scripts.config.blend import BlendStorageConfig
from scripts.media.store import MediaRow, MediaStore
from scripts.media.tarshard import ShardWriter, shard_name

_ROWS_AT_ONCE = 512
_MODULUS = 1 << 256


def write_shard(
    plan: Path,
    records: Path,
    media: dict[str, Path],
    settings: BlendStorageConfig,
    root: Path,
    out: Path,
    index: int = 0,
    shards: int = 1,
) -> dict[str, Any]:
    """Write shard `index` of `shards` of `plan` into `out`; return what it holds.

    Image references are relative to `root`.

    Raises:
        UserError: inputs are missing or do not belong together.
    """
    packs, planned = unit_ids(plan), read_json(manifest_path(plan))
    names = planned["tokens_name"], settings.tokens
    # The rules give no name: an entry of `tokens` that is renamed is the same.
    if all(names) and names[0] != names[1]:
        raise UserError(f"{plan} was counted with the tokens {names[0]!r}, not {names[1]!r}: run plan again")
    check_records(records, planned["records"])
    units = planned["units"]
    first, end = (units * edge // shards for edge in (index, index + 1))
    first_row, end_row = np.searchsorted(packs, [first, end]).tolist()
    table = read_rows(plan, first_row, end_row)
    record_store = RecordStore(records, flat(table, "uids").flatten().to_pylist())
    sources, keys = flat(table, "images").flatten().flatten()
    images = set(zip(sources.to_pylist(), keys.to_pylist(), strict=True))
    samples = _Samples(MediaStore(media), images, settings.images == "embedded", root)

    _remove_other_manifest(out / MANIFEST, planned, settings)
    name = shard_name(shard_stem(planned), index, shards)
    progress = Progress(f"{planned['blend']} {planned['epoch']}, {name}: conversations", table.num_rows)
    with ShardWriter(out / name) as shard:
        for row, row_records in _rows(table, record_store):
            key, members = samples.sample(row, row_records)
            shard.add(key, members)
            progress.advance()
    progress.close()
    samples.store.close()
    described = {
        "name": name,
        "sha256": shard.sha256,
        "bytes": shard.bytes,
        "index_sha256": shard.index_sha256,
        "units": end - first,
        "conversations": table.num_rows,
    }
    part = {
        "v": 1,
        "plan": planned["sha256"],
        "images": settings.images,
        "content": f"{samples.content:064x}",
        "shard": described,
        "crc32": samples.crc32.hex(),
    }
    write_json(part_path(out, name), part)
    return part


def _remove_other_manifest(manifest: Path, planned: Mapping[str, Any], settings: BlendStorageConfig) -> None:
    """Remove a manifest that does not describe the shards of this plan: it must never lie beside them."""
    try:
        described = read_json(manifest)
        same = (described["plan"], described["images"]) == (planned["sha256"], settings.images)
    except (UserError, KeyError, TypeError):
        same = False
    if not same:
        manifest.unlink(missing_ok=True)


def _rows(table: pa.Table, record_store: RecordStore) -> Iterator[tuple[dict[str, Any], dict[str, dict[str, Any]]]]:
    """Rows of the plan, each with the records that it and its neighbours name, by uid."""
    for batch in table.to_batches(_ROWS_AT_ONCE):
        rows = batch.to_pylist()
        records = record_store.fetch(uid for row in rows for uid in row["uids"])
        yield from ((row, records) for row in rows)


@dataclass(frozen=True)
class _Image:
    """An image of a sample: what the JSON holds of it, the reference to it, and its member where it is embedded."""

    described: dict[str, Any]
    reference: dict[str, Any]
    member: tuple[str, bytes] | None


class _Samples:
    """Turns plan rows into the members of a WebDataset sample.

    `content` is the sum of the hashes of all conversations so far: the same however the images are stored and however
    many shards there are. `crc32` is the checksum of the JSON member of every sample so far, four bytes each, the
    highest first: what else a sample holds has a sha256 in this member.
    """

    def __init__(self, store: MediaStore, images: Iterable[tuple[str, str]], embed: bool, root: Path) -> None:
        self.store, self.embed, self.root = store, embed, root
        self._found = store.lookup_all(images)
        self.content, self.crc32 = 0, bytearray()

    def sample(
        self, row: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]
    ) -> tuple[str, list[tuple[str, bytes]]]:
        """Key and members (extension, bytes) of one conversation."""
        images = [self._image(index, image["source"], image["key"]) for index, image in enumerate(row["images"])]
        content: dict[str, Any] = {
            "v": 1,
            "uids": row["uids"],
            "datasets": [uid.partition(":")[0] for uid in row["uids"]],
            "licences": sorted({records[uid]["licence"] for uid in row["uids"]}),
            "epoch": row["epoch"],
            "position": row["position"],
            "pack": row["pack"],
            "dataset": row["dataset"],
            "form": row["form"],
            "n_tokens": row["n_tokens"],
            "n_labels": row["n_labels"],
            "images": [image.described for image in images],
            "messages": messages(row, records),
        }
        digest = hashlib.sha256(canonical_json(content).encode()).digest()
        self.content = (self.content + int.from_bytes(digest, "big")) % _MODULUS
        # After hashing: the content is the same wherever its images lie.
        content["images"] = [image.described | image.reference for image in images]
        embedded = [image.member for image in images if image.member]
        text = canonical_json(content).encode()
        self.crc32 += zlib.crc32(text).to_bytes(4, "big")
        return f"e{row['epoch']:03d}-{row['position']:09d}", [("json", text), *embedded]

    def _image(self, index: int, source: str, key: str) -> _Image:
        """The image with the number `index` of a sample.

        Raises:
            UserError: the media folder lacks it.
        """
        if (found := self._found.get((source, key))) is None:
            raise UserError(f"the plan shows the image {key} of {source}, which its media folder lacks: run plan again")
        described = {"source": source, "key": key, "width": found.width, "height": found.height, "sha256": found.sha256}
        if self.embed:
            return _Image(described, {}, (f"i{index}.{found.format}", self.store.read_row(source, found)))
        return _Image(described, {"ref": self._reference(source, found)}, None)

    def _reference(self, source: str, found: MediaRow) -> list[str | int]:
        shard = self.store.shard(source, found)
        relative = os.path.relpath(shard, self.root)
        if relative.startswith(os.pardir):
            raise UserError(f"{shard} is not below {self.root}, so a blend cannot refer to it: use images: embedded")
        return [Path(relative).as_posix(), found.offset, found.length]


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("--plan", required=True, type=Path, help="plan/<blend>/<part>.parquet, beside its manifest")
    arguments.add_argument("--records", required=True, type=Path, help="folder of the record tables")
    arguments.add_argument("--media", nargs="*", action="extend", default=[], metavar="SOURCE=FOLDER", help="all media")
    arguments.add_argument("--settings", required=True, help="JSON: tokens and images of the blend; or @file")
    arguments.add_argument("--root", required=True, type=Path, help="results root, which references are relative to")
    arguments.add_argument("--shards", required=True, type=int, help="number of shards of the part")
    arguments.add_argument("--index", required=True, type=int, help="number of the shard to write, from 0")
    arguments.add_argument("--out", required=True, type=Path, help="folder to write: blend/<blend>/<part>")
    args = arguments.parse_args()
    settings, media = load_settings(BlendStorageConfig, args.settings), media_folders(args.media)
    write_shard(args.plan, args.records, media, settings, args.root, args.out, args.index, args.shards)


if __name__ == "__main__":
    run_program(main)
