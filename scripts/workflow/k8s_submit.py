"""Submit a step as a Kubernetes job (`profiles/kubernetes`).

    python -m scripts.workflow.k8s_submit JOBSCRIPT      creates the job, prints its name

All pods and Snakemake itself mount one volume (ReadWriteMany) as their working directory, at the same path, and use the
same image, so that checkpoints, referenced shards and logs are available everywhere, as on any cluster. The settings of
the cluster are read from the JSON file that VISUALCHAT_K8S names; `ClusterConfig` defines its keys.

The name of a job is a hash of the run and its job script, so that a request can be repeated if its answer is lost: the
second one finds the first one's job. `k8s_watch` queries the jobs and deletes them when Snakemake ends.

The first process of a pod forwards SIGTERM to all processes in the pod, which bash alone would not do: a training then
has `grace_seconds` to save a checkpoint, and the next attempt continues.
"""

import fcntl
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program
from scripts.common.files import text_sha256
from scripts.workflow.k8s_cluster import (
    RUN_LABEL,
    STATE_VARIABLE,
    ClusterConfig,
    RefusedError,
    UnavailableError,
    cluster_settings,
    kubectl,
    pauses,
)
from scripts.workflow.k8s_watch import accepts_jobs

_INIT = """trap 'kill -TERM -1' TERM
bash -c "$0" &
while kill -0 $! 2>/dev/null; do wait $!; status=$?; done
exit $status
"""


def manifest(cluster: ClusterConfig, properties: dict[str, Any], script: str, run: str) -> dict[str, Any]:
    """The Kubernetes job that runs a job script.

    Args:
        cluster: its settings.
        properties: of the job, as Snakemake gives them: rule, jobid, threads, resources.
        script: the text of the job script.
        run: the value of the label that all jobs of one Snakemake process have.

    Raises:
        UserError: the step needs several nodes.
    """
    rule, resources = properties.get("rule", "group"), properties["resources"]
    if resources.get("nodes", 1) > 1:
        raise UserError(
            f"{rule} needs {resources['nodes']} nodes, but a job of this profile is one pod. Start one process per "
            "node as described in docs/kubernetes.md; the next run of Snakemake uses its output"
        )
    memory = f"{resources.get('mem_mb', 1000)}M"
    requests, limits = {"cpu": str(properties.get("threads", 1)), "memory": memory}, {"memory": memory}
    mounts = [{"name": "data", "mountPath": cluster.mount}]
    volumes: list[dict[str, Any]] = [{"name": "data", "persistentVolumeClaim": {"claimName": cluster.claim}}]
    pod: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": cluster.grace_seconds}
    if gpus := resources.get("gpu"):
        limits[cluster.gpu] = str(gpus)
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108 - a mount point, not a temporary file
        size = f"{cluster.shared_memory_gb}Gi"
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}})
        pod |= {"nodeSelector": cluster.selector, "tolerations": [{"key": cluster.gpu, "operator": "Exists"}]}
    container = {
        "name": "step",
        "image": cluster.image,
        "command": ["bash", "-c", _INIT, script],
        "workingDir": os.getcwd(),
        "resources": {"requests": requests, "limits": limits},
        "volumeMounts": mounts,
    }
    job: dict[str, Any] = {"backoffLimit": 0, "ttlSecondsAfterFinished": 86400}
    if minutes := resources.get("runtime"):
        job["activeDeadlineSeconds"] = 60 * int(minutes)
    name = re.sub("[^a-z0-9]+", "-", rule.lower()).strip("-")[:32]
    unique = text_sha256(f"{run}\n{script}")[:12]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"visualchat-{name}-{unique}", "labels": {"app": "visualchat", RUN_LABEL: run}},
        "spec": job | {"template": {"spec": pod | {"containers": [container], "volumes": volumes}}},
    }


def properties_of(script: str) -> dict[str, Any]:
    """The properties of a job, which Snakemake writes into its job script as a comment.

    Raises:
        UserError: the script has no such comment.
    """
    match = re.search(r"^# properties = (\{.*\})$", script, re.MULTILINE)
    if not match:
        raise UserError(
            "the job script has no line `# properties = {...}`; it must come from Snakemake's cluster-generic"
        )
    return json.loads(match[1])


def submit(cluster: ClusterConfig, path: Path, state: Path) -> str:
    """Create the Kubernetes job of a job script, or find the one that an earlier request created; return its name.

    Args:
        cluster: its settings.
        path: the job script.
        state: the folder of the watcher, see `k8s_watch`.

    Raises:
        UserError: the script is not Snakemake's, the cluster refuses the job, it cannot be reached for `retry_seconds`,
            or Snakemake has ended.
    """
    script = path.read_text(encoding="utf-8")
    job = manifest(cluster, properties_of(script), script, state.name)
    deadline, later = time.monotonic() + cluster.retry_seconds, pauses()
    # kubectl inherits the lock: the watcher waits for it even if this process is killed.
    with open(state / "submitting", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while accepts_jobs(state):
            try:
                kubectl(cluster, "create", "--filename", "-", stdin=json.dumps(job), inherit=[lock.fileno()])
            except RefusedError as refused:
                if "(AlreadyExists)" not in str(refused):
                    raise
            except UnavailableError as error:
                if time.monotonic() > deadline:
                    raise UserError(f"the API did not answer for {cluster.retry_seconds} s: {error}") from None
                print(f"the job could not be created yet: {error}", file=sys.stderr)
                _wait(next(later), state)
                continue
            return job["metadata"]["name"]
    raise UserError("Snakemake has ended, so the job was not created")


def _wait(seconds: float, state: Path) -> None:
    """Wait, but not longer than Snakemake runs."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and accepts_jobs(state):
        time.sleep(0.2)


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("jobscript", type=Path, metavar="JOBSCRIPT", help="job script that Snakemake has written")
    options = arguments.parse_args()
    # A request that is under way is finished, so that the watcher can delete what it created.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cluster = cluster_settings()
    state = Path(os.environ.get(STATE_VARIABLE, ""))
    if not (state / "submitting").is_file():
        raise UserError(
            "the watcher of the jobs (cluster-generic-sidecar-cmd of profiles/kubernetes) does not run; its own "
            "message above has the reason"
        )
    print(submit(cluster, options.jobscript, state))


if __name__ == "__main__":
    run_program(main)
