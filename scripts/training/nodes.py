"""Where the ranks of a run are started, and with which command: one machine, the nodes of a Slurm job, or pods.

    one node              torchrun here
    a Slurm job           srun starts one torchrun on every node of the job; this process is the only launcher
    one process per node  a scheduler or user (Kubernetes, a shell) has started this program on every node: number 0
                          launches and reports, the others join it; each starts the torchrun of its node

Inside a job of Snakemake's Slurm plugin almost every variable of Slurm is unset (only the job's number remains), so
none is used: the nodes come from Slurm's controller, and `srun` gets every option on its command line.
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.common.errors import UserError

# Below 32768, where systems begin to hand out ports by themselves.
_PORTS = range(15000, 32000)
_DEFAULT_PORT = 29500
_RANK_VARIABLES = ("PET_NODE_RANK", "NODE_RANK", "JOB_COMPLETION_INDEX", "RANK")


@dataclass(frozen=True)
class Topology:
    """The nodes of a run, and the address and port at which they find each other.

    `node_rank`: number of this process's node. `per_node`: every node has a process of this program.
    """

    nodes: int = 1
    address: str = ""
    port: int = 0
    node_rank: int = 0
    per_node: bool = False

    @property
    def is_secondary(self) -> bool:
        """Whether another process launches the run, and this one only adds its node."""
        return self.node_rank > 0

    @property
    def through_srun(self) -> bool:
        """Whether `srun` reaches the other nodes."""
        return self.nodes > 1 and not self.per_node

    def command(self, ranks: int, lock: Path, arguments: Sequence[str]) -> list[str]:
        """The command line that runs the workers with `arguments`: all `ranks`, or the share of this node."""
        workers = ["-m", "scripts.training.worker", *arguments]
        node = [sys.executable, "-m", "scripts.training.node_launcher"]
        share = ["--nproc-per-node", str(ranks // self.nodes)]
        if self.nodes == 1:
            return [*node, "--standalone", *share, *workers]
        node += ["--watch", str(lock), *(["--node-rank", str(self.node_rank)] if self.per_node else [])]
        node += ["--nnodes", str(self.nodes), "--rdzv-backend", "static", "--max-restarts", "0"]
        node += ["--master-addr", self.address, "--master-port", str(self.port), *share, *workers]
        return [*_srun(self.nodes), *node] if self.through_srun else node


def detect_topology(
    nodes: int, ranks: int, environment: Mapping[str, str], run: Callable[[Sequence[str]], str]
) -> Topology:
    """Detect on which nodes the run takes place, and which of them this process belongs to.

    `environment` holds the process's variables; `run` runs a command and returns what it prints.

    Raises:
        UserError: the ranks cannot be divided among the nodes, or there are not `nodes` nodes here.
    """
    if ranks % nodes:
        raise UserError(f"{ranks} ranks cannot be divided among {nodes} nodes; let ranks be a multiple of nodes")
    if nodes == 1:
        return Topology()
    variable = next((name for name in _RANK_VARIABLES if name in environment), None)
    address = environment.get("PET_MASTER_ADDR") or environment.get("MASTER_ADDR")
    if variable and address:
        return _one_process_per_node(nodes, variable, address, environment)
    if job := environment.get("SLURM_JOB_ID"):
        if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
            raise UserError("srun has started this program several times; start it once, it calls srun for its nodes")
        return _slurm(nodes, job, run)
    raise UserError(
        f"the run needs {nodes} nodes, and this is one machine: neither a Slurm job (SLURM_JOB_ID) nor one process per "
        "node (NODE_RANK and MASTER_ADDR). Submit it with --profile profiles/slurm, or set nodes: 1"
    )


def _one_process_per_node(nodes: int, variable: str, address: str, environment: Mapping[str, str]) -> Topology:
    node_rank = int(environment[variable])
    if not 0 <= node_rank < nodes:
        raise UserError(f"{variable} is {node_rank}, but the run has {nodes} nodes, numbered from 0; make both agree")
    port = environment.get("PET_MASTER_PORT") or environment.get("MASTER_PORT") or str(_DEFAULT_PORT)
    return Topology(nodes, address, int(port), node_rank, per_node=True)


def _slurm(nodes: int, job: str, run: Callable[[Sequence[str]], str]) -> Topology:
    facts = _facts(run(["scontrol", "-o", "show", "job", job]))
    if int(facts["NumNodes"].split("-")[0]) != nodes:
        raise UserError(f"the run needs {nodes} nodes, but Slurm job {job} has {facts['NumNodes']}; request as many")
    first = run(["scontrol", "show", "hostnames", facts["NodeList"]]).split()[0]
    # The address by which Slurm itself reaches the node: its name need not be known to the resolver.
    address = _facts(run(["scontrol", "-o", "show", "node", first]))["NodeAddr"]
    return Topology(nodes, address, port_of(job))


def port_of(job: str) -> int:
    """A port computed from the job's number: the same on all nodes, and rarely the same for two jobs on a node."""
    return _PORTS[int.from_bytes(hashlib.blake2b(job.encode(), digest_size=8).digest(), "little") % len(_PORTS)]


def run_command(command: Sequence[str]) -> str:
    """Run a short command and return what it prints.

    Raises:
        UserError: the command does not exist or fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{command[0]} cannot be run here: {error}") from None
    if done.returncode:
        raise UserError(f"{' '.join(command)} failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _srun(nodes: int) -> list[str]:
    """The first words of a command: one task per node, with all of the job's share; a failed one ends the others."""
    count = str(nodes)
    # torchrun starts the ranks of its node, so one task: with one per GPU, each would start all of them.
    tasks = ["--nodes", count, "--ntasks", count, "--ntasks-per-node", "1", "--cpu-bind", "none"]
    # No limit for the last checkpoint of the first rank; a hung task ends with the launcher's lock.
    ends = ["--kill-on-bad-exit=1", "--wait=0"]
    return [sys.executable, "-m", "scripts.training.parent_death", "srun", *tasks, *ends, "--export=ALL"]


def _facts(line: str) -> dict[str, str]:
    """`A=1 B=2` as a dictionary; of a repeated name the first counts."""
    facts: dict[str, str] = {}
    for word in line.split():
        name, sign, value = word.partition("=")
        if sign:
            facts.setdefault(name, value)
    return facts
