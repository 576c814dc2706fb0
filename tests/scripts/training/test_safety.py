"""What is refused or warned of before the first step, from settings and configurations alone."""

import pytest

from scripts.common.errors import PermanentError
from scripts.config.base_facts import made_by_graph
from scripts.config.context import context_length
from scripts.config.run import RunConfig
from scripts.training import safety
from scripts.training.first_loss import FirstLoss, warning


def run(**changes) -> RunConfig:
    return RunConfig(**{"model": "m", "blend": "b"} | changes)


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, 4096),
        ({"rope_type": "default"}, 4096),
        ({"type": "linear", "factor": 4.0}, 16384),
        ({"rope_type": "dynamic", "factor": 2.0}, 8192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048}, 4096),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 1024}, 4096),
    ],
)
def test_scaled_rotary_positions_count(scaling, expected):
    assert context_length({"max_position_embeddings": 4096, "rope_scaling": scaling}) == expected
    assert context_length({"max_position_embeddings": 4096, "rope_parameters": scaling}) == expected
    assert context_length({"rope_scaling": scaling}) is None and context_length({"n_positions": 1024}) == 1024


def test_a_conversation_beyond_the_decoders_positions_is_refused():
    config = {"max_position_embeddings": 1024}
    safety.check_length(1024, config, "blend/mine/epoch-000")
    with pytest.raises(PermanentError, match=r"1025 tokens, but the decoder reads 1024.*sequence: 1024"):
        safety.check_length(1025, config, "blend/mine/epoch-000")


def test_rates_that_a_pretrained_decoder_does_not_survive_are_refused_in_training_too():
    high = run(train_language="full", learning_rate=1e-3, train_embeddings=False)
    with pytest.raises(PermanentError, match="would destroy the pretrained /data/smollm2"):
        safety.check_rates(high, "/data/smollm2", "bases/miniature/vision", (135_000_000, 20_000))
    safety.check_rates(high, "/data/tiny", "bases/miniature/vision", (30_000, 20_000))
    safety.check_rates(high.model_copy(update={"learning_rate": 5e-5}), "/data/smollm2", "v", (135_000_000, 90_000_000))


@pytest.mark.parametrize("language", ["bases/miniature/language", "/data/tiny", "/data/smollm2"])
def test_a_pretrained_encoder_beside_any_decoder_is_kept_from_high_rates(language):
    high = run(train_vision="full", learning_rate=1e-3, train_embeddings=False)
    with pytest.raises(PermanentError, match=r"pretrained encoder /data/siglip would be trained at 0.001.*rate: 2e-06"):
        safety.check_rates(high, language, "/data/siglip", (30_000, 90_000_000))
    safety.check_rates(high, language, "/data/siglip", (30_000, 20_000))
    low = high.model_copy(update={"vision_learning_rate": 2e-6})
    safety.check_rates(low, language, "/data/siglip", (30_000, 90_000_000))


def test_a_projector_that_is_never_trained_is_refused_unless_a_stage_trained_it():
    safety.check_projector(run(), set())
    untrained = run(train_projector=False)
    with pytest.raises(PermanentError, match=r"projector is new and would never be trained.*start: RUN"):
        safety.check_projector(untrained, set())
    with pytest.raises(PermanentError, match="would never be trained"):
        safety.check_projector(untrained, {"language_model.model.embed_tokens.weight"})
    safety.check_projector(untrained, {"projector.linear.weight"})
    safety.check_projector(untrained, None)


def test_new_tokens_of_the_template_must_be_trained():
    new = {500: "<|turn|>", 501: "<|unused|>"}
    frozen = run(train_embeddings=False)
    assert "'<|turn|>'" in safety.untrained_rows(frozen, new, {3, 500}, set())
    assert "unused" not in safety.untrained_rows(frozen, new, {3, 500}, set())
    assert safety.untrained_rows(frozen, new, {3}, set()) is None
    assert safety.untrained_rows(run(), new, {3, 500}, set()) is None
    assert safety.untrained_rows(frozen, new, {3, 500}, {"language_model.model.embed_tokens.weight"}) is None


def test_weight_decay_of_a_long_run_shrinks_rows_that_no_data_touch():
    long = run(weight_decay=0.1, schedule="constant")
    assert "to 37%" in safety.decayed_embeddings(long, 1e-3, 10_000)
    assert safety.decayed_embeddings(long, 1e-3, 500) is None
    assert safety.decayed_embeddings(run(weight_decay=0.1, train_embeddings=False), 1e-3, 10_000) is None
    assert safety.decayed_embeddings(run(), 1e-3, 10_000) is None


def test_images_that_disturb_a_frozen_decoder_are_a_warning_with_the_line_to_write():
    # SmolLM2-135M-Instruct with the miniature's encoder: mmca and dattn.
    disturbed, undisturbed = FirstLoss(8.14, 3.51, 5), FirstLoss(3.50, 3.51, 5)
    text = warning(disturbed, run(attention="mmca"))
    assert "8.14 with images and 3.51 without" in text and "`attention: dattn`" in text
    assert "attention: dattn" not in warning(disturbed, run(attention="dattn"))
    assert warning(undisturbed, run(attention="mmca")) is None
    assert warning(disturbed, run(train_language="lora")) is None
    assert warning(FirstLoss(float("nan"), 3.5, 5), run()) is None, "the held-out loss names the conversations"
    assert warning(None, run()) is None


def test_the_graphs_own_decoder_has_nothing_to_lose():
    assert made_by_graph("bases/miniature/language")
    assert not made_by_graph("bases/language") and not made_by_graph("/data/smollm2")
