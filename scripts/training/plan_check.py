"""The plan of a run as facts that can be compared: a run that continues must find the plan that it began with.

A state of training is (plan, epoch, unit). Epoch and unit mean nothing in another plan, so another one is refused, with
a message that names what has changed, not only that two hashes differ.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from scripts.common.errors import UserError
from scripts.inference.blend_reader import BlendReader

_FACTS = (
    "blend",
    "seed",
    "tokens_identity",
    "sequence",
    "max_images",
    "packing",
    "pack_images",
    "epoch_size",
    "global_batch",
    "conversations",
    "units",
    "records",
    "plan",
    "content",
)
_SHOWN = 6
_ABSENT = object()


def plan_facts(reader: BlendReader) -> dict[str, Any]:
    """What decides the batches of a part of a blend, as JSON values; how its images are stored does not."""
    facts = {name: reader.manifest[name] for name in _FACTS}
    requested = {name: account["asked"] for name, account in reader.manifest["datasets"].items()}
    return facts | {"datasets": requested}


def check_same_plans(saved: Sequence[dict[str, Any]], readers: Sequence[BlendReader], where: str) -> None:
    """Check that the epochs of `readers` are those with the facts `saved`.

    Raises:
        UserError: they are not; the message names what has changed. `where` says whose facts `saved` are.
    """
    if len(saved) != len(readers):
        raise UserError(f"{where} belongs to a run of {len(saved)} epochs, not of {len(readers)}")
    for epoch, (old, reader) in enumerate(zip(saved, readers, strict=True)):
        if changes := differences(old, plan_facts(reader)):
            raise UserError(
                f"{where} was made with another plan of epoch {epoch} than {reader.folder} holds: {changes}. Undo the "
                "change to continue, or start a run of another name"
            )


def differences(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The differences between the facts of two plans as text; empty if there are none."""
    changes = list(_changes(old, new))
    if len(changes) > 2:
        # Every change shows in the hashes too.
        changes = [change for change in changes if change not in ("plan changed", "content changed")]
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return ", ".join(changes[:_SHOWN]) + more


def _changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name, _ABSENT), new.get(name, _ABSENT)
        if before == after:
            continue
        path = f"{prefix}{name}"
        if before is _ABSENT or after is _ABSENT:
            yield f"{path} {'is new' if before is _ABSENT else 'is gone'}"
        elif isinstance(before, dict) and isinstance(after, dict):
            yield from _changes(before, after, f"{path}.")
        elif isinstance(before, str) and len(before) == 64:
            yield f"{path} changed"
        else:
            yield f"{path} was {before} and is {after}"
