"""Where ranks are started: command lines from made-up surroundings, and two real processes that act as nodes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.common.errors import UserError
from scripts.training import node_launcher
from scripts.training.nodes import Topology, detect_topology, port_of
from scripts.training.runlock import RunLock, launcher_lives
from tests.runs import REPOSITORY, TrainingSetup, finished, lines_written, metrics, state_of

JOB = "JobId=77 JobName=wrap NodeList=gpu[03-04] BatchHost=gpu03 NumNodes=2 NumCPUs=4 TRES=cpu=4,node=2"
SLURM = {
    "scontrol -o show job 77": JOB,
    "scontrol show hostnames gpu[03-04]": "gpu03\ngpu04\n",
    "scontrol -o show node gpu03": "NodeName=gpu03 NodeAddr=10.0.0.3 NodeHostName=gpu03 OS=Linux 6.1 State=MIXED",
}


def answers(command) -> str:
    return SLURM[" ".join(command)]


def no_command(command) -> str:
    raise AssertionError(f"{command} was asked for nothing")


def test_one_node_is_torchrun_alone_even_inside_a_job():
    topology = detect_topology(
        1, 4, {"SLURM_JOB_ID": "77", "SLURM_PROCID": "0", "MASTER_ADDR": "x", "NODE_RANK": "1"}, no_command
    )
    assert not topology.is_secondary and not topology.through_srun
    command = topology.command(4, Path("lock"), ["--name", "x"])
    assert command[:3] == [sys.executable, "-m", "scripts.training.node_launcher"]
    assert command[3:] == ["--standalone", "--nproc-per-node", "4", "-m", "scripts.training.worker", "--name", "x"]


def test_slurm_starts_one_torchrun_per_node_and_nothing_is_left_to_its_variables():
    topology = detect_topology(2, 16, {"SLURM_JOB_ID": "77"}, answers)
    assert topology == Topology(2, "10.0.0.3", port_of("77")) and topology.through_srun and not topology.is_secondary
    command = topology.command(16, Path("/r/lock"), ["--name", "x"])
    srun = command.index("srun")
    assert command[:srun] == [sys.executable, "-m", "scripts.training.parent_death"]
    torchrun_at = command.index("scripts.training.node_launcher")
    options = dict(zip(command[srun + 1 : srun + 9 : 2], command[srun + 2 : srun + 9 : 2], strict=True))
    assert options == {"--nodes": "2", "--ntasks": "2", "--ntasks-per-node": "1", "--cpu-bind": "none"}
    assert {"--kill-on-bad-exit=1", "--export=ALL"} <= set(command[srun:torchrun_at])
    rest = command[torchrun_at + 1 :]
    assert rest[:2] == ["--watch", "/r/lock"] and "--node-rank" not in rest
    values = dict(zip(rest[2:14:2], rest[3:14:2], strict=True))
    assert values == {
        "--nnodes": "2",
        "--rdzv-backend": "static",
        "--max-restarts": "0",
        "--master-addr": "10.0.0.3",
        "--master-port": str(port_of("77")),
        "--nproc-per-node": "8",
    }


@pytest.mark.parametrize(
    "variables",
    [
        {"NODE_RANK": "1", "MASTER_ADDR": "head"},
        {"PET_NODE_RANK": "1", "PET_MASTER_ADDR": "head", "PET_MASTER_PORT": "29500", "RANK": "5"},
        {"JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "head"},
        {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "head", "MASTER_PORT": "29500"},
        {"NODE_RANK": "1", "MASTER_ADDR": "head", "SLURM_JOB_ID": "77"},
    ],
)
def test_a_process_on_every_node_knows_its_number_and_the_first_node(variables):
    topology = detect_topology(2, 4, variables, no_command)
    assert (
        topology == Topology(2, "head", 29500, node_rank=1, per_node=True)
        and topology.is_secondary
        and not topology.through_srun
    )
    command = topology.command(4, Path("lock"), [])
    assert "srun" not in command and command[command.index("--node-rank") + 1] == "1"
    assert command[command.index("--nproc-per-node") + 1] == "2"
    assert not detect_topology(2, 4, variables | {next(iter(variables)): "0"}, no_command).is_secondary


@pytest.mark.parametrize(
    ("nodes", "ranks", "variables", "message"),
    [
        (2, 3, {}, "3 ranks cannot be divided among 2 nodes"),
        (2, 2, {}, "profiles/slurm"),
        (2, 2, {"NODE_RANK": "2", "MASTER_ADDR": "x"}, "NODE_RANK is 2, but the run has 2 nodes"),
        (3, 3, {"SLURM_JOB_ID": "77"}, "needs 3 nodes, but Slurm job 77 has 2"),
        (2, 2, {"SLURM_JOB_ID": "77", "SLURM_STEP_NUM_TASKS": "2"}, "start it once"),
    ],
)
def test_an_environment_that_does_not_fit_is_one_clear_error(nodes, ranks, variables, message):
    with pytest.raises(UserError, match=message):
        detect_topology(nodes, ranks, variables, answers)


def test_the_port_follows_from_the_job_and_stays_below_those_that_systems_hand_out():
    ports = {port_of(str(job)) for job in range(300)}
    assert len(ports) > 280 and min(ports) >= 15000 and max(ports) < 32000
    assert port_of("77") == port_of("77")


def test_a_node_that_does_not_see_the_launchers_lock_refuses(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(node_launcher, "_SECONDS_BETWEEN_CHECKS", 0.01)
    (tmp_path / "lock").touch()
    assert not node_launcher._sees_lock(tmp_path / "lock")
    assert "not shared" in json.loads(capsys.readouterr().out)["refused"]
    code = (
        "import sys; from pathlib import Path; from scripts.training.runlock import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); lock.take_all(); print(1, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, **pipes) as launcher:
        launcher.stdout.readline()
        assert node_launcher._sees_lock(tmp_path / "lock")
        launcher.kill()
    assert not launcher_lives(tmp_path / "lock")
    RunLock(tmp_path / "lock").take_all()


def start_node(lab: TrainingSetup, out: Path, number: int, port: int) -> subprocess.Popen:
    topology = {"NODE_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return lab.start(out, environment=topology, nodes=2, ranks=2)


def test_two_nodes_have_the_losses_of_one_and_end_together(lab: TrainingSetup, undisturbed: Path):
    out, port = lab.root / "train/two_nodes", 20000 + os.getpid() % 10000
    nodes = [start_node(lab, out, number, port) for number in (1, 0)]
    while lines_written(out) < 6:
        assert all(node.poll() is None for node in nodes), [node.communicate()[1] for node in nodes]
        time.sleep(0.01)
    nodes[1].send_signal(signal.SIGTERM)  # the launcher alone is asked to stop; all ranks learn of it
    output = [node.communicate()[1] for node in nodes]
    assert [node.returncode for node in nodes] == [75, 75], output
    assert "the same command continues" in output[1] and (state_of(out) / "log.node-1.txt").stat().st_size

    nodes = [start_node(lab, out, number, port) for number in (0, 1)]
    output = [node.communicate()[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], output
    assert "continuing after step" in output[0] and not output[1]
    assert metrics(out) == metrics(undisturbed)
    assert finished(out) == finished(undisturbed)
