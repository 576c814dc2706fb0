"""Kubernetes jobs: what the cluster is asked for. tests/workflow/test_kubernetes.py runs Snakemake with a stand-in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.workflow.k8s_cluster import ClusterConfig
from scripts.workflow.k8s_submit import manifest, properties_of
from tests.runs import REPOSITORY

SITE = ClusterConfig(image="registry/visualchat:1", claim="data", selector={"gpu": "h100"})
RUN = "k8s-a-jobs"


def properties(**resources) -> dict:
    return {"rule": "train_run", "jobid": 3, "threads": 8, "resources": {"mem_mb": 320000, "runtime": 60} | resources}


def test_a_training_pod_has_gpus_shared_memory_the_volume_and_time_to_save():
    job = manifest(SITE, properties(gpu=8), "echo", RUN)
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["resources"]["limits"] == {"memory": "320000M", "nvidia.com/gpu": "8"}
    assert container["resources"]["requests"] == {"cpu": "8", "memory": "320000M"}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/dev/shm"}
    assert pod["nodeSelector"] == {"gpu": "h100"} and pod["terminationGracePeriodSeconds"] == 300
    assert job["spec"]["backoffLimit"] == 0 and job["spec"]["activeDeadlineSeconds"] == 3600


def test_a_step_without_gpus_asks_for_none():
    pod = manifest(SITE, properties(), "echo", RUN)["spec"]["template"]["spec"]
    assert "nodeSelector" not in pod and "nvidia.com/gpu" not in pod["containers"][0]["resources"]["limits"]


def test_what_a_pod_cannot_do_is_one_clear_error():
    with pytest.raises(UserError, match=r"train_run needs 2 nodes.*docs/kubernetes.md"):
        manifest(SITE, properties(nodes=2), "echo", RUN)
    with pytest.raises(UserError, match="properties"):
        properties_of("#!/bin/sh\necho")


def test_a_request_that_is_repeated_asks_for_the_same_job():
    names = [
        manifest(SITE, properties(), script, run)["metadata"]["name"]
        for script, run in (
            ("echo", "k8s-a-jobs"),
            ("echo", "k8s-a-jobs"),
            ("echo 2", "k8s-a-jobs"),
            ("echo", "k8s-b-jobs"),
        )
    ]
    assert names[0] == names[1] and len(set(names)) == 3
    long = manifest(SITE, properties() | {"rule": "Evaluate_" + "x" * 90}, "echo", "k8s-a-jobs")["metadata"]
    assert len(long["name"]) <= 57, "a pod's name has a suffix, and at most 63 characters"
    assert long["labels"]["visualchat-run"] == "k8s-a-jobs"


def test_without_its_watcher_nothing_is_submitted(tmp_path: Path):
    (tmp_path / "site.json").write_text(SITE.model_dump_json())
    for site, message in (
        (tmp_path / "site.json", "watcher of the jobs"),
        (tmp_path / "no.json", "cannot be read"),
        ("", "must name"),
    ):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "VISUALCHAT_K8S": str(site)}
        command = [sys.executable, "-m", "scripts.workflow.k8s_submit", "job.sh"]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and message in done.stderr
