"""What tests of training need: tiny bases, a model, blends, and real runs of `python -m scripts.train` on them."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.blends import write_blend
from tests.preload import client as preload
from tests.tiny_models import IMAGE_TOKENS, make_bases

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = {
    "model": "tiny",
    "blend": "tiny",
    "epochs": 2,
    "train_language": "full",
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "evaluate_every": 5,
    "checkpoint_every": 4,
}
STEPS = 26
_TIMING = ("seconds", "per_second", "bytes", "utilisation")


@dataclass(frozen=True)
class TrainingSetup:
    """A results root with everything that training reads. `bases` are the folders of the model's parts."""

    root: Path
    bases: dict[str, Path]
    model: Path
    blends: list[Path]
    heldout: Path

    def command(self, out: Path, model: Path | None = None, **changes: Any) -> list[str]:
        """The command line of a run; `changes` are settings."""
        settings = json.dumps(SETTINGS | changes)
        command = [sys.executable, "-m", "scripts.train", "--name", "tiny", "--settings", settings, "--out", str(out)]
        command += ["--model", str(model or self.model), "--blend", *map(str, self.blends)]
        return [*command, "--heldout", str(self.heldout), "--root", str(self.root)]

    def start(
        self,
        out: Path,
        model: Path | None = None,
        flags: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        preloaded: bool = True,
        **changes: Any,
    ) -> subprocess.Popen:
        """Start a run. The search path is empty, so that nothing can be compiled: training must not need a compiler.

        `preloaded`: fork its processes from one that has imported the libraries; otherwise they are started as a user
        starts them.
        """
        own = os.environ | {"PATH": "", "PYTHONPATH": str(REPOSITORY)} | (environment or {})
        command = [*self.command(out, model, **changes), *flags]
        popen = preload.Popen if preloaded else subprocess.Popen
        return popen(command, cwd=self.root, env=own, stderr=subprocess.PIPE, text=True)

    def train(self, out: Path, **changes: Any) -> tuple[int, str]:
        """Run to the end; return the exit status and the output."""
        process = self.start(out, **changes)
        output = process.communicate()[1]
        return process.returncode, output


def make_training_setup(root: Path) -> TrainingSetup:
    """Write bases, model and blends (two epochs of 13 steps, six held-out conversations) below `root`."""
    from scripts.config.model import ModelConfig
    from scripts.config.tokens import TokensConfig
    from scripts.inference.model_assembly import make_model

    bases = make_bases(root / "bases")
    settings = ModelConfig(vision="tiny", language="tiny", tokens="tiny")
    tokens = TokensConfig(tokenizer="tiny", image_tokens=IMAGE_TOKENS)
    names = {kind: str(path) for kind, path in bases.items()}
    manifest = make_model(settings, tokens, names, root, root / "models/tiny")
    options = {"tokens_identity": manifest["tokens_identity"]}
    blend = root / "blend/tiny"
    return TrainingSetup(
        root=root,
        bases=bases,
        model=root / "models/tiny",
        # 50 conversations leave a last batch of two: one rank has one of them, or with more ranks none.
        blends=[write_blend(blend / f"epoch-{e:03d}", 50, bases["tokenizer"], epoch=e, **options) for e in range(2)],
        heldout=write_blend(blend / "heldout", 6, bases["tokenizer"], stem="heldout", shards=1, **options),
    )


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def finished(out: Path) -> dict[str, Any]:
    """The `finished.json` of a run."""
    return json.loads((out / "finished.json").read_text())


def state_of(out: Path) -> Path:
    """The one state folder of a run."""
    (state,) = (out / "state").iterdir()
    return state


def metrics(out: Path) -> list[dict[str, Any]]:
    """The metrics of a run without what only a clock decides."""
    lines = [json.loads(line) for line in (state_of(out) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith(_TIMING)} for line in lines]


def lines_written(out: Path) -> int:
    """How many lines of metrics a run has written so far."""
    return sum(path.read_bytes().count(b"\n") for path in out.glob("state/*/metrics.jsonl"))


def wait_until(process: subprocess.Popen, happened) -> None:
    """Wait until `happened()`; fail if the process ends first."""
    while not happened():
        assert process.poll() is None, f"the run ended too early: {process.stderr.read()}"
        time.sleep(0.001)
