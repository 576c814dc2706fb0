"""Steps as Kubernetes jobs: what Snakemake calls to submit, watch and cancel them (`profiles/kubernetes`).

    python -m scripts.workflow.k8s_submit submit JOBSCRIPT      creates a job, prints its name
    python -m scripts.workflow.k8s_submit status NAME           prints running, success or failed
    python -m scripts.workflow.k8s_submit cancel NAME ...       deletes jobs

All pods and Snakemake itself share one volume (ReadWriteMany) as their working directory, at the same path, and one
image: checkpoints, shards that refer to each other and undeclared logs are all there, as on any cluster. What is
particular to a site is read from the JSON file that VISUALCHAT_K8S names; `ClusterConfig` tells its keys.

The pod's first process hands SIGTERM to everything in the pod, which bash alone would not: a training then has
`grace_seconds` to save, and the next attempt continues.
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

_FIRST = """trap 'kill -TERM -1' TERM
bash -c "$0" &
while kill -0 $! 2>/dev/null; do wait $!; status=$?; done
exit $status
"""


class ClusterConfig(Section):
    """What is particular to a Kubernetes cluster."""

    namespace: str = "default"
    """Namespace of the jobs."""
    image: str
    """Image with the environment of envs/; the same that Snakemake itself runs in."""
    claim: str
    """PersistentVolumeClaim (ReadWriteMany) that holds repository, data and results."""
    mount: Annotated[str, Field(pattern="^/.+")] = "/data"
    """Where the claim is mounted, in every pod; Snakemake is started below it."""
    gpu: str = "nvidia.com/gpu"
    """What the cluster calls a GPU."""
    selector: dict[str, str] = {}
    """Labels of the nodes that may run jobs with GPUs, such as `cloud.google.com/gke-accelerator`."""
    shared_memory_gb: Annotated[int, Field(ge=1)] = 32
    """Size of /dev/shm in pods with GPUs: NCCL and the processes that decode images pass data through it."""
    grace_seconds: Annotated[int, Field(ge=1)] = 300
    """What a pod that must go has left to save a checkpoint."""


def manifest(site: ClusterConfig, properties: dict[str, Any], script: str) -> dict[str, Any]:
    """The job that runs `script` with what `properties` (of Snakemake: rule, jobid, threads, resources) ask for.

    Raises:
        UserError: the step wants several nodes.
    """
    rule, resources = properties.get("rule", "group"), properties["resources"]
    if resources.get("nodes", 1) > 1:
        raise UserError(
            f"{rule} wants {resources['nodes']} nodes, and a job of this profile is one pod. Start one process a node "
            "as docs/kubernetes.md shows; what it leaves is found by the next run of Snakemake"
        )
    memory = f"{resources.get('mem_mb', 1000)}M"
    requests, limits = {"cpu": str(properties.get("threads", 1)), "memory": memory}, {"memory": memory}
    mounts = [{"name": "data", "mountPath": site.mount}]
    volumes: list[dict[str, Any]] = [{"name": "data", "persistentVolumeClaim": {"claimName": site.claim}}]
    pod: dict[str, Any] = {"restartPolicy": "Never", "terminationGracePeriodSeconds": site.grace_seconds}
    if gpus := resources.get("gpu"):
        limits[site.gpu] = str(gpus)
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})
        size = f"{site.shared_memory_gb}Gi"
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}})
        pod |= {"nodeSelector": site.selector, "tolerations": [{"key": site.gpu, "operator": "Exists"}]}
    container = {
        "name": "step",
        "image": site.image,
        "command": ["bash", "-c", _FIRST, script],
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
    """What Snakemake wrote about the step into its job script.

    Raises:
        UserError: nothing.
    """
    found = re.search(r"^# properties = (\{.*\})$", script, re.M)
    if not found:
        raise UserError(
            "the job script has no line `# properties = {...}`; it must come from Snakemake's cluster-generic"
        )
    return json.loads(found[1])


def submit(site: ClusterConfig, path: Path) -> str:
    """Create the job of a job script and return its name."""
    script = path.read_text(encoding="utf-8")
    job = manifest(site, properties_of(script), script)
    return kubectl(site, "create", "-f", "-", "-o", "jsonpath={.metadata.name}", given=json.dumps(job)).strip()


def status(site: ClusterConfig, name: str) -> str:
    """How a job does, in the words of cluster-generic: running, success or failed."""
    told = json.loads(kubectl(site, "get", "job", name, "-o", "jsonpath={.status}") or "{}")
    ended = {condition["type"] for condition in told.get("conditions", ()) if condition["status"] == "True"}
    return "success" if "Complete" in ended else "failed" if "Failed" in ended else "running"


def kubectl(site: ClusterConfig, *arguments: str, given: str = "") -> str:
    """Run kubectl and return what it prints.

    Raises:
        UserError: it is not there or fails.
    """
    command = ["kubectl", "--namespace", site.namespace, *arguments]
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)
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
        raise UserError("VISUALCHAT_K8S must name the JSON file that describes the site (docs/kubernetes.md)")
    site = load_settings(ClusterConfig, "@" + os.environ["VISUALCHAT_K8S"])
    if options.action == "cancel":
        kubectl(site, "delete", "job", "--ignore-not-found", "--wait=false", *options.what)
    elif options.action == "submit":
        print(submit(site, Path(options.what[-1])))
    else:
        print(status(site, options.what[-1]))


if __name__ == "__main__":
    run_program(main)
