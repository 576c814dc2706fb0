"""The size of an epoch before anything is built, beside that of the plan which is made afterwards."""

import json
import shutil
from pathlib import Path

import pytest

from scripts.common.files import read_json
from scripts.config import settings
from scripts.config.tokens import TokensConfig
from scripts.estimation import dataset_sizes, epoch_size
from scripts.estimation.epoch_size import COMPUTED, PLANNED, epoch_totals
from tests import synthetic_data
from tests.scripts.blending import synthetic_blend
from tests.scripts.blending.synthetic_blend import World
from tests.tiny_models import IMAGE_TOKENS
from tests.workflow.project import ROOT

IMAGES = 300
ROWS = {"llava_reasoning": 3, "llava_detail": 0.1, "cgd": 2, "cgd_rounds": 2}
BLENDS = {
    "samples": {"datasets": {"llava": {"samples": 200}, "coco_caption": {"samples": 0.5}}},
    "more than there are": {"datasets": {"aokvqa": {"samples": 10_000}, "llava_dial": {}}},
    "concat": {"datasets": {"llava": {"samples": 300, "concat": 3}}, "max_images": 4},
    "repeat": {"datasets": {"llava_dial": {"samples": 100, "repeat": 3}}},
    "proportion": {"datasets": {"llava": {"proportion": 0.8}, "coco_caption": {"proportion": 0.2}}, "epoch_size": 2000},
    "packing": {"datasets": {"llava": {"concat": 2}, "otter_mimicit_cgd": {}, "aokvqa": {}}, "packing": True},
    "images": {"datasets": {"otter_mimicit_cgd": {}}, "packing": True, "max_images": 4, "max_images_per_pack": 6},
    "join": {"datasets": {"llava_otter_blend": {"conversations": 1, "rounds": 1, "followups": 1}}},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """The miniature with everything that a plan needs."""
    folder = tmp_path_factory.mktemp("world")
    made = synthetic_data.make_synthetic_data
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic_blend, "make_synthetic_data", lambda at, n: made(at, n, rows=ROWS))
        return World.build(folder, IMAGES)


def configuration(root: Path, tokenizer: Path, blend: dict, **more) -> settings.Settings:
    """A configuration whose results lie in `root`, and whose tokens are counted as those of the world are."""
    tokens = TokensConfig(tokenizer=str(tokenizer), image_tokens=IMAGE_TOKENS, template="paper")
    loaded = settings.load(
        {
            "name": "test",
            "results": "results-test",
            "holdout": {"share": 0.2},
            "miniature": {"images": IMAGES, "rows": ROWS},
            "tokens": {"tiny": {"tokenizer": "miniature", "image_tokens": 4, "template": "paper"}},
            "blends": {"demo": {"tokens": "tiny", "sequence": 400, "global_batch": 8} | blend},
            "models": {"tiny": {"vision": "miniature", "language": "miniature", "tokens": "tiny"}},
            "runs": {"mmca": {"model": "tiny", "blend": "demo", "learning_rate": 1e-3}},
        }
        | more
    )
    return loaded.model_copy(update={"results": str(root), "tokens": {"tiny": tokens}})


@pytest.mark.parametrize("blend", BLENDS.values(), ids=BLENDS)
def test_the_estimate_before_the_plan_is_the_plan_within_a_few_percent(world: World, tmp_path, blend):
    world.plan(**blend)
    plan = read_json(world.root / "plan/demo/epoch-000.json")
    exact = epoch_totals(configuration(world.root, world.tokenizer, blend), "demo", IMAGE_TOKENS)
    assert (exact.source, exact.units, exact.tokens) == (PLANNED, plan["units"], plan["tokens"])

    shutil.copytree(world.root / "records", tmp_path / "records")
    for root, tolerance in ((tmp_path, 0.05), (tmp_path / "nothing is built", 0.06)):
        found = epoch_totals(configuration(root, world.tokenizer, blend), "demo", IMAGE_TOKENS)
        assert not found.exact
        assert found.conversations == pytest.approx(plan["conversations"], rel=tolerance)
        assert found.images == pytest.approx(plan["images"], rel=tolerance)
        if root == tmp_path and "llava_otter_blend" not in blend["datasets"]:
            assert found.tokens == pytest.approx(plan["tokens"], rel=tolerance)
            assert found.units == pytest.approx(plan["units"], rel=tolerance)


def test_records_are_enough_for_the_exact_number(world: World):
    (world.root / "plan/demo/epoch-000.json").unlink(missing_ok=True)
    blend = {"datasets": {"llava": {"samples": 111, "concat": 2}}, "packing": True}
    found = epoch_totals(configuration(world.root, world.tokenizer, blend), "demo", IMAGE_TOKENS)
    world.plan(**blend)
    plan = read_json(world.root / "plan/demo/epoch-000.json")
    assert found.source == COMPUTED and found.exact
    assert (found.conversations, found.units, found.tokens) == (plan["conversations"], plan["units"], plan["tokens"])


