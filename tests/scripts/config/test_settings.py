"""The configuration is checked as a whole, and what is generated from it is up to date."""

import copy
import dataclasses
from pathlib import Path

import pytest
import yaml

from model.template import Template
from scripts.common.errors import UserError
from scripts.config import reference, settings
from scripts.config.stages import earlier_runs
from scripts.config.tokens import TemplateTexts
from tests.workflow.project import TINY

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = [ROOT / "config.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))]


def _default() -> dict:
    return yaml.safe_load((ROOT / "config.yaml").read_text())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_configuration_is_valid(path):
    settings.load(yaml.safe_load(path.read_text()))


def test_no_two_shipped_configurations_share_a_name_or_a_root():
    loaded = [settings.load(yaml.safe_load(path.read_text())) for path in SHIPPED]
    assert len({s.name for s in loaded}) == len({s.results for s in loaded}) == len(loaded)


@pytest.mark.parametrize("name", sorted(reference.generated()))
def test_generated_files_are_up_to_date(name):
    assert (ROOT / name).read_text() == reference.generated()[name], "run `make docs`"


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("blend",), {}, ["blend: unknown key", "did you mean 'blends'?"]),
        (("runs", "mmca", "atention"), "causal", ["runs.mmca.atention", "did you mean 'attention'?"]),
        (("runs", "mmca", "attention"), "dense", ["runs.mmca.attention", "'mmca', 'causal'"]),
        (("runs", "mmca", "model"), "tinny", ["runs.mmca.model", "did you mean 'tiny'?"]),
        (("runs", "mmca", "learning_rate"), "1e-3x", ["runs.mmca.learning_rate", "1e-3x"]),
        (("blends", "demo", "datasets", "lava"), {}, ["blends.demo.datasets", "did you mean 'llava'?"]),
        (("blends", "demo", "datasets", "llava", "cocnat"), 2, ["llava.cocnat", "did you mean 'concat'?"]),
        (("tokens", "miniature", "template", "sistem"), "", ["template.sistem", "did you mean 'system'?"]),
        (
            ("tokens", "miniature", "template", "joined"),
            True,
            ["tokens.miniature.template", "needs 'images': 'inline'"],
        ),
        (("runs", "mmca", "extnds"), "mmca", ["runs.mmca.extnds", "did you mean 'extends'?"]),
        (("custom",), {"pets": {"folder": "x", "files": "a.json"}}, ["custom.pets.files", "a list, such as [a.json]"]),
        (("runs", "other"), {"extends": "mcma"}, ["runs.other.extends", "did you mean 'mmca'?"]),
        (("data_path",), "/somewhere", ["suites", "miniature"]),
        (
            ("blends", "demo", "datasets", "mine"),
            {"join": {"over": "aokvqa", "talk": ["lava"]}},
            ["mine.join", "'llava'?"],
        ),
        (("blends", "demo", "datasets", "aokvqa"), {"join": {"over": "llava", "talk": ["llava_dial"]}}, ["of its own"]),
        (
            ("blends", "demo", "datasets", "mine"),
            {"join": {"over": "ocr_vqa", "talk": ["llava"]}},
            ["llava and ocr_vqa show images of different sources"],
        ),
        (("custom",), {"llava": {"folder": "x", "files": ["a.json"]}}, ["custom.llava", "choose another"]),
        (
            ("custom",),
            {"pets": {"folder": "x", "files": ["a.json"], "images": ["a.zip", "a.tar"]}},
            ["custom.pets.images", "'a/'", "rename one of them"],
        ),
        (("licences",), {"refuse": ["OpenAI-terms"]}, ["blends.demo.datasets: llava is under OpenAI-terms"]),
        (("licences",), {"allow": ["CC-BY-4.0", "MIT"]}, ["otter_mimicit_cgd is under Flickr-terms, research-only"]),
    ],
)
def test_a_mistake_is_named_with_its_place_and_the_nearest_right_word(place, value, words):
    config = _default()
    inner = config
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(UserError) as error:
        settings.load(config)
    for word in words:
        assert word in str(error.value)


