"""The report's cards of datasets: kept and dropped rows, licence, statistics of texts and images, and samples.

Reads `records/<dataset>.report.json` and the table in the same folder; for a join, which has no records, the plan of
its blend.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from model.messages import message_text
from scripts.blending.plan_summary import example_text
from scripts.blending.plan_table import read_plan
from scripts.blending.record_store import RecordStore
from scripts.blending.render import messages as render_messages
from scripts.common.files import open_table, read_json
from scripts.common.formatting import format_count, humanize
from scripts.config.registry import DATASETS
from scripts.evaluation.results import HELDOUT
from scripts.reporting.data import EXAMPLES
from scripts.reporting.report_images import ReportImages

SAMPLES = 3
_ROWS_READ = 2048
"""Samples are chosen among the first rows of a table, so that a large one need not be read completely."""
_MAX_ROUNDS = 6


def cards(
    reports: Iterable[Path], verdicts: Iterable[Path], plans: Iterable[Path], report_images: ReportImages
) -> list[dict[str, Any]]:
    """The cards of all datasets that have a report, and of the joins in the plans, sorted by name."""
    reports = list(reports)
    validated = {verdict["name"]: verdict for verdict in map(read_json, verdicts)}
    result = [_of_records(path, validated, report_images) for path in reports]
    result += _of_joins(sorted(plans), reports[0].parent if reports else None, report_images)
    return sorted(result, key=lambda card: card["name"])


def _of_records(path: Path, validated: Mapping[str, dict], report_images: ReportImages) -> dict[str, Any]:
    report = read_json(path)
    verdict = validated.get(report["dataset"], {})
    expected = report["expected"]
    facts = [
        (
            "rows found",
            format_count(report["rows"]) + (f" of {format_count(expected)} published" if expected is not None else ""),
        ),
        ("rows kept", format_count(report["kept"])),
        ("conversations", format_count(report["records"])),
        (
            "images",
            format_count(report["images"]) + (f" of {format_count(verdict['images_named'])} named" if verdict else ""),
        ),
    ]
    table = path.with_name(f"{report['dataset']}.parquet")
    return {
        "name": report["dataset"],
        "licence": report["licence"],
        "facts": facts + _measures(report.get("statistics", {})),
        "dropped": _reasons(report["dropped"]),
        "notes": _reasons(report["notes"]),
        "samples": list(_samples(table, report_images)) if table.is_file() else [],
    }


def _measures(statistics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Statistics of conversations as (label, text); wordings are left out where there is only one."""
    labels = {
        "rounds": "rounds per conversation",
        "images": "images per conversation",
        "question_words": "words per question",
        "answer_words": "words per answer",
        "wordings": "alternative wordings",
    }
    known = [(name, label, statistics[name]) for name, label in labels.items() if name in statistics]
    return [
        (label, format_count(measure["max"]) if measure["mean"] == measure["max"] else _spread(measure))
        for name, label, measure in known
        if name != "wordings" or measure["max"] > 1
    ]


def _spread(measure: Mapping[str, Any]) -> str:
    return f"{measure['mean']:g} on average, at most {format_count(measure['max'])}"


def _reasons(entries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"name": humanize(name), "count": format_count(entry["count"]), "examples": entry["examples"][:EXAMPLES]}
        for name, entry in entries.items()
    ]


def _samples(table: Path, report_images: ReportImages) -> Iterator[list[dict[str, Any]]]:
    """A few conversations of a table of records, chosen by hash, with the first option of every choice group."""
    with open_table(table) as file:
        batch = next(file.iter_batches(_ROWS_READ), None)
    rows = batch.to_pylist() if batch is not None else []
    for record in sorted(rows, key=lambda row: hashlib.sha256(row["uid"].encode()).digest())[:SAMPLES]:
        row = {
            "uids": [record["uid"]],
            "choices": [[0] * len(record["groups"])],
            "rounds": [list(range(len(record["rounds"])))],
            "offsets": [0],
            "named": [False],
        }
        yield _conversation(render_messages(row, {record["uid"]: record}), record["images"], report_images)


def _conversation(
    messages: list[dict[str, Any]], images: list[Mapping[str, str]], report_images: ReportImages
) -> list[dict[str, Any]]:
    """The first rounds of a conversation: new images, question and answer."""
    turns = [message for message in messages if message["role"] != "system"]
    rounds: list[dict[str, Any]] = []
    before = 0
    for question, answer in list(zip(turns[::2], turns[1::2], strict=True))[:_MAX_ROUNDS]:
        indices = [part["index"] for part in question["content"] if part["type"] == "image"]
        shown = [report_images.stored(images[index]["source"], images[index]["key"], index + 1) for index in indices]
        text = message_text(question, before)
        before += len(indices)
        rounds.append({"images": shown, "question": text, "answer": message_text(answer)})
    return rounds


def _of_joins(plans: list[Path], records: Path | None, report_images: ReportImages) -> Iterator[dict[str, Any]]:
    """Cards of the joins, from the first epoch that has conversations of them."""
    seen: set[str] = set()
    for path in plans:
        manifest = read_json(path)
        if manifest["epoch"] == HELDOUT:
            continue
        for name, account in manifest["datasets"].items():
            if "joins" in account and name not in seen and account["realised"]:
                seen.add(name)
                yield _of_join(name, account, path, records, report_images)


def _of_join(
    name: str, account: Mapping[str, Any], plan: Path, records: Path | None, report_images: ReportImages
) -> dict:
    facts = [
        ("joins", ", ".join(account["joins"])),
        ("pairs that can be joined", f"{format_count(account['usable'])} of {format_count(account['records'])}"),
        ("conversations in the first epoch", format_count(account["realised"])),
        ("images in them", format_count(account["images"])),
        ("tokens in them", format_count(account["tokens"])),
    ]
    dropped = {reason: {"count": number, "examples": []} for reason, number in account["dropped"].items()}
    for reason, lost in account["dropped_conversations"].items():
        dropped[reason] = lost | {"examples": [example_text(example) for example in lost["examples"]]}
    table = plan.with_suffix(".parquet")
    samples = list(_joined(name, table, records, report_images)) if records and table.is_file() else []
    licence = DATASETS[name].licence if name in DATASETS else f"those of {', '.join(account['joins'])}"
    return {
        "name": name,
        "licence": licence,
        "facts": facts,
        "dropped": _reasons(dropped),
        "notes": [],
        "samples": samples,
    }


def _joined(name: str, plan: Path, records: Path, report_images: ReportImages) -> Iterator[list[dict[str, Any]]]:
    table, _ = read_plan(plan)
    rows = [row for row in table.slice(0, _ROWS_READ).to_pylist() if row["dataset"] == name][:SAMPLES]
    uids = [uid for row in rows for uid in row["uids"]]
    by_uid = RecordStore(records, uids).fetch(uids) if uids else {}
    for row in rows:
        yield _conversation(render_messages(row, by_uid), row["images"], report_images)
