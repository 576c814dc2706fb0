"""A real Slurm of two nodes on this machine, for tests: its keys, daemons and state in one folder.

Outside it there are only links in /etc/slurm, for as long as it runs: jobs of Snakemake lose the variable SLURM_CONF,
and programs then look there.

Debian's packages `slurm-wlm` and `munge` provide the programs (`make test-cluster` installs them). Both nodes are this
machine, so they share its file system, cores and network; what is real is everything between them: allocations, job
steps, signals, time limits, and one process tree per node.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scancel", "scontrol")
_SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"
_ETC = Path("/etc/slurm")
_FILES = ("slurm.conf", "cgroup.conf")


def available() -> bool:
    """Whether the programs are installed and may be used: the daemons want to be root, and no cluster of others."""
    # A file that is no link belongs to a cluster which this machine is a part of.
    free = all(path.is_symlink() or not path.exists() for path in (_ETC / name for name in _FILES))
    return os.geteuid() == 0 and free and all(shutil.which(name, path=_SYSTEM) for name in PROGRAMS)


class Slurm:
    """A running cluster; use it with `with`. `environment` is what the commands need to find it."""

    def __init__(self, folder: Path, cpus: int = 2, kill_wait: int = 30):
        self.folder = Path(folder)
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:{_SYSTEM}"}
        self._cpus, self._kill_wait = cpus, kill_wait
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Slurm:
        for name in ("spool", "state", "munge"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        # Daemons of munge refuse folders that others may write to, wherever they lie.
        socket_path = self.folder / "munge/socket"
        key = self.folder / "munge/key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._write_configuration(socket_path)
        for name in _FILES:
            (_ETC / name).unlink(missing_ok=True)
            (_ETC / name).symlink_to(self.folder / name)
        own = [f"--{name}-file={self.folder / 'munge' / name}" for name in ("key", "pid", "log", "seed")]
        self._start("munged", "--foreground", "--force", f"--socket={socket_path}", *own)
        self._wait(socket_path.exists, "munged")
        self._start("slurmctld", "-D")
        for node in ("n1", "n2"):
            self._start("slurmd", "-D", "-N", node)
        self._wait(lambda: self.run("sinfo", "-h", "-o", "%D %t").split() == ["2", "idle"], "the nodes")
        return self

    def __exit__(self, *_) -> None:
        if jobs := self.run("squeue", "-h", "-o", "%i", check=False).split():
            self.run("scancel", "--signal=KILL", "--full", *jobs, check=False)
            self.run("scancel", *jobs, check=False)
        for name in _FILES:
            (_ETC / name).unlink(missing_ok=True)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command of Slurm and return what it printed."""
        done = subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def jobs(self, *states: str) -> list[str]:
        """Numbers of the jobs that are in one of `states` (all if none is given)."""
        chosen = ["-t", ",".join(states)] if states else []
        return self.run("squeue", "-h", "-o", "%i", *chosen).split()

    def _start(self, *command: str) -> None:
        # Their children keep an inherited pipe open; a file they may keep.
        with open(self.folder / f"{command[0]}.out", "ab") as log:
            environment = os.environ | self.environment
            program = shutil.which(command[0], path=_SYSTEM)
            self._daemons.append(
                subprocess.Popen(
                    [program, *command[1:]], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            )

    def _wait(self, happened, what: str) -> None:
        deadline = time.monotonic() + 60
        while not happened():
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.out"))
            assert time.monotonic() < deadline and all(d.poll() is None for d in self._daemons), f"{what}: {logs}"
            time.sleep(0.2)

    def _write_configuration(self, munge: Path) -> None:
        host = socket.gethostname().split(".")[0]
        ports = [_free_port() for _ in range(3)]
        lines = f"""
            ClusterName=test
            SlurmctldHost={host}
            SlurmctldPort={ports[0]}
            AuthType=auth/munge
            AuthInfo=socket={munge}
            CryptoType=crypto/munge
            ProctrackType=proctrack/linuxproc
            TaskPlugin=task/none
            SwitchType=switch/none
            MpiDefault=none
            ReturnToService=2
            SelectType=select/cons_tres
            SelectTypeParameters=CR_Core
            AccountingStorageType=accounting_storage/none
            JobAcctGatherType=jobacct_gather/none
            SlurmUser=root
            SlurmdUser=root
            SlurmdParameters=config_overrides
            KillWait={self._kill_wait}
            MinJobAge=300
            StateSaveLocation={self.folder}/state
            SlurmctldPidFile={self.folder}/slurmctld.pid
            SlurmdSpoolDir={self.folder}/spool/%n
            SlurmdPidFile={self.folder}/slurmd.%n.pid
            SlurmdLogFile={self.folder}/slurmd.%n.out
            SlurmctldLogFile={self.folder}/slurmctld.log.out
            PlugStackConfig=/dev/null
            NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={self._cpus} RealMemory=128000
            NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={self._cpus} RealMemory=128000
            PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
        """
        (self.folder / "slurm.conf").write_text("\n".join(line.strip() for line in lines.splitlines()) + "\n")
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=yes\n")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
