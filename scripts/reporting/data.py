"""The report's sections on data: kept and dropped rows, readable images, and the content of blends.

Reads `records/<dataset>.report.json`, `validated/<dataset>.json`, `media/<source>/manifest.json` and
`plan/<blend>/<part>.json`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scripts.common.files import read_json
from scripts.common.formatting import format_bytes, format_count, humanize
from scripts.evaluation.results import HELDOUT

EXAMPLES = 5
NONE = "\N{EN DASH}"


def dataset_rows(reports: Iterable[str | Path], verdicts: Iterable[str | Path]) -> list[dict[str, Any]]:
    """One row per dataset: rows expected, found, kept and dropped; the cards list the reasons."""
    validated = {verdict["name"]: verdict for verdict in map(read_json, verdicts)}
    rows = []
    for report in map(read_json, reports):
        verdict = validated.get(report["dataset"])
        rows.append(
            {
                "name": report["dataset"],
                "expected": NONE if report["expected"] is None else format_count(report["expected"]),
                "found": format_count(report["rows"]),
                "kept": format_count(report["kept"]),
                "dropped": format_count(report["rows"] - report["kept"]),
                "records": format_count(report["records"]),
                "images": format_count(report["images"])
                + (f" of {format_count(verdict['images_named'])}" if verdict else ""),
            }
        )
    return rows


def source_rows(manifests: Iterable[str | Path]) -> list[dict[str, Any]]:
    """One row per source of images: how many are stored, and how many could not be read with the reasons."""
    return [
        {
            "name": manifest["source"],
            "images": format_count(manifest["images"]),
            "shards": format_count(len(manifest["shards"])),
            "bytes": format_bytes(sum(shard["bytes"] for shard in manifest["shards"])),
            "rejected": format_count(sum(manifest["rejected"].values())),
            "reasons": _reasons(manifest["rejected"]),
            "flags": _reasons(manifest["flags"]),
            "pixels": _pixels(manifest["sizes"]),
            "licence": manifest["licence"],
        }
        for manifest in map(read_json, manifests)
    ]


def _pixels(sizes: Mapping[str, Mapping[str, Any]]) -> str:
    """The median and the largest size of an image."""
    median, largest = (f"{sizes['width'][key]} x {sizes['height'][key]}" for key in ("median", "max"))
    return median if median == largest else f"{median}, at most {largest}"


def blend_tables(plans: Iterable[str | Path]) -> list[dict[str, Any]]:
    """One table per blend: a column per epoch and one for the held-out part, a row per dataset, then totals."""
    blends: dict[str, list[dict[str, Any]]] = {}
    for plan in map(read_json, plans):
        blends.setdefault(plan["blend"], []).append(plan)
    return [_blend_table(name, sorted(parts, key=_part_order)) for name, parts in blends.items()]


def _blend_table(name: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    datasets = sorted({dataset for part in parts for dataset in part["datasets"]})
    totals = [
        {"name": name, "counts": [format_count(part[name]) for part in parts]}
        for name in ("conversations", "rounds", "images", "tokens")
    ]
    totals.append({"name": "supervised tokens", "counts": [format_count(part["labels"]) for part in parts]})
    if any(part["packing"] for part in parts):
        totals.append({"name": "packs", "counts": [_packs(part) for part in parts]})
    return {
        "name": name,
        "parts": ["held out" if part["epoch"] == HELDOUT else f"epoch {part['epoch']}" for part in parts],
        "rows": [_dataset_row(dataset, parts) for dataset in datasets],
        "totals": totals,
        "hashes": [part["sha256"] for part in parts],
    }


def _packs(part: Mapping[str, Any]) -> str:
    """The number of packs and the share of their length that is filled."""
    capacity = part["units"] * part["sequence"]
    return f"{format_count(part['units'])}, {part['tokens'] / capacity:.1%} full" if capacity else "0"


def _cell(account: Mapping[str, Any] | None) -> dict[str, str]:
    """One dataset in one part: conversations, how many were selected and requested if these differ, and the size."""
    if account is None:
        return {"conversations": NONE, "requested": "", "size": ""}
    realised, selected, requested = account["realised"], account.get("drawn", 0), account.get("wanted", 0)
    if realised == selected == requested:
        note = ""
    elif selected == requested:
        note = f"of {format_count(selected)}"
    elif selected == realised:
        note = f"of {format_count(requested)} requested"
    else:
        note = f"{format_count(selected)} of {format_count(requested)} requested"
    size = f"{format_count(account['tokens'])} tokens, {format_count(account['images'])} images" if realised else ""
    return {"conversations": format_count(realised), "requested": note, "size": size}


def _dataset_row(dataset: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    accounts = [part["datasets"].get(dataset) for part in parts]
    unused: dict[str, int] = {}
    for part, account in zip(parts, accounts, strict=True):
        if account and part["epoch"] != HELDOUT:
            lost = account.get("dropped_conversations", {})
            reasons = account.get("dropped", {}) | {reason: dropped["count"] for reason, dropped in lost.items()}
            # Every epoch has the same records, so counts are not added up over epochs.
            unused |= {name: max(number, unused.get(name, 0)) for name, number in reasons.items() if number}
    return {
        "name": dataset,
        "requested": describe_request(
            next(account["asked"] for account in accounts if account), parts[0]["epoch_size"]
        ),
        "cells": [_cell(account) for account in accounts],
        "dropped": _reasons(unused),
    }


def describe_request(entry: Mapping[str, Any], epoch_size: int | None) -> str:
    """The settings of a dataset in a blend, as text; `epoch_size` is that of a blend with proportions."""
    samples = entry["samples"]
    if entry["proportion"] is not None:
        total = "an epoch" if epoch_size is None else format_count(epoch_size)
        samples = f"{entry['proportion']:.1%} of {total}"
    elif not isinstance(samples, str):
        samples = f"{samples:.0%}" if isinstance(samples, float) else format_count(samples)
    parts = [samples]
    if entry["repeat"] > 1:
        parts.append(f"{entry['repeat']} times")
    if entry["concat"] > 1:
        parts.append(f"up to {entry['concat']} in one conversation")
    if entry["after"] > 0:
        parts.append(f"after {entry['after']:g} epochs")
    return ", ".join(parts)


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{humanize(name)}: {format_count(number)}" for name, number in sorted(counts.items()))


def _part_order(part: Mapping[str, Any]) -> tuple[bool, int]:
    held_out = part["epoch"] == HELDOUT
    return held_out, 0 if held_out else part["epoch"]