def test_a_plan_counts_only_for_the_settings_that_it_was_made_with(world: World):
    blend = {"datasets": {"llava": {"samples": 50}}}
    world.plan(**blend)
    same = configuration(world.root, world.tokenizer, blend)
    assert epoch_totals(same, "demo", IMAGE_TOKENS).source == PLANNED
    for changed in ({"datasets": {"llava": {"samples": 60}}}, blend | {"sequence": 300}):
        other = configuration(world.root, world.tokenizer, changed)
        assert epoch_totals(other, "demo", IMAGE_TOKENS).source == COMPUTED


def own_rows(folder: Path, count: int) -> Path:
    """Rows about a picture, every fifth without one."""
    folder.mkdir()
    shutil.copy(ROOT / "examples/images/cat.png", folder)
    with open(folder / "rows.jsonl", "w") as file:
        for number in range(count):
            row = {"question": f"What is row {number}?", "answer": "A cat on a meadow. " * (1 + number % 3)}
            file.write(json.dumps(row | ({"image": "cat.png"} if number % 5 else {})) + "\n")
    return folder


@pytest.mark.parametrize(("split", "share"), [(None, 1.0), ({"rows": 0.25}, 0.75)])
def test_own_rows_are_counted_where_nothing_is_built(world: World, tmp_path, monkeypatch, split, share):
    folder = own_rows(tmp_path / "rows", 400)
    custom = {"mine": {"folder": str(folder)} | ({"split": split} if split else {})}
    more = {"custom": custom, "holdout": {"share": 0.0}}
    own = configuration(tmp_path, world.tokenizer, {"datasets": {"mine": {}}}, **more)
    found = epoch_totals(own, "demo", IMAGE_TOKENS)
    assert found.conversations == pytest.approx(400 * share) and "a guess" not in found.source
    assert found.images == pytest.approx(320 * share, rel=0.02)
    assert "counted, from its files" in found.notes[0]
    sampled = configuration(tmp_path, world.tokenizer, {"datasets": {"mine": {"samples": 120, "repeat": 2}}}, **more)
    assert epoch_totals(sampled, "demo", IMAGE_TOKENS).conversations == 240
    monkeypatch.setattr(dataset_sizes, "_ROWS_READ", 50)
    first = epoch_totals(own, "demo", IMAGE_TOKENS)
    assert first.conversations == pytest.approx(400 * share) and first.source.startswith("a guess")
    assert first.tokens == pytest.approx(found.tokens, rel=0.05)


def test_own_rows_that_are_not_there_are_a_guess(world: World, tmp_path):
    more = {"custom": {"mine": {"folder": str(tmp_path / "absent")}}, "holdout": {"share": 0.0}}
    found = epoch_totals(configuration(tmp_path, world.tokenizer, {"datasets": {"mine": {}}}, **more), "demo", 16)
    assert found.conversations == 10_000 and "not here yet" in found.notes[0] and found.source.startswith("a guess")


def test_published_datasets_have_the_numbers_of_the_paper(tmp_path):
    blend = {"datasets": {"minigpt4": {"samples": 1_000_000}, "llava": {"samples": 0.5, "concat": 3}}}
    more = {"data_path": str(tmp_path), "holdout": {"share": 0.0}}
    notes = epoch_totals(configuration(tmp_path, Path("gpt2"), blend, **more), "demo", 16).notes
    assert notes[0].startswith("llava: 24,962 conversations (a guess") and notes[1].startswith("minigpt4: 3,439")


def test_replay_is_text_alone(tmp_path):
    more = {"replay": {"own": {"model": "tiny", "samples": 300, "max_new_tokens": 100}}}
    config = configuration(tmp_path, Path("gpt2"), {"datasets": {"llava": {"samples": 10}}}, **more)
    size = dataset_sizes.dataset_size(config, "own", ["own"], dataset_sizes.reading_of(config.tokens["tiny"], tmp_path))
    assert size.conversations == 300 and size.lengths.images.sum() == 0 and size.lengths.labels[0] == 50


def test_a_large_blend_is_simulated_in_part(tmp_path, monkeypatch):
    blend = {"datasets": {"llava": {}, "llava_dial": {}}, "packing": True}
    whole = epoch_totals(configuration(tmp_path, Path("gpt2"), blend), "demo", 16)
    monkeypatch.setattr(epoch_size, "_SIMULATED", 100)
    part = epoch_totals(configuration(tmp_path, Path("gpt2"), blend), "demo", 16)
    assert part.conversations == whole.conversations and part.tokens == pytest.approx(whole.tokens, rel=0.02)
    assert part.units == pytest.approx(whole.units, rel=0.1)
