"""A short configuration of own data is completed by the recipe, and what it has itself is kept."""

import pytest

from scripts.common.errors import UserError
from scripts.config import settings

PETS = {"custom": {"pets": {"folder": "data/pets"}}}


def test_a_folder_is_a_whole_configuration():
    loaded = settings.load(PETS)
    assert (loaded.name, loaded.results) == ("pets", "results-pets")
    (blend,), (model,), (run,) = loaded.blends.values(), loaded.models.values(), loaded.runs.values()
    assert list(blend.datasets) == ["pets"]
    assert blend.tokens == model.tokens == next(iter(loaded.tokens))
    assert (run.model, run.blend) == (next(iter(loaded.models)), next(iter(loaded.blends)))


def test_a_blend_holds_all_own_datasets_and_other_defaults_stay():
    loaded = settings.load({"name": "zoo", "custom": {**PETS["custom"], "birds": {"folder": "b"}}})
    assert (loaded.name, loaded.results) == ("zoo", "results-zoo")
    assert list(next(iter(loaded.blends.values())).datasets) == ["pets", "birds"]
    assert loaded.holdout == settings.Settings.model_fields["holdout"].default


def test_a_blend_holds_replay_which_must_name_what_there_is():
    loaded = settings.load(PETS | {"replay": {"talk": {"model": "tiny", "questions_of": ["pets"]}}})
    assert list(next(iter(loaded.blends.values())).datasets) == ["pets", "talk"] == loaded.datasets()
    wrong = {"model": "tinny", "questions_of": ["pet", "talk"]}
    with pytest.raises(UserError, match=r"'tinny'; did you mean 'tiny'(.|\n)*'pet'; did you mean 'pets'(.|\n)*'talk'"):
        settings.load(PETS | {"replay": {"talk": wrong}})
    with pytest.raises(UserError, match=r"replay\.pets: this is the name of another dataset"):
        settings.load(PETS | {"replay": {"pets": {"model": "tiny"}}})


def test_replay_is_in_the_blends_that_have_it_in_the_recipe():
    """The recipe of a real model aligns the projector without replay."""
    model = {"vision": "miniature", "language": "owner/decoder"}
    loaded = settings.load({"custom": {**PETS["custom"], "birds": {"folder": "b"}}, "models": {"mine": model}})
    first, mine = loaded.blends["first"].datasets, loaded.blends["mine"].datasets
    assert [*first] == ["pets", "birds"]
    assert [*mine] == [*first, "decoder-answers"]
    # Every own dataset is sampled as the recipe samples its own: half of each aligns the projector.
    assert [entry.samples for entry in first.values()] == [0.5, 0.5]
    assert {entry.samples for entry in mine.values()} == {"all"}


def test_own_sections_are_kept_and_the_rest_refers_to_them():
    own = {
        "tokens": {"mine": {"tokenizer": "miniature", "image_tokens": 4}},
        "models": {"big": {"vision": "miniature", "language": "miniature", "tokens": "mine"}},
    }
    loaded = settings.load({**PETS, **own})
    assert list(loaded.tokens) == ["mine"]
    assert list(loaded.models) == ["big"]
    assert [blend.tokens for blend in loaded.blends.values()] == ["mine"]
    assert [run.model for run in loaded.runs.values()] == ["big"]


@pytest.mark.parametrize("config", [{}, {"custom": {}}, {"custom": 3}, {"name": "x", "holdout": {"share": 0.1}}])
def test_without_own_data_nothing_is_completed(config):
    with pytest.raises(UserError, match="models: is required"):
        settings.load(config)


def test_rows_of_own_data_have_a_small_tolerance():
    tolerance = settings.ToleranceConfig()
    assert (tolerance.rows_of(custom=True), tolerance.rows_of(custom=False)) == (0.05, 0.5)
    given = settings.ToleranceConfig(rows=0.2)
    assert given.rows_of(custom=True) == given.rows_of(custom=False) == 0.2


def test_a_configuration_with_all_sections_gets_a_name_too():
    blends, runs = {"all": {"datasets": {"pets": {}}}}, {"only": {"model": "mine", "blend": "all"}}
    models = {"mine": {"vision": "miniature", "language": "miniature"}}
    loaded = settings.load({**PETS, "blends": blends, "models": models, "runs": runs})
    assert (loaded.name, loaded.results) == ("pets", "results-pets")


def test_two_models_need_runs_that_say_which_is_trained():
    model = {"vision": "miniature", "language": "miniature"}
    with pytest.raises(UserError, match=r"models: there are 2 \(one, two\), but the runs .* train one.*write `runs`"):
        settings.load({**PETS, "models": {"one": model, "two": model}})
