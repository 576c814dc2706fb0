"""The whole graph on a real language model, built once for the tests of this folder, and the figures that it gives.

`make test-real` provides the model. The folders are the user's:

    VISUALCHAT_REAL_MODELS   a folder that holds `smollm2`, made by `tests/real/convert.py`; without it all is skipped
    VISUALCHAT_SAMPLES       raw samples in the layout of docs/fetch.md: their photographs are trained on, too
    VISUALCHAT_VISION        a vision encoder, in place of the miniature's, which sees little in photographs
"""

import csv
import importlib.util
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tabulate import tabulate

from tests.workflow.project import ROOT, Project

MODELS = Path(os.environ.get("VISUALCHAT_REAL_MODELS", "nowhere")).resolve()
SAMPLES = Path(os.environ.get("VISUALCHAT_SAMPLES", "nowhere")).resolve()
VISION = os.environ.get("VISUALCHAT_VISION", "")
LANGUAGE = MODELS / "smollm2"
QLORA = importlib.util.find_spec("bitsandbytes") is not None
_STAGE = {
    "model": "smol",
    "blend": "photographs",
    "attention": "dattn",
    "train_embeddings": False,
    "learning_rate": 2e-4,
    "projector_learning_rate": 1e-3,
    "micro_batch": 1,
    "ranks": 2,
    "epochs": 3,
    "export": "delta",
}


def configuration() -> dict[str, Any]:
    """Two stages on the examples and, where they are, the sample photographs; and the second one in 4 bits."""
    custom: dict[str, Any] = {"examples": {"folder": str(ROOT / "examples"), "images": "images/"}}
    rows = sorted(path.relative_to(SAMPLES).as_posix() for path in SAMPLES.glob("llava/*.json"))
    if rows:
        custom["samples"] = {"folder": str(SAMPLES), "files": rows, "images": "coco/train2017/"}
    tune = {"extends": "align", "start": "align", "train_language": "lora", "language_lora_rank": 8}
    runs = {"align": _STAGE | {"train_language": "frozen"}, "tune": tune | {"export": "full"}}
    if QLORA:
        runs["qlora"] = tune | {"quantize": "nf4"}
    tokens: dict[str, Any] = {"tokenizer": str(LANGUAGE), "template": "chat"}
    return {
        "name": "real",
        "results": "out",
        "custom": custom,
        "holdout": {"share": 0.2, "seed": 4, "mixed": "evaluate"},
        "pretrain": {"vision": {"scenes": 200, "steps": 20}, "language": {"steps": 0}},
        "tokens": {"smol": tokens if VISION else tokens | {"image_tokens": 4}},
        "blends": {
            "photographs": {
                "tokens": "smol",
                "packing": True,
                "sequence": 384,
                "global_batch": 2,
                "shards": 1,
                "datasets": {name: {} for name in custom},
            }
        },
        "models": {
            "smol": {"vision": VISION or "miniature", "language": str(LANGUAGE), "tokens": "smol", "projector": "mlp"}
        },
        "runs": runs,
        "evaluate": {"max_new_tokens": 16, "checkpoints": ["final"]},
    }


@dataclass
class RealModel:
    """A finished graph: `root` is its results folder. `figures` are rows (what, value) of the table at the end."""

    project: Project
    root: Path
    figures: list[tuple[str, str]] = field(default_factory=list)

    def finished(self, run: str) -> dict[str, Any]:
        """The `finished.json` of a run."""
        return json.loads((self.root / "train" / run / "finished.json").read_text())

    def note(self, what: str, value: str) -> None:
        """Add a row to the table of figures."""
        self.figures.append((what, value))

    def note_runs(self) -> None:
        """Add time, memory and losses of every run."""
        for run in self.project_runs():
            with open(next((self.root / "benchmarks").glob(f"train/**/{run}.tsv")), newline="") as file:
                cost = next(csv.DictReader(file, delimiter="\t"))
            finished = self.finished(run)
            curve, heldout = finished["curve"], [f"{loss:.3f}" for _, loss in finished["curve"]["heldout"]]
            losses = f"{curve['first_loss']:.3f} to {curve['last_loss']:.3f}, held out {' '.join(heldout)}"
            speed = json.loads((self.root / "train" / run / finished["state"] / "throughput.json").read_text())
            memory = speed["memory_bytes"] / 1e9
            spent = f"{float(cost['s']):.0f} s, {memory:.1f} GB a rank"
            self.note(run, f"{spent}, {finished['steps']} steps, loss {losses}")

    def project_runs(self) -> list[str]:
        """Names of the runs, in the order of their stages."""
        return [run for run in ("align", "tune", "qlora") if (self.root / "train" / run).is_dir()]


@pytest.fixture(scope="session")
def real(tmp_path_factory):
    """The finished graph; the figures are printed and written to the folder of the models at the end."""
    project = Project.create(tmp_path_factory.mktemp("real") / "project", configuration())
    project.snakemake()
    model = RealModel(project, project.folder / "out")
    model.note_runs()
    yield model
    table = tabulate(model.figures, headers=("what", "figure"), tablefmt="github", disable_numparse=True)
    (MODELS / "figures.md").write_text(table + "\n")
    print(f"\n{table}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = "VISUALCHAT_REAL_MODELS names no folder with a real language model; `make test-real` makes one"
    for item in items:
        if Path(item.path).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.real)
            item.add_marker(pytest.mark.integration)
            if not (LANGUAGE / "config.json").is_file():
                item.add_marker(pytest.mark.skip(reason=reason))
