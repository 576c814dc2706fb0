"""Small blend folders, written by hand with `tarfile` for the tests of training and evaluation.

They follow the file formats of the design and share no code with the program that builds real blends, so a test that
reads one also checks the format.
"""

import hashlib
import io
import itertools
import json
import random
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np

from tests.tiny_models import IMAGE_TOKENS

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "white": (250, 250, 250)}
COUNTS = [("dataset", "<i4"), ("tokens", "<i4"), ("labels", "<i4"), ("crc32", "<u4")]
_DATASETS = ("llava", "llava_dial")


def write_blend(
    folder: Path,
    n: int,
    tokenizer: Path,
    *,
    image_tokens: int = IMAGE_TOKENS,
    global_batch: int = 4,
    shards: int = 2,
    stem: str = "train",
    epoch: int = 0,
    seed: int = 0,
    images: str = "embedded",
    root: Path | None = None,
    tokens_identity: str = "tiny",
    pack: int = 1,
) -> Path:
    """Write a blend of `n` conversations about plain-coloured images, some without an image, some with two, some in
    two rounds.

    `tokenizer` is the folder that counts tokens (with the default template). With `images="referenced"` the pictures
    lie in one media shard below `root` instead. `pack` conversations in a row form a unit. Returns `folder`.
    """
    from transformers import AutoTokenizer

    from model.template import Template, encode

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    chooser = random.Random(f"{seed}:{epoch}:{stem}")
    counter = AutoTokenizer.from_pretrained(tokenizer)
    units = []
    for number in range(n):
        colours = [chooser.choice(list(COLOURS)) for _ in range(chooser.choice((0, 1, 1, 2)))]
        messages = _conversation(chooser, colours)
        encoded = encode(messages, counter, Template(), image_tokens)
        units.append((colours, messages, len(encoded), sum(label >= 0 for label in encoded.labels), f"{stem}{number}"))
    for start in range(0, n, global_batch):
        units[start : start + global_batch] = sorted(units[start : start + global_batch], key=lambda unit: -unit[2])

    pictures = {colour: _jpeg(rgb) for colour, rgb in COLOURS.items()}
    references = _write_media(root, pictures) if images == "referenced" else {}
    firsts = [*range(0, n, pack), n]
    units_of = [(len(firsts) - 1) * edge // shards for edge in range(shards + 1)]
    listed, sizes = [], [firsts[end] - firsts[begin] for begin, end in itertools.pairwise(units_of)]
    position, checksums = 0, []
    for index, size in enumerate(sizes):
        samples = []
        for colours, messages, tokens, labels, raw_id in units[position : position + size]:
            dataset = _DATASETS[position % 2]
            member = {
                "v": 1,
                "uids": [f"{dataset}:{raw_id}"],
                "datasets": [dataset],
                "licences": ["test"],
                "epoch": epoch,
                "position": position,
                "pack": position // pack,
                "images": [_image(colour, pictures[colour], references.get(colour)) for colour in colours],
                "messages": messages,
                "n_tokens": tokens,
                "n_labels": labels,
                "form": "single",
                "dataset": dataset,
            }
            key = f"e{epoch:03d}-{position:09d}"
            members = [(f"{key}.json", json.dumps(member).encode())]
            if images == "embedded":
                members += [(f"{key}.i{i}.jpg", pictures[colour]) for i, colour in enumerate(colours)]
            samples.append(members)
            checksums.append(zlib.crc32(members[0][1]))
            position += 1
        path = folder / f"{stem}-{index:05d}-of-{shards:05d}.tar"
        _write_shard(path, samples)
        listed.append({"name": path.name, "sha256": _sha256(path), "bytes": path.stat().st_size, "conversations": size})
        listed[-1]["units"] = units_of[index + 1] - units_of[index]
        listed[-1]["index_sha256"] = _sha256(Path(f"{path}.idx"))
    (folder / "units.idx").write_bytes(struct.pack(f"<{len(firsts)}Q", *firsts))
    counts = [(position % 2, unit[2], unit[3], checksums[position]) for position, unit in enumerate(units)]
    np.save(folder / "counts.npy", np.array(counts, COUNTS))

    manifest = {
        "v": 1,
        "blend": "tiny",
        "epoch": "heldout" if stem == "heldout" else epoch,
        "plan": hashlib.sha256(json.dumps(units).encode()).hexdigest(),
        "content": hashlib.sha256(json.dumps([seed, epoch, stem, n]).encode()).hexdigest(),
        "seed": seed,
        "sequence": 4096,
        "max_images": 8,
        "packing": pack > 1,
        "pack_images": 16 if pack > 1 else None,
        "epoch_size": None,
        "records": dict.fromkeys(_DATASETS, "0" * 64),
        "tokens_identity": tokens_identity,
        "images": images,
        "global_batch": global_batch,
        "units": len(firsts) - 1,
        "conversations": n,
        "tokens": sum(unit[2] for unit in units),
        "labels": sum(unit[3] for unit in units),
        "n_images": sum(len(unit[0]) for unit in units),
        "datasets": {
            name: {"realised": len(range(first, n, 2)), "asked": {"samples": "all"}}
            for first, name in enumerate(_DATASETS)
        },
        "shards": listed,
        "files": {name: _sha256(folder / name) for name in ("units.idx", "counts.npy")},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, indent=1))
    return folder


def _conversation(chooser: random.Random, colours: list[str]) -> list[dict]:
    parts = [{"type": "image", "index": index} for index in range(len(colours))]
    question = "Which colour is the first image?" if colours else f"Say {chooser.choice(list(COLOURS))}."
    answer = colours[0] if colours else question[4:-1]
    messages = [
        {"role": "user", "content": [*parts, {"type": "text", "text": question}]},
        {"role": "assistant", "content": [{"type": "text", "text": f"It is {answer}."}]},
    ]
    if chooser.random() < 0.4:
        messages += [
            {"role": "user", "content": [{"type": "text", "text": "How many images are there?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": str(len(colours))}]},
        ]
    return messages


def _image(colour: str, data: bytes, reference: list | None) -> dict:
    entry = {
        "source": "coco",
        "key": colour,
        "width": 40,
        "height": 30,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return entry | ({"ref": reference} if reference else {})


def _jpeg(rgb: tuple[int, int, int]) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), rgb).save(buffer, "JPEG")
    return buffer.getvalue()


def _write_shard(path: Path, samples: list[list[tuple[str, bytes]]]) -> None:
    offsets = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for members in samples:
            offsets.append(tar.offset)
            for name, data in members:
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        offsets.append(tar.offset)
    Path(f"{path}.idx").write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))


def _write_media(root: Path, pictures: dict[str, bytes]) -> dict[str, list]:
    """Write one media shard below `root`; return each colour's [shard path relative to the root, offset, length]."""
    path = Path(root) / "media/coco/coco-00000-of-00001.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_shard(path, [[(f"{colour}.jpg", data)] for colour, data in sorted(pictures.items())])
    with tarfile.open(path) as tar:
        return {
            member.name.removesuffix(".jpg"): [str(path.relative_to(root)), member.offset_data, member.size]
            for member in tar.getmembers()
        }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
