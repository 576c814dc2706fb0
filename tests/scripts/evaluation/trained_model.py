"""A tiny model that has learnt colours, so that evaluation can be tested with correct and incorrect answers.

It is trained for a few seconds on the plain-coloured images of `tests.blends` and then answers most questions about
images that it was not trained on. Import the fixture `trained`; all test modules share one model.
"""

import json
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from scripts.common.files import file_sha256
from tests.blends import COLOURS, COUNTS, write_blend
from tests.tiny_models import make_model

STEPS, BATCH, CONVERSATIONS = 110, 16, 64


@dataclass(frozen=True)
class Trained:
    """Folders: `root` holds `model` and the held-out blend `heldout` of 48 conversations."""

    root: Path
    model: Path
    heldout: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Trained:
    """The model, trained once per session."""
    return _train(tmp_path_factory.getbasetemp() / "trained")


@cache
def _train(root: Path) -> Trained:
    import torch

    from scripts.inference.blend_reader import BlendReader
    from scripts.inference.decoded_images import DecodedImageCache
    from scripts.inference.model_loading import load_model

    folder = make_model(root)
    blend = BlendReader(write_blend(root / "train", CONVERSATIONS, folder, shards=1), root)
    model, processor = load_model(folder)
    images = DecodedImageCache(processor)
    encoded = []
    for sample in (blend[unit] for unit in range(len(blend))):
        pictures = map(images.get, sample.image_sha256, sample.images)
        encoded.append((processor.encode(sample.messages), list(pictures)))
    model.vision_tower.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    model.train()
    for step in range(STEPS):
        first = step * BATCH % CONVERSATIONS
        optimizer.zero_grad()
        model(**processor.collate(encoded[first : first + BATCH])).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval().save_pretrained(folder)
    heldout = write_blend(root / "heldout", 48, folder, stem="heldout", seed=1, shards=1)
    return Trained(root, folder, heldout)


def rewritten(blend: Path, out: Path, change: Callable[[dict], dict | None]) -> Path:
    """Write a copy of a blend of one shard in which `change` has edited every JSON member, or dropped it by `None`."""
    manifest = json.loads((blend / "manifest.json").read_text())
    shutil.copytree(blend, out)
    path = out / manifest["shards"][0]["name"]
    samples: dict[str, list] = {}
    with tarfile.open(path) as tar:
        for member in tar.getmembers():
            samples.setdefault(member.name.partition(".")[0], []).append((member.name, tar.extractfile(member).read()))
    offsets, counts = [], []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for (name, content), *images in samples.values():
            changed = change(json.loads(content))
            if changed is None:
                continue
            offsets.append(tar.offset)
            text = json.dumps(changed).encode()
            counts.append((0, changed["n_tokens"], changed["n_labels"], zlib.crc32(text)))
            for member, data in [(name, text), *images]:
                header = tarfile.TarInfo(member)
                header.size = len(data)
                tar.addfile(header, BytesIO(data))
        offsets.append(tar.offset)
    Path(f"{path}.idx").write_bytes(struct.pack(f"<{len(offsets)}Q", *offsets))
    count = len(offsets) - 1
    (out / "units.idx").write_bytes(struct.pack(f"<{count + 1}Q", *range(count + 1)))
    np.save(out / "counts.npy", np.array(counts, COUNTS))
    manifest["shards"][0] |= {"bytes": path.stat().st_size, "units": count, "conversations": count}
    manifest["shards"][0]["index_sha256"] = file_sha256(f"{path}.idx")
    files = {name: file_sha256(out / name) for name in ("units.idx", "counts.npy")}
    manifest |= {"units": count, "conversations": count, "files": files}
    (out / "manifest.json").write_text(json.dumps(manifest))
    return out


def write_suite(folder: Path, answers: bool = True) -> Path:
    """Write a suite about plain-coloured images in the original's form, with references beside it; return its path."""
    (folder / "images").mkdir(parents=True)
    for name, colour in COLOURS.items():
        Image.new("RGB", (40, 30), colour).save(folder / f"images/{name}.png")
    colour, count = "Which colour is the first image?", "How many images are there?"
    tests = {
        "alone": [[colour, "images/green.png"], [count]],
        "words": [["Say red.", ""]],
        "pair": [[colour, "images/blue.png images/red.png"], [count]],
    }
    references = {"alone": ["It is green.", "1"], "words": ["It is red."], "pair": [["blue", "It is blue."], None]}
    (folder / "suite.json").write_text(json.dumps(tests))
    if answers:
        (folder / "answers.json").write_text(json.dumps(references))
    return folder / "suite.json"


def write_tasks(folder: Path, sample: bool = False) -> dict[str, Path]:
    """Write task files about plain-coloured images; return their paths by name."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for name, colour in COLOURS.items():
        for number in range(3):
            path = f"images/{name}{number}.png"
            shade = Image.new("RGB", (40 + number, 30), colour)
            shade.save(folder / path)
            answer = f"It is {name}."
            rows.append({"id": f"{name}{number}", "image": path, "question": "Which colour is the first image?"})
            rows[-1] |= {"answer": answer, "group": name, "choices": [f"It is {each}." for each in COLOURS]}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
        "doc_to_visual": "image",
        "doc_to_text": "question",
        "doc_to_target": "answer",
        "test_split": "test",
        "metadata": {"version": 1},
    }
    named = ("exact_match", "bleu", "perplexity")
    options = {"do_sample": True, "temperature": 5.0} if sample else {}
    loud = {"name": "loud", "filter": [{"function": "uppercase"}]}
    versions = ["exact_match", "order_sensitivity", "all_versions", "consistency"]
    tasks = {
        "choices": {"output_type": "multiple_choice", "doc_to_choice": "choices"},
        "free": {
            "metric_list": [{"metric": name} for name in named],
            "generation_kwargs": {"max_new_tokens": 12, **options},
            "filter_list": [{"name": "none", "filter": [{"function": "take_first"}]}, loud],
        },
        "orders": {"cluster_key": "group", "process_results": versions},
        "likely": {"output_type": "loglikelihood"},
    }
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | base | task))
    return {name: folder / f"{name}.yaml" for name in tasks}
