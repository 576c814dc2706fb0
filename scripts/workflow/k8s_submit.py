"""Run steps as Kubernetes jobs: submit, query and cancel them (`profiles/kubernetes`).

    python -m scripts.workflow.k8s_submit submit JOBSCRIPT      creates a job, prints its name
    python -m scripts.workflow.k8s_submit status NAME           prints running, success or failed
    python -m scripts.workflow.k8s_submit cancel NAME ...       deletes jobs

All pods and Snakemake itself mount one volume (ReadWriteMany) as their working directory, at the same path, and use the
same image, so that checkpoints, referenced shards and logs are available everywhere, as on any cluster. The settings of
the cluster are read from the JSON file that VISUALCHAT_K8S names; `ClusterConfig` defines its keys.

The first process of a pod forwards SIGTERM to all processes in the pod, which bash alone would not do: a training then
has `grace_seconds` to save a checkpoint, and the next attempt continues.
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from scripts.common.cli import load_settings, parser
from scripts.common.errors import UserError, run_program
from scripts.config.base import Section

_INIT = """trap 'kill -TERM -1' TERM
bash -c "$0" &
while kill -0 $! 2>/dev/null; do wait $!; status=$?; done
exit $status
"""


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


def manifest(cluster: ClusterConfig, properties: dict[str, Any], script: str) -> dict[str, Any]:
    """The Kubernetes job that runs a job script.

    Args:
        cluster: its settings.
        properties: of the job, as Snakemake gives them: rule, jobid, threads, resources.
        script: the text of the job script.

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
    name = re.sub("[^a-z0-9]+", "-", rule.lower()).strip("-")
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": f"visualchat-{name[:40]}-", "labels": {"app": "visualchat"}},
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


def submit(cluster: ClusterConfig, path: Path) -> str:
    """Create the Kubernetes job of a job script; return its name."""
    script = path.read_text(encoding="utf-8")
    job = manifest(cluster, properties_of(script), script)
    return kubectl(cluster, "create", "-f", "-", "-o", "jsonpath={.metadata.name}", stdin=json.dumps(job)).strip()


def status(cluster: ClusterConfig, name: str) -> str:
    """The status of a job as Snakemake's cluster-generic executor expects it: running, success or failed."""
    reported = json.loads(kubectl(cluster, "get", "job", name, "-o", "jsonpath={.status}") or "{}")
    ended = {condition["type"] for condition in reported.get("conditions", ()) if condition["status"] == "True"}
    return "success" if "Complete" in ended else "failed" if "Failed" in ended else "running"


def kubectl(cluster: ClusterConfig, *arguments: str, stdin: str = "") -> str:
    """Run kubectl; return its standard output.

    Raises:
        UserError: it is not installed, or fails.
    """
    command = ["kubectl", "--namespace", cluster.namespace, *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"kubectl cannot be run: {error}") from None
    if done.returncode:
        raise UserError(f"{' '.join(command[:4])} failed: {done.stderr.strip()}")
    return done.stdout


def main() -> None:
    """Run the program."""
    arguments = parser(__doc__)
    arguments.add_argument("action", choices=["submit", "status", "cancel"])
    arguments.add_argument("what", nargs="+", help="job script to submit, or names of jobs")
    options = arguments.parse_args()
    if "VISUALCHAT_K8S" not in os.environ:
        raise UserError("VISUALCHAT_K8S must name the JSON file with the settings of the cluster (docs/kubernetes.md)")
    cluster = load_settings(ClusterConfig, "@" + os.environ["VISUALCHAT_K8S"])
    if options.action == "cancel":
        kubectl(cluster, "delete", "job", "--ignore-not-found", "--wait=false", *options.what)
    elif options.action == "submit":
        print(submit(cluster, Path(options.what[-1])))
    else:
        print(status(cluster, options.what[-1]))


if __name__ == "__main__":
    run_program(main)
