"""The result of `forgetting` in plain words, for the terminal and the report."""

from collections.abc import Mapping
from typing import Any

FILE = "forgetting.json"
SENTENCES = {
    "same": "It answers text exactly as before training.",
    "close": "It answers text nearly as before training.",
    "drifted": "It answers text noticeably otherwise than before training.",
    "forgotten": "It has forgotten how it talked before training.",
}


def summary_line(result: Mapping[str, Any]) -> str:
    """One line: the verdict, the number of same answers and the drift."""
    parts = [f"{result['same']} of {len(result['prompts'])} answers are the same"]
    parts.append(f"drift on its earlier answers {nats(result['answers']['before']['kl'])}")
    if result["own"]:
        parts.append(f"on held-out answers without their images {nats(result['own']['answers']['kl'])}")
    return f"{result['run']}: {SENTENCES[result['verdict']]} {', '.join(parts)} nats per token"


def drift_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the provenance of a run holds of the result: verdict, number of same answers, drifts with intervals."""
    drifts = {"answers": result["answers"]["before"]["kl"]}
    drifts |= {f"own {name}": row["kl"] for name, row in (result["own"] or {}).items()}
    counts = {"prompts": len(result["prompts"]), "same": result["same"]}
    return {"verdict": result["verdict"], **counts, "kl_per_token": drifts}


def nats(row: Mapping[str, Any]) -> str:
    """A mean per token with its interval."""
    interval = row["interval"]
    return f"{row['value']:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")
