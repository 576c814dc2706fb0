"""A Kubernetes cluster as `profiles/kubernetes` uses it: its settings, and calls of kubectl whose failures are sorted.

A call fails for good (the cluster refused it, or kubectl is not installed), or because the API cannot be reached now.
The second kind is repeated by the callers, with growing pauses, and never means that a job has ended.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from scripts.common.cli import load_settings
from scripts.common.errors import UserError
from scripts.config.base import Section

SETTINGS_VARIABLE = "VISUALCHAT_K8S"
STATE_VARIABLE = "SNAKEMAKE_CLUSTER_SIDECAR_VARS"
"""Set by the executor plugin to what the watcher printed first: the folder that it shares with the other commands."""
RUN_LABEL = "visualchat-run"
"""Label of all jobs of one Snakemake process; the value is the name of the watcher's folder."""

_CALL_SECONDS = 60
_PAUSES = (1, 2, 4, 8, 15, 30)
# The reasons of an answer that repeating does not change; kubectl prints them as `Error from server (Forbidden): ...`.
# Unauthorized is not among them: credentials expire and are renewed.
_PERMANENT = (
    "(AlreadyExists)",
    "(BadRequest)",
    "(Forbidden)",
    "(Invalid)",
    "(MethodNotAllowed)",
    "(NotFound)",
    "error validating",
    "unknown command",
    "unknown flag",
)


class ClusterConfig(Section):
    """Settings of a Kubernetes cluster."""

    namespace: str = "default"
    """Namespace of the jobs."""
    image: str
    """Container image with the environment of envs/; the same in which Snakemake itself runs."""
    claim: str
    """PersistentVolumeClaim (ReadWriteMany) with repository, data and results."""
    mount: Annotated[str, Field(pattern="^/.+")] = "/data"
    """Mount path of the claim in every pod; Snakemake is started below it."""
    gpu: str = "nvidia.com/gpu"
    """Resource name of a GPU."""
    selector: dict[str, str] = Field(default={})
    """Labels of the nodes that may run jobs with GPUs, such as `cloud.google.com/gke-accelerator`."""
    shared_memory_gb: Annotated[int, Field(ge=1)] = 32
    """Size of /dev/shm in pods with GPUs: NCCL and the processes that decode images use it."""
    grace_seconds: Annotated[int, Field(ge=1)] = 300
    """Time that an evicted pod has to save a checkpoint."""
    poll_seconds: Annotated[int, Field(ge=1)] = 10
    """Pause between two queries for the status of all jobs."""
    retry_seconds: Annotated[int, Field(ge=1)] = 600
    """How long creating a job, and deleting what an interrupted Snakemake left, is repeated while the API cannot be
    reached. Queries are repeated for as long as Snakemake runs."""


class UnavailableError(Exception):
    """The API could not be reached, or its answer was cut off; nothing is known about the request."""


class RefusedError(UserError):
    """The cluster refused a request for good; the message is kubectl's."""


def cluster_settings() -> ClusterConfig:
    """The settings in the file that `VISUALCHAT_K8S` names.

    Raises:
        UserError: the variable is not set, or the file is missing or invalid.
    """
    path = os.environ.get(SETTINGS_VARIABLE)
    if not path:
        raise UserError(
            f"{SETTINGS_VARIABLE} must name the JSON file with the settings of the cluster (docs/kubernetes.md)"
        )
    try:
        return load_settings(ClusterConfig, "@" + path)
    except OSError as error:
        raise UserError(f"{SETTINGS_VARIABLE} names {path}, which cannot be read: {error.strerror}") from None


def kubectl(cluster: ClusterConfig, *arguments: str, stdin: str = "", inherit: Sequence[int] = ()) -> str:
    """Run kubectl in a session of its own, so that Ctrl-C in the terminal does not reach it; return what it prints.

    Args:
        cluster: its settings.
        arguments: of kubectl, after the namespace.
        stdin: text for its standard input.
        inherit: file descriptors that stay open in it.

    Raises:
        UnavailableError: the API cannot be reached, or did not answer within a minute.
        RefusedError: the API refused the request.
        UserError: kubectl cannot be started.
    """
    command = ["kubectl", "--namespace", cluster.namespace, *arguments]
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_CALL_SECONDS,
            check=False,
            pass_fds=inherit,
            start_new_session=True,
        )
    except OSError as error:
        raise UserError(f"kubectl cannot be run: {error}; it must be in PATH (docs/kubernetes.md)") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{' '.join(command[:4])} did not end within {_CALL_SECONDS} s") from None
    if done.returncode:
        message = f"{' '.join(command[:4])} failed: {done.stderr.strip()[:1000]}"
        if any(reason in done.stderr for reason in _PERMANENT):
            raise RefusedError(message)
        raise UnavailableError(message)
    return done.stdout


def pauses() -> Iterator[int]:
    """Seconds to wait before each further attempt: growing, then constant."""
    yield from _PAUSES
    while True:
        yield _PAUSES[-1]


def offer_commands() -> None:
    """Let this process find the commands of `profiles/kubernetes`, and let them run on its interpreter.

    The executor plugin starts some commands without a shell, as one name without arguments; in PATH they are found from
    any working directory.
    """
    commands = str(Path(__file__).resolve().parents[2] / "profiles/kubernetes/bin")
    if commands not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), commands])
    os.environ["VISUALCHAT_PYTHON"] = sys.executable