def test_all_problems_are_listed_at_once():
    config = _default()
    config["nonsense"] = 1
    config["runs"]["mmca"]["epochs"] = 0
    with pytest.raises(UserError) as error:
        settings.load(config)
    assert "nonsense" in str(error.value) and "runs.mmca.epochs" in str(error.value)


def test_like_takes_over_a_run_and_changes_one_thing():
    config = _default()
    config["runs"]["causal"] = {"extends": "mmca", "attention": "causal"}
    loaded = settings.load(config)
    assert loaded.runs["causal"] == loaded.runs["mmca"].model_copy(update={"attention": "causal"})


def test_runs_that_name_each_other_in_a_circle_are_refused():
    config = _default()
    config["runs"] = {"a": {"extends": "b"}, "b": {"extends": "a"}}
    with pytest.raises(UserError, match="circle"):
        settings.load(config)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ({"align": {"train_projector": False}}, "runs.align.train_projector: the projector is new and would never be"),
        ({"tune": {"start": "algn"}}, "runs.tune.start: there is no run 'algn'; did you mean 'align'?"),
        ({"tune": {"start": "align:last"}}, "runs.tune.start: Value error, should be the name of a run, or NAME:final"),
        (
            {"align": {"start": "align"}},
            "runs.align.start: the runs start from each other in a circle (align -> align)",
        ),
        (
            {"align": {"start": "last"}, "tune": {"start": "align"}, "last": {"start": "tune:best"}},
            "runs.tune.start: the runs start from each other in a circle (tune -> align -> last -> tune)",
        ),
        (
            {"tune": {"start": "align", "model": "other"}},
            "runs.tune.start: 'align' trains the model 'small' and this run 'other'",
        ),
        (
            {
                "align": {"train_vision": "lora"},
                "tune": {"start": "align"},
                "last": {"start": "tune", "features": True},
            },
            "runs.last.features: the features are those of the encoder of `models`, but 'align'",
        ),
    ],
)
def test_a_run_starts_only_from_a_run_that_fits(runs, message):
    config = copy.deepcopy(TINY)
    config["models"]["other"] = config["models"]["small"]
    config["runs"] = {
        name: {"model": "small", "blend": "mixed"} | runs.get(name, {}) for name in ("align", "tune", "last")
    }
    with pytest.raises(UserError) as error:
        settings.load(config)
    assert message in str(error.value)


def test_a_run_may_start_from_one_on_another_blend_and_further_back():
    config = copy.deepcopy(TINY)
    config["runs"]["tune"] = {"extends": "second", "start": "first:best", "features": True}
    config["runs"]["last"] = {"extends": "tune", "start": "tune"}
    found = settings.load(config).runs
    assert found["tune"].started_from == ("first", "best") and found["last"].started_from == ("tune", "final")
    assert earlier_runs(found, "last") == ["tune", "first"] and earlier_runs(found, "first") == []


def test_a_blend_and_a_model_that_count_differently_are_refused():
    config = _default()
    config["tokens"]["other"] = copy.deepcopy(config["tokens"]["miniature"])
    config["models"]["tiny"]["tokens"] = "other"
    with pytest.raises(UserError, match="same entry of `tokens`"):
        settings.load(config)


def test_a_cause_names_only_what_differs_from_the_defaults():
    blend = settings.load(_default()).blends["demo"]
    same = blend.model_validate(blend.model_dump() | {"max_images": type(blend).model_fields["max_images"].default})
    assert blend.rerun_key() == same.rerun_key()
    assert blend.rerun_key() != blend.model_copy(update={"max_images": 2}).rerun_key()
    assert '"shards"' in blend.rerun_key() and '"shards"' not in blend.rerun_key(without=("shards",))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot be read"), ("a: [1", "cannot be read"), ("- a\n", "holds no configuration")],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path, content, words):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        settings.read_configuration(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_fields_of_a_template_can_be_configured():
    assert TemplateTexts().template() == Template()
    assert set(TemplateTexts.model_fields) == {field.name for field in dataclasses.fields(Template)}
