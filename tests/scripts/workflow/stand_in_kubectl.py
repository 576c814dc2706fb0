"""A stand-in for kubectl that keeps its cluster in the folder FAKE_CLUSTER and runs jobs as processes of this machine.

    jobs/NAME.json    a job as the API describes it
    calls             one line for each call: its verb and what it was asked for
    faults            one line for each call that goes wrong: VERB FAULT, used up in order; `* FAULT` is never used up

Faults: refused, lost (done, but the answer is lost), garbage, partial, silent (exit status 1), slow (3 s), forbidden.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

WORLD = Path(os.environ["FAKE_CLUSTER"])
REFUSED = "Unable to connect to the server: dial tcp 10.0.0.1:443: connect: connection refused"


def main() -> None:
    words = sys.argv[1:]
    if words[0] == "run-pod":
        run_pod(words[1])
        return
    assert words[:2] == ["--namespace", "team"], words
    verb, rest = words[2], words[3:]
    fault = note(verb, rest)
    if fault == "slow":
        time.sleep(3)
    elif fault == "forbidden":
        sys.exit('Error from server (Forbidden): jobs.batch is forbidden: User "x" cannot do this')
    elif fault == "silent":
        sys.exit(1)
    elif fault == "refused":
        sys.exit(REFUSED)
    text = {"create": create, "get": get, "delete": delete}[verb](rest)
    if fault == "lost":
        sys.exit("error: read tcp 10.0.0.1:443: connection reset by peer")
    sys.stdout.write({"garbage": "<html>502 Bad Gateway</html>", "partial": text[:40]}.get(fault, text))


def note(verb: str, rest: list[str]) -> str:
    """Record a call; return what is to go wrong with it."""
    with open(WORLD / "calls", "a") as calls:
        fcntl.flock(calls, fcntl.LOCK_EX)
        calls.write(" ".join([verb, *rest]) + "\n")
        lines = (WORLD / "faults").read_text().splitlines() if (WORLD / "faults").exists() else []
        for line in lines:
            wanted, fault = line.split()
            if wanted == "*":
                return fault
            if wanted == verb:
                lines.remove(line)
                (WORLD / "faults").write_text("".join(f"{line}\n" for line in lines))
                return fault
    return ""


def create(rest: list[str]) -> str:
    assert rest == ["--filename", "-"], rest
    job = json.load(sys.stdin)
    name = job["metadata"]["name"]
    try:
        with open(WORLD / f"jobs/{name}.json", "x") as file:
            json.dump(job | {"kind": "Job", "status": {}}, file)
    except FileExistsError:
        sys.exit(f'Error from server (AlreadyExists): jobs.batch "{name}" already exists')
    command = [sys.executable, __file__, "run-pod", name]
    environment = os.environ | {"FAKE_POD": name}
    with open(WORLD / f"{name}.log", "w") as log:
        subprocess.Popen(
            command, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
    return f"job.batch/{name} created\n"


def run_pod(name: str) -> None:
    job = json.loads((WORLD / f"jobs/{name}.json").read_text())
    container = job["spec"]["template"]["spec"]["containers"][0]
    # A pod has an environment of its own.
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "FAKE_POD", "PYTHONPATH") if key in os.environ}
    done = subprocess.run(container["command"], cwd=container["workingDir"], env=kept, check=False)
    ended = {"type": "Failed" if done.returncode else "Complete", "status": "True"}
    write(name, job | {"status": {"conditions": [ended]}})


def write(name: str, job: dict) -> None:
    path = WORLD / f"jobs/{name}.json"
    if path.exists():
        path.with_suffix(".new").write_text(json.dumps(job))
        path.with_suffix(".new").rename(path)


def get(rest: list[str]) -> str:
    assert rest[0] == "job" and rest[-2:] == ["--output", "json"], rest
    jobs = [json.loads(path.read_text()) for path in (WORLD / "jobs").glob("*.json")]
    if rest[1] == "--selector":
        key, value = rest[2].split("=")
        return json.dumps({"kind": "List", "items": [job for job in jobs if job["metadata"]["labels"][key] == value]})
    assert rest[-3] == "--ignore-not-found", rest
    names = rest[1:-3]
    found = [job for job in jobs if job["metadata"]["name"] in names]
    if len(names) == 1:
        return json.dumps(found[0]) if found else ""
    return json.dumps({"kind": "List", "items": found})


def delete(rest: list[str]) -> str:
    assert rest[:3] == ["job", "--ignore-not-found", "--wait=false"], rest
    for name in rest[3:]:
        (WORLD / f"jobs/{name}.json").unlink(missing_ok=True)
        for process in pods(name):
            # Not SIGTERM: outside a container, the first process of a pod would pass it on to all processes.
            process.send_signal(signal.SIGKILL)
    return ""


def pods(name: str | None = None) -> list[psutil.Process]:
    """The processes of one pod, or of all pods."""
    found = []
    for process in psutil.process_iter():
        try:
            pod = process.environ().get("FAKE_POD")
        except psutil.Error:
            continue
        if pod is not None and (name is None or pod == name):
            found.append(process)
    return found


if __name__ == "__main__":
    main()
