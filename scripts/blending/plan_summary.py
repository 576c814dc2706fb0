"""A plan as text and numbers, to be read before GPUs are paid for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

_BINS = 12
_BAR = 40
_MEASURES = ("tokens", "images")


def describe(table: pa.Table, manifest: Mapping[str, Any]) -> str:
    """The plan as text for a terminal."""
    tokens = table["n_tokens"].to_numpy()
    units = np.bincount(table["pack"].to_numpy(), tokens).astype(np.int64)
    part = manifest["epoch"] if isinstance(manifest["epoch"], str) else f"epoch {manifest['epoch']}"
    lines = [f"blend {manifest['blend']}, {part}    plan {manifest['sha256'][:16]}", ""]
    lines += _columns("<><", _totals(tokens, units, manifest))
    if len(tokens):
        lines += ["", f"tokens per conversation (longest {tokens.max():,}, limit {manifest['sequence']:,})"]
        lines += _histogram(tokens)
    lines += ["", "datasets"]
    lines += _datasets(manifest["datasets"], manifest["epoch_size"])
    lines += ["", "licences (records shown)"]
    lines += _columns("<>", [[name, f"{count:,}"] for name, count in manifest["licences"].items()])
    return "\n".join(lines) + "\n"


def _totals(tokens: np.ndarray, units: np.ndarray, manifest: Mapping[str, Any]) -> list[list[str]]:
    batch = manifest["global_batch"]
    batches = f"in {manifest['global_batches']:,} global batches of {batch:,}"
    names = ("rounds", "images", "tokens")
    means = [[name, f"{manifest[name]:,}", _per_conversation(manifest[name], manifest)] for name in names]
    lines = [
        ["conversations", f"{manifest['conversations']:,}", "" if manifest["packing"] else batches],
        *means,
        ["supervised", f"{manifest['labels']:,}", f"{_share(manifest['labels'], manifest['tokens'])} of the tokens"],
        [
            "padding",
            _share(*padding(units, batch)),
            "if global batches are padded to their longest row; micro-batches hold similar ones",
        ],
    ]
    if manifest["packing"]:
        lines.insert(1, ["packs", f"{manifest['units']:,}", batches])
        full = _share(manifest["tokens"], manifest["units"] * manifest["sequence"])
        unpacked = f"one conversation in a row would be padded by {_share(*padding(tokens, batch))}"
        lines.append(["full", full, f"of the positions of packs; {unpacked}"])
    return lines


def padding(tokens: np.ndarray, global_batch: int) -> tuple[int, int]:
    """Padding, and all positions, if every global batch is padded to its longest unit; `tokens` (units,)."""
    firsts = np.arange(0, len(tokens), global_batch)
    if len(firsts) == 0:
        return 0, 0
    sizes = np.diff(np.append(firsts, len(tokens)))
    positions = int((np.maximum.reduceat(tokens, firsts).astype(np.int64) * sizes).sum())
    return positions - int(tokens.sum()), positions


def _histogram(tokens: np.ndarray) -> list[str]:
    counts, edges = np.histogram(tokens, bins=min(_BINS, int(np.ptp(tokens)) + 1))
    edges = np.ceil(edges).astype(int)
    bars = [
        [f"{low:,}-{high:,}", f"{count:,}", "#" * round(_BAR * count / counts.max())]
        for low, high, count in zip(edges[:-1], [*(edges[1:-1] - 1), edges[-1]], counts, strict=True)
    ]
    return _columns(">><", bars)


def _datasets(accounts: Mapping[str, Mapping[str, Any]], epoch_size: int | None) -> list[str]:
    head = ["", "requested", "actual", "of records", "drawn", "tokens", "supervised", "images"]
    rows, notes = [], []
    for name, account in accounts.items():
        settings = account["asked"]
        requested = f"{settings['samples']}"
        if settings["proportion"] is not None:
            requested = f"{settings['proportion']:.1%} of {epoch_size:,}"
        elif settings["repeat"] > 1:
            requested += f" x {settings['repeat']}"
        if "starts_in_epoch" in account:
            rows.append([name, requested, "0", "", "", "", "", ""])
            notes.append(f"  {name}: starts in epoch {account['starts_in_epoch']}")
            continue
        numbers = [account[key] for key in ("realised", "records", "drawn", "tokens", "labels", "images")]
        rows.append([name, requested, *(f"{number:,}" for number in numbers)])
        notes += _notes(name, account)
    return _columns("<>>>>>>>", [head, *rows]) + notes


def example_text(example: Mapping[str, Any]) -> str:
    """A dropped conversation of a plan's manifest: its records, and what it has against the limit that it exceeds."""
    exceeded = [
        f": {example[measure]:,} {measure}, limit {example['limit']:,}" for measure in _MEASURES if measure in example
    ]
    return " + ".join(example["uids"]) + "".join(exceeded)


def _notes(name: str, account: Mapping[str, Any]) -> Iterable[str]:
    settings, cut = account["asked"], account["cut"]
    if account["drawn"] < account["wanted"]:
        yield f"  {name}: {account['wanted']:,} conversations were requested, but only {account['drawn']:,} exist"
    if "joins" in account:
        yield f"  {name}: joins {', '.join(account['joins'][1:])} to {account['joins'][0]} on their images"
    if settings["concat"] > 1:
        made = f"{account['drawn']:,} records in {account['realised']:,} conversations"
        yield f"  {name}: up to {settings['concat']} concatenated, {made}"
    if settings["after"] > 0:
        yield f"  {name}: only from {settings['after']:g} epochs of training on"
    for reason, count in account["dropped"].items():
        yield f"  {name}: {count:,} records not used: {reason.replace('_', ' ')}"
    for reason, dropped in account["dropped_conversations"].items():
        yield f"  {name}: {dropped['count']:,} conversations dropped: {reason.replace('_', ' ')}"
        yield f"    such as {example_text(dropped['examples'][0])}"
    if "overlap" in account:
        yield f"  {name}: {describe_overlap(account['overlap'])}"
    if cut["rounds"]:
        lost = f", {cut['records']:,} records lost with them" if cut["records"] else ""
        yield f"  {name}: {cut['conversations']:,} conversations truncated by {cut['rounds']:,} rounds{lost}"


def describe_overlap(count: int) -> str:
    """What `overlap` in the account of a dataset means, for a person."""
    return (
        f"{count:,} conversations that may be trained on show an image that a held-out row shows; to keep images "
        "apart, hold out by image (holdout.share, without a split of rows), or divide the rows by their images"
    )


def _per_conversation(total: int, manifest: Mapping[str, Any]) -> str:
    return f"{total / manifest['conversations']:.1f} per conversation" if manifest["conversations"] else ""


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0%"


def _columns(alignment: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as aligned columns; `alignment` has one `<` or `>` per column."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(alignment))]
    formats = [f"{{:{side}{width}}}" for side, width in zip(alignment, widths, strict=True)]
    return ["  " + "  ".join(formats).format(*row).rstrip() for row in rows]
