"""What an estimate counts: published models to the last parameter, what is trained, and what the recipes ask for."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from scripts.common.errors import UserError
from scripts.config import settings
from scripts.config.model import ModelConfig
from scripts.config.run import RunConfig
from scripts.estimate import GPUS, Estimate, report
from scripts.estimation import meta_model
from scripts.estimation.epoch_size import epoch_totals
from scripts.estimation.memory import ZeroPlacement, host_bytes
from scripts.training.flops import Flops
from tests.workflow.project import ROOT

RECIPES = ["paper-7b", "paper-13b", "paper-70b", "qwen3"]
# Numbers of parameters that the hub shows for the published weights.
LANGUAGE = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
}


def count(language: str = "meta-llama/Llama-2-7b-hf", **changes) -> meta_model.ParameterCounts:
    section = ModelConfig(vision="openai/clip-vit-large-patch14", language=language, tokens="t")
    run = RunConfig(model="m", blend="b", **changes)
    return meta_model.count(meta_model.build(section, run, Path("nowhere")), run)


@pytest.fixture(scope="module")
def estimates() -> dict[str, Estimate]:
    """The first run of every recipe."""
    found = {}
    for name in RECIPES:
        configuration = settings.load(yaml.safe_load((ROOT / f"recipes/{name}.yaml").read_text()))
        found[name] = Estimate.of(configuration, next(iter(configuration.runs)))
    return found


@pytest.mark.parametrize("language", LANGUAGE)
def test_published_decoders_have_their_published_number_of_parameters(language: str):
    counts = count(language)
    assert counts.total["language"] + counts.total["embeddings"] == LANGUAGE[language]
    assert counts.total["vision"] == 303_179_776


def test_what_is_trained_is_what_training_would_train():
    frozen = count()
    assert frozen.trained == {
        "language": 0,
        "embeddings": 32000 * 4096,
        "projector": 1025 * 4096 + 2 * 4096,
        "vision": 0,
    }
    assert frozen.tower == 303_179_776 and frozen.inside == 6_738_415_616 + frozen.total["projector"]
    lora = count(train_language="lora", language_lora_rank=8, train_embeddings=False, train_vision="lora")
    # Rank times (in + out) of seven matrices in each of 32 layers.
    assert lora.trained["language"] == 32 * 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008))
    assert lora.trained["embeddings"] == 0 and 0 < lora.trained["vision"] < 10_000_000 and lora.tower == 0


def test_what_is_not_known_and_not_here_is_one_clear_error():
    with pytest.raises(UserError, match=r"'nobody/nothing' is unknown.*config.json"):
        count("nobody/nothing")


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_fits_the_gpus_that_it_names_and_requests_the_memory_that_it_needs(recipe, estimates):
    estimate = estimates[recipe]
    run = estimate.run
    choice = ZeroPlacement(run.zero, run.offload, run.ranks, run.zero_hpz)
    needed = sum(estimate.device(choice).values())
    assert needed < 0.94 * GPUS["a100-80"][0], f"{needed / 1e9:.0f} GB"
    node = host_bytes(estimate.counts, choice, run.precision, run.ranks // run.nodes, run.workers) / 1e9
    assert node <= run.memory_gb <= 1.5 * node, f"{node:.0f} GB"


def test_more_stages_and_more_ranks_never_need_more_of_a_gpu(estimates):
    estimate = estimates["paper-13b"]
    states = {
        (zero, n): sum(estimate.device(ZeroPlacement(zero, "none", n)).values()) for zero in (2, 3) for n in (2, 8, 64)
    }
    assert states[2, 2] > states[2, 8] > states[2, 64] and states[3, 2] > states[3, 8] > states[3, 64]
    plain = {kind: estimate.smallest(room, offload=False)[0].ranks for kind, (room, _) in GPUS.items()}
    assert plain["rtx4090"] >= plain["a100-40"] >= plain["a100-80"] >= plain["h200"] == 1
    slow = {kind: estimate.smallest(room, offload=True)[0].ranks for kind, (room, _) in GPUS.items()}
    assert all(slow[kind] <= plain[kind] for kind in GPUS)


def test_the_report_names_the_recipe_and_the_guess():
    configuration = settings.load(yaml.safe_load((ROOT / "recipes/paper-7b.yaml").read_text()))
    text = report(configuration, "mmca", 8, "h100", 0.4)
    assert "openai/clip-vit-large-patch14" in text and "135,278,592" in text
    assert text.count("<- the recipe") == 1 and "a guess" in text and "8 x h100 at 40% of their peak" in text


def test_a_second_copy_is_offered_where_frozen_weights_cross_nodes(estimates):
    estimate = estimates["paper-70b"]
    # 69 billion weights of two bytes among the eight ranks of a node.
    (line,) = estimate.second_copy_offer(8)
    assert line.startswith("zero_hpz: 8 would take 17.3 GB more of a GPU") and "frozen (100%)" in line
    for changes in ({"nodes": 1}, {"zero": 2}, {"offload": "parameters"}, {"zero_hpz": 8}):
        assert not replace(estimate, run=estimate.run.model_copy(update=changes)).second_copy_offer(8), changes
    trained = replace(estimate.counts, trained=estimate.counts.total)
    assert not replace(estimate, counts=trained).second_copy_offer(8)


def test_a_second_copy_is_counted_where_it_is_set():
    configuration = settings.load(yaml.safe_load((ROOT / "recipes/paper-7b.yaml").read_text()))
    run = configuration.runs["mmca"]
    weights = {}
    for ranks in (1, 4):
        configuration.runs["mmca"] = run.model_copy(update={"zero": 3, "zero_hpz": ranks, "nodes": 2})
        text = report(configuration, "mmca", 8, "h100", 0.4)
        (row,) = (line for line in text.splitlines() if "<- the recipe" in line)
        weights[ranks] = float(row.split()[2])
        assert ("zero_hpz: 4 would take" in text) == (ranks == 1)
    # 6.7 billion weights of two bytes, a quarter of them.
    assert weights[4] - weights[1] == pytest.approx(3.4, abs=0.11)


def test_a_run_with_features_neither_holds_nor_runs_the_encoder():
    plain = settings.load(yaml.safe_load((ROOT / "recipes/paper-7b.yaml").read_text()))
    run = plain.runs["mmca"].model_copy(update={"features": True})
    stored = plain.model_copy(update={"runs": {"mmca": run}})
    choice = ZeroPlacement(3, "none", 8)
    before, after = (Estimate.of(configuration, "mmca") for configuration in (plain, stored))
    assert before.device(choice)["encoder outside"] == 2 * 303_179_776 and after.device(choice)["encoder outside"] == 0
    assert after.device(choice)["activations"] < before.device(choice)["activations"]
    per_token = [
        float(re.search(r"operations per token: (\S+);", report(configuration, "mmca", 8, "h100", 0.4))[1])
        for configuration in (plain, stored)
    ]
    epoch = epoch_totals(plain, run.blend, before.model.config.image_tokens)
    saved = Flops(before.model).encoder * epoch.images / epoch.tokens
    # The report has three digits.
    assert per_token[0] - per_token[1] == pytest.approx(saved, abs=0.1e9) and saved > 0.3e9
