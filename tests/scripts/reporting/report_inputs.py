"""What a report reads, with hostile strings in every text: of runs, media and data as other programs write it."""

import json
from pathlib import Path

import pyarrow as pa

from scripts.common.files import write_json, write_table
from scripts.inference.blend_reader import BlendReader
from scripts.media.store import INDEX_SCHEMA
from scripts.media.tarshard import ShardWriter

HOSTILE = "</td><script>alert('x')</script>\"' onload=\"x()"


def spoil(folder: Path) -> None:
    """Make the answers of a run wrong and hostile, and the questions of its suite too; held-out ones stay the same."""
    for path in folder.glob("[!.]*/final.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        added = "" if path.parent.name == "heldout" else HOSTILE
        changed = [line | {"output": HOSTILE, "question": f"{line['question']}{added}"} for line in lines]
        changed = [line | {"correct": None if line["correct"] is None else False} for line in changed]
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))


def forgetting(run: str, same: bool) -> dict:
    """What `scripts.forgetting` writes; only the second of two answers is the same, unless both are."""

    def row(value: float) -> dict:
        return {"value": value, "interval": [value / 2, value * 2], "tokens": 90, "texts": 2}

    def side(text: str) -> dict:
        return {"text": text, "tokens": 9, "finished": text != "Paris", "log_likelihood": {}, "kl": 0.5}

    means = {"kl": row(0.0 if same else 0.4), "before": row(-0.25), "after": row(-0.25 if same else -1.75)}
    prompts = [
        {"group": "facts", "prompt": f"Capital? {HOSTILE}", "same": same, "before": side("It is Paris.")},
        {"group": "facts", "prompt": "And 2 + 2?", "same": True, "before": side("4"), "after": side("4")},
    ]
    prompts[0]["after"] = side("It is Paris." if same else "Paris")
    return {
        "run": run,
        "before": "1" * 64,
        "settings": {"dtype": "float32"},
        "prompts": prompts,
        "same": 2 if same else 1,
        "answers": {"before": means, "after": means},
        "own": None if same else {"questions": means, "answers": means},
        "verdict": "same" if same else "forgotten",
    }


def write_run(folder: Path, name: str) -> None:
    state = folder / "state/0123"
    weights = {"sha256": "0" * 64, "step": 40, "heldout_loss": 1.0, "weights": "w.safetensors"}
    finished = {"v": 1, "run": name, "fingerprint": "0123", "state": "state/0123", "steps": 40, "epochs": 2}
    finished["warnings"] = [f"images disturb {name} {HOSTILE}"]
    write_json(folder / "finished.json", finished | {"final": weights, "best": weights, "plans": ["3" * 64] * 2})
    settings = {"attention": name, "epochs": 2, "model": "tiny-1", "blend": "demo-1", "seed": 0}
    write_json(state / "settings.json", settings | {"learning_rate": 0.001, "note": HOSTILE})
    write_json(state / "inputs.json", {"blend": ["1" * 64]})
    write_json(state / "environment.json", {"libraries": {"torch": "2"}})
    speed = {"tokens_per_second": 1234.5, "supervised_tokens_per_second": 321.0, "data_wait": 0.125}
    speed |= {"flops_per_second": 4_000_000_000, "model_flops_utilisation": 0.375, "memory_bytes": 2**31}
    steps = [{"step": step, "loss": 5 / step} for step in range(1, 41)]
    held = [{"step": step, "heldout_loss": 6 / (step + 1)} for step in (0, 20, 40)]
    (state / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps + held))
    store = {"images": 5280, "bytes": 2_768_240_640, "encoder_flops_per_epoch": 876e12, "encoder_share": 0.2345}
    write_json(state / "throughput.json", speed | ({"features": store} if name == "mmca" else {}))


def write_media(folder: Path, blend: BlendReader) -> None:
    samples = [blend[unit] for unit in range(len(blend))]
    images = {sha: data for sample in samples for sha, data in zip(sample.image_sha256, sample.images, strict=True)}
    rows = []
    with ShardWriter(folder / "coco-00000-of-00001.tar") as shard:
        for sha256, data in sorted(images.items()):
            (offset,) = shard.add(sha256[:16], [("jpg", data)])
            row = {"key": sha256[:16], "path": "", "shard": 0, "offset": offset, "length": len(data), "sha256": sha256}
            kind = {"width": 40, "height": 30, "format": "jpg", "mode": "RGB", "orientation": 1, "flags": []}
            rows.append(row | kind)
    write_table(folder / "index.parquet", pa.Table.from_pylist(rows, INDEX_SCHEMA))
    shards = [{"name": "coco-00000-of-00001.tar", "images": len(rows), "bytes": shard.bytes, "sha256": shard.sha256}]
    manifest = {"v": 1, "source": "coco", "licence": HOSTILE, "images": len(rows), "rejected": {"zero_bytes": 3}}
    manifest |= {"flags": {"cmyk": 2}, "sizes": {side: {"median": 40, "max": 50} for side in ("width", "height")}}
    write_json(folder / "manifest.json", manifest | {"shards": shards})


def write_data(root: Path) -> None:
    dropped = {"image_missing": {"count": 4, "examples": [HOSTILE]}}
    counts = {"rows": 1234, "expected": 2000, "kept": 1230, "records": 615, "images": 17, "notes": {}}
    counts["statistics"] = {
        "rounds": {"mean": 1.5, "median": 1, "max": 3},
        "wordings": {"mean": 1, "median": 1, "max": 1},
    }
    write_json(
        root / "records/llava.report.json",
        {"v": 1, "dataset": "llava", "licence": HOSTILE, "dropped": dropped, "sha256": "2" * 64} | counts,
    )
    write_json(root / "validated/llava.json", {"v": 1, "name": "llava", "ok": True, "images_named": 19})
    totals = {"conversations": 77, "rounds": 80, "images": 90, "tokens": 12345, "labels": 678, "sha256": "3" * 64}
    totals |= {"packing": True, "units": 5, "sequence": 4000, "epoch_size": None}
    asked = {"samples": 0.25, "repeat": 2, "proportion": None, "concat": 3, "after": 1.0}
    account = {"asked": asked, "dropped": {"held_out": 9}, "realised": 71, "tokens": 1200, "images": 85}
    lost = {"too_many_tokens": {"count": 2, "examples": [{"uids": ["llava:7"], "tokens": 5000, "limit": 4000}]}}
    account |= {"dropped_conversations": lost}
    account |= {"wanted": 160, "drawn": 150}
    waiting = {"asked": asked, "starts_in_epoch": 1, "realised": 0}
    for name, epoch, datasets in (
        ("epoch-000", 0, {"llava": waiting}),
        ("epoch-001", 1, {"llava": account}),
        ("heldout", "heldout", {"llava": account}),
    ):
        plan = {"v": 1, "blend": f"blend{HOSTILE}", "epoch": epoch, "datasets": datasets}
        write_json(root / f"plan/demo/{name}.json", plan | totals)
