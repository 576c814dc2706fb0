"""The bytes that an estimate foretells are those that DeepSpeed really holds, at every stage, whatever is trained."""

import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts.config.run import RunConfig
from scripts.estimation import meta_model
from scripts.estimation.memory import ZeroPlacement, second_copy, states
from tests.preload import client as preload
from tests.runs import REPOSITORY, TrainingSetup

FULL = {"train_language": "full"}
EVERYTHING = FULL | {"train_vision": "full"}
LORA = {"train_language": "lora", "train_vision": "lora", "language_lora_rank": 4, "vision_lora_rank": 2}
VARIANTS = {f"full {zero}": FULL | {"zero": zero} for zero in (0, 1, 2, 3)}
VARIANTS |= {f"frozen {zero}": {"zero": zero} for zero in (0, 2, 3)}
VARIANTS |= {f"bf16 {zero}": FULL | {"zero": zero, "precision": "bf16"} for zero in (1, 2, 3)}
if importlib.util.find_spec("bitsandbytes") is not None:
    QLORA = {"train_language": "lora", "language_lora_rank": 4, "quantize": "nf4"}
    VARIANTS |= {f"quantised {zero}": QLORA | {"zero": zero} for zero in (0, 2)}
VARIANTS |= {
    "everything 2": EVERYTHING | {"zero": 2},
    "adapters 2": LORA | {"zero": 2},
    "adapters 3": LORA | {"zero": 3},
    # The last one, because DeepSpeed keeps its groups of ranks until the process ends.
    "second copy": {"zero": 3, "zero_hpz": 2},
}


@pytest.fixture(scope="module")
def held(lab: TrainingSetup, tmp_path_factory) -> dict[str, dict[str, int]]:
    """What the first of two ranks held, by variant (see `run_memory.py`)."""
    out = tmp_path_factory.mktemp("held") / "held.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.scripts.estimation.run_memory", str(lab.root), str(out), json.dumps(VARIANTS)]
    environment = os.environ | {"PATH": "", "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = preload.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def foretold(lab: TrainingSetup, run: RunConfig) -> dict[str, float]:
    """The same from the estimate: at the end of the backward pass, and after the step."""
    from model.modeling import VisualChatForConditionalGeneration
    from scripts.estimation.architectures import config_of
    from scripts.inference.model_assembly import load_model
    from scripts.training.trainable import mark_trainable

    # The lab's model as it is, with the row that the image's token has in its table.
    config = load_model(lab.model, lab.root, "mmca")[0].config
    assert config_of(str(lab.bases["language"]), Path("nowhere"), "language").model_type == "llama"
    with torch.device("meta"):
        model = VisualChatForConditionalGeneration(config)
        mark_trainable(model, run)
    counts = meta_model.count(model, run)
    if run.zero_hpz > 1:
        counts = replace(counts, small=0)  # see `run_memory.py`
    memory = states(counts, ZeroPlacement(run.zero, run.offload, 2, run.zero_hpz), run.precision)
    parts = memory.device | {f"host {kind}": value for kind, value in memory.host.items()}
    buckets = parts.pop("buckets")
    whole = sum(parts.values()) + (buckets if run.zero == 3 else 0)
    # A step updates weights, so that their second copies are void.
    given_back = parts["gradients"] if run.zero < 3 else 0
    if run.zero_hpz > 1:
        given_back = second_copy(counts, run.precision, run.zero_hpz) * counts.n_trained / counts.inside
    return {"step": whole, "rest": whole - given_back}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_estimate_is_the_memory_that_is_used(held: dict, lab: TrainingSetup, variant: str):
    run = RunConfig(model="m", blend="b", epochs=1, micro_batch=2, **VARIANTS[variant])
    expected = foretold(lab, run)
    if run.quantize != "none":
        # Every layer has a table of 256 levels of its scales, which is as much as such small weights take.
        expected = {moment: value + 14 * 4 * 256 for moment, value in expected.items()}
    assert held[variant] == pytest.approx(expected, rel=0.05)
