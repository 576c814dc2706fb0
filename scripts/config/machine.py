"""What of the machine that plans a workflow decides about a configuration: its GPUs and its CPU cores.

Each job of a workflow reads the configuration again, on a cluster on another machine. So the workflow puts what it
found into the environment of its jobs, which then complete the configuration as it did: a job that completed it by the
node's GPUs would get other settings than were planned, and be planned again afterwards.
"""

import json
import os
from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass

from scripts.common.gpus import automatic_precision, present

_VARIABLE = "VISUALCHAT_PLANNED_ON"


@dataclass(frozen=True)
class Machine:
    """The number format that its GPUs compute in (bf16, or fp32 without such GPUs), their number, and its cores."""

    precision: str
    gpus: int
    cores: int


def planning_machine(environment: Mapping[str, str]) -> Machine:
    """The machine on which the workflow was planned, or this one outside of a workflow's jobs."""
    if planned := environment.get(_VARIABLE):
        return Machine(**json.loads(planned))
    return Machine(automatic_precision(environment), len(present(environment)), os.cpu_count() or 1)


def plan_here(environment: MutableMapping[str, str]) -> None:
    """Let jobs that get `environment` complete their configuration as this machine does."""
    environment.pop(_VARIABLE, None)
    environment[_VARIABLE] = json.dumps(asdict(planning_machine(environment)))
