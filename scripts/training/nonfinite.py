"""The error of a step whose loss or gradient is not finite, with the names of the conversations that cause it."""

from collections.abc import Sequence
from typing import NoReturn

import torch.distributed as dist

from scripts.common.errors import PermanentError
from scripts.training.dataset import MicroBatchDataset
from scripts.training.engine import TrainingEngine


def raise_nonfinite(what: str, engine: TrainingEngine, batches: MicroBatchDataset, steps: range) -> NoReturn:
    """Raise the error that names the conversations of `steps` whose loss or gradient is not finite.

    All ranks must call it. `what` describes the number that was not finite.

    Raises:
        PermanentError: always.
    """
    rows = [row for step in steps for row in batches.conversations(step)]
    bad = engine.find_nonfinite([batch for _, batch in rows], batches.filler())
    if found := _of_all_ranks([rows[number][0] for number in bad]):
        where = f"Computed one by one, these conversations give no finite number: {', '.join(found)}"
    else:
        uids = _of_all_ranks([uids for uids, _ in rows])
        where = f"Each conversation alone gives a finite number; they are {', '.join(uids)}"
    raise PermanentError(
        f"{what}. The same settings and data would end here again; lower learning_rate, raise warmup_steps, or "
        f"check the data. {where}"
    )


def _of_all_ranks(values: Sequence[str]) -> list[str]:
    """The values of all ranks, one rank after the other."""
    by_rank: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(by_rank, list(values))
    return [value for values in by_rank for value in values]
