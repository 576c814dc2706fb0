"""Kubernetes jobs: what the cluster is asked for, and a kubectl that runs what it is given."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.workflow.k8s_submit import ClusterConfig, manifest, properties_of
from tests.runs import REPOSITORY

SITE = ClusterConfig(image="registry/visualchat:1", claim="data", selector={"gpu": "h100"})
KUBECTL = """#!{python}
import json, os, subprocess, sys
here = os.environ["FAKE_CLUSTER"]
words = sys.argv[3:]
assert sys.argv[1:3] == ["--namespace", "team"], sys.argv
if words[0] == "create":
    job = json.load(sys.stdin)
    container = job["spec"]["template"]["spec"]["containers"][0]
    name = job["metadata"]["generateName"] + "x1"
    pod = subprocess.Popen(container["command"], cwd=container["workingDir"], start_new_session=True,
                           stdout=open(f"{{here}}/{{name}}.out", "w"), stderr=subprocess.STDOUT)
    open(f"{{here}}/{{name}}.pid", "w").write(str(pod.pid))
    print(name, end="")
elif words[0] == "get":
    text = open(f"{{here}}/{{words[2]}}.out").read()
    ended = [w for w in ("Complete", "Failed") if f"end {{w}}" in text]
    print(json.dumps({{"conditions": [{{"type": w, "status": "True"}} for w in ended]}} if ended else {{}}), end="")
elif words[0] == "delete":
    open(f"{{here}}/deleted", "w").write(" ".join(words))
else:
    sys.exit("error: unknown command")
"""


def properties(**resources) -> dict:
    return {"rule": "train_run", "jobid": 3, "threads": 8, "resources": {"mem_mb": 320000, "runtime": 60} | resources}


def test_a_training_pod_has_gpus_shared_memory_the_volume_and_time_to_save():
    job = manifest(SITE, properties(gpu=8), "echo")
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"memory": "320000M", "nvidia.com/gpu": "8"}
    assert container["resources"]["requests"] == {"cpu": "8", "memory": "320000M"}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/dev/shm"}
    assert pod["nodeSelector"] == {"gpu": "h100"} and pod["terminationGracePeriodSeconds"] == 300
    assert job["spec"]["backoffLimit"] == 0 and job["spec"]["activeDeadlineSeconds"] == 3600


def test_a_step_without_gpus_asks_for_none():
    pod = manifest(SITE, properties(), "echo")["spec"]["template"]["spec"]
    assert "nodeSelector" not in pod and "nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"]


def test_what_a_pod_cannot_do_is_one_clear_error():
    with pytest.raises(UserError, match=r"train_run needs 2 nodes.*docs/kubernetes.md"):
        manifest(SITE, properties(nodes=2), "echo")
    with pytest.raises(UserError, match="properties"):
        properties_of("#!/bin/sh\necho")


def test_a_step_is_submitted_watched_stopped_and_cancelled(tmp_path: Path):
    (tmp_path / "bin").mkdir()
    kubectl = tmp_path / "bin/kubectl"
    kubectl.write_text(KUBECTL.format(python=sys.executable))
    kubectl.chmod(kubectl.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "site.json").write_text(SITE.model_copy(update={"namespace": "team"}).model_dump_json())
    surroundings = {"PYTHONPATH": str(REPOSITORY), "VISUALCHAT_K8S": str(tmp_path / "site.json")}
    surroundings |= {"PATH": f"{kubectl.parent}:{os.environ['PATH']}", "FAKE_CLUSTER": str(tmp_path)}

    def pods(*words: str) -> str:
        command = [sys.executable, "-m", "scripts.workflow.k8s_submit", *words]
        done = subprocess.run(
            command, env=os.environ | surroundings, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/sh\n# properties = {json.dumps(properties())}\ntouch made\necho end Complete\n")
    name = pods("submit", str(script))
    assert name == "visualchat-train-run-x1"
    deadline = time.monotonic() + 60
    while (state := pods("status", name)) == "running":
        assert time.monotonic() < deadline
    assert state == "success" and (tmp_path / "made").exists(), "it must run where Snakemake was started"
    pods("cancel", name, "other")
    assert (tmp_path / "deleted").read_text().endswith(f"{name} other")
