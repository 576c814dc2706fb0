"""Training on a GPU: interrupted or not, a run ends with the same numbers, which are those of the CPU to rounding."""

import pytest
import torch

from scripts.config.run import RunConfig
from scripts.inference.blend_reader import BlendReader
from scripts.inference.model_assembly import load_model
from scripts.training.dataset import MicroBatchDataset
from scripts.training.engine import LossModule
from scripts.training.feed import MicroBatchFeed
from scripts.training.trainable import mark_trainable
from tests.runs import STEPS, TrainingSetup, finished, lines_written, make_training_setup, metrics, wait_until

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
# No tracker: a machine that is borrowed for a check need not have TensorBoard.
ALONE = {"ranks": 1, "micro_batch": 3, "trackers": []}


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory) -> TrainingSetup:
    return make_training_setup(tmp_path_factory.mktemp("gpu"))


def test_forward_and_backward_never_wait_for_the_gpu(laboratory: TrainingSetup):
    device = torch.device("cuda")
    model, processor = load_model(laboratory.model, laboratory.root, "mmca", torch.bfloat16, check=False)
    mark_trainable(model, RunConfig(model="m", blend="b", train_language="full"))
    model, tower = model.to(device).train(), model.detach_vision_tower().eval()
    options = model.layout_options()
    assert options.backend == "triton"
    reader = BlendReader(laboratory.blends[0], laboratory.root)
    batches = MicroBatchDataset([reader], processor, options, global_batch=4, micro_batch=2)
    prepared = [batches[number].pin_memory() for number in range(4)]
    step, losses = LossModule(model), torch.zeros(2, dtype=torch.float64, device=device)
    for mode in ("default", "error"):  # the first pass compiles and allocates
        torch.cuda.set_sync_debug_mode(mode)
        try:
            for batch in MicroBatchFeed(prepared, device, tower):
                total, each = step(**batch.inputs)
                total.backward()
                losses.index_add_(0, batch.label_datasets, each)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert losses.min() > 0


def test_it_has_the_losses_of_the_cpu(laboratory: TrainingSetup):
    found = {}
    for name, shown in (("gpu", {}), ("cpu", {"CUDA_VISIBLE_DEVICES": ""})):
        out = laboratory.root / "train" / name
        process = laboratory.start(out, environment=shown, **ALONE)
        output = process.communicate()[1]
        assert process.returncode == 0, output
        found[name] = [line["loss"] for line in metrics(out) if "loss" in line]
    assert len(found["gpu"]) == STEPS and found["gpu"] == pytest.approx(found["cpu"], rel=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"zero": 2},
        {"zero": 3, "gradient_checkpointing": True},
        {"zero": 0, "attention": "causal"},
        {"zero": 2, "attention": "dattn", "train_vision": "full"},
    ],
    ids=["stage 2", "stage 3", "causal", "dattn"],
)
def test_killed_in_bf16_it_ends_with_the_same_losses_and_weights(laboratory: TrainingSetup, settings, request):
    settings = ALONE | {"precision": "bf16"} | settings
    place = laboratory.root / "train" / request.node.callspec.id.replace(" ", "_")
    status, output = laboratory.train(place / "undisturbed", **settings)
    assert status == 0, output

    process = laboratory.start(place / "disturbed", **settings)
    wait_until(process, lambda: lines_written(place / "disturbed") >= 11)
    process.kill()
    process.communicate()
    assert not (place / "disturbed/finished.json").exists()
    status, output = laboratory.train(place / "disturbed", **settings)
    assert status == 0 and "continuing after step" in output, output

    assert metrics(place / "disturbed") == metrics(place / "undisturbed")
    assert finished(place / "disturbed") == finished(place / "undisturbed")
    weights = [finished(place / name)["final"]["weights"] for name in ("disturbed", "undisturbed")]
    both = [
        (place / name / path).read_bytes() for name, path in zip(("disturbed", "undisturbed"), weights, strict=True)
    ]
    assert both[0] == both[1]
    first, last = (finished(place / "undisturbed")["curve"][which] for which in ("first_loss", "last_loss"))
    assert last < 0.8 * first
