"""An image computed once: cached = recomputed, at any position, in any batch, over rounds, with beams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

from model.attention import SWITCHES
from model.attention_plan import AttentionPlan
from model.configuration import VisualChatConfig
from model.conversation_cache import ConversationCache
from model.image_cache import ImageCache
from model.modeling import VisualChatForConditionalGeneration
from model.rotation import KeyRotation
from tests.model.conversations import ONE_IMAGE, PICTURES, TEXT_ONLY, TWO_IMAGES, batch_of, picture, prompts
from tests.model.test_decoders import SMALL, TESTED
from tests.tiny_models import IMAGE_TOKENS, user


@pytest.fixture(scope="module", params=["mmca", "dattn"])
def model(request, folder):
    config = VisualChatConfig.from_pretrained(folder, attention=request.param)
    return VisualChatForConditionalGeneration.from_pretrained(folder, config=config).eval()


def states(model, *numbers: int):
    return model.compute_image_states(torch.from_numpy(np.stack([PICTURES[number] for number in numbers])))


def forward(model, batch: dict, **options):
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], modality=batch["modality"], **options)


@pytest.mark.parametrize("side", ["right", "left"])
def test_cached_images_give_the_logits_of_recomputed_ones(model, processor, side):
    batch = batch_of(processor, TWO_IMAGES, TEXT_ONLY, ONE_IMAGE, side=side)
    full = forward(model, batch, pixel_values=batch["pixel_values"]).logits
    cached = forward(model, batch, image_states=states(model, 0, 1, 2)).logits
    text = batch["modality"] == 1
    torch.testing.assert_close(cached[text], full[text], rtol=1e-4, atol=1e-5)
    assert not cached[batch["modality"] == 2].any()


def test_states_do_not_depend_on_position_or_batch(model, processor):
    """The same states serve an image as the first and as the last of a conversation, after any text."""
    (first, second) = states(model, 0, 1)
    (alone,) = states(model, 1)
    for one, other in zip((*second.keys, *second.values), (*alone.keys, *alone.values), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for messages in (
        [user("What?", 1), {"role": "assistant", "content": "yes"}, user("And?", 0)],
        [user("A long question before any image."), {"role": "assistant", "content": "no"}, user("Which?", 0, 1, 0)],
    ):
        batch = batch_of(processor, messages)
        order = processor.encode(messages).image_indices
        full = forward(model, batch, pixel_values=batch["pixel_values"]).logits
        cached = forward(model, batch, image_states=[(first, second)[index] for index in order]).logits
        torch.testing.assert_close(cached[0, -1], full[0, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", [1, 4, 100])
def test_rounds_over_a_conversation_cache_equal_one_forward(model, processor, step):
    """New text and new images continue the cache; each image is added once, with all its placeholders."""
    batch = batch_of(processor, TWO_IMAGES)
    full = forward(model, batch, pixel_values=batch["pixel_values"]).logits[0]
    ids, modality = batch["input_ids"], batch["modality"]
    cache, waiting, parts, start = ConversationCache(model.config), iter(states(model, 0, 1)), [], 0
    while start < ids.shape[1]:
        stop = min(start + step, ids.shape[1])
        while stop < ids.shape[1] and modality[0, stop] == modality[0, stop - 1] == 2:
            stop += 1
        new = [next(waiting) for _ in range(int((modality[0, start:stop] == 2).sum()) // IMAGE_TOKENS)]
        with torch.no_grad():
            out = model(ids[:, start:stop], past_key_values=cache, image_states=new)
        parts.append(out.logits[0])
        start = stop
    assert cache.get_seq_length() == ids.shape[1] and cache.layers[0].keys.shape[2] == int((modality == 1).sum())
    text = modality[0] == 1
    torch.testing.assert_close(torch.cat(parts)[text], full[text], rtol=1e-4, atol=1e-5)


def test_pixels_may_be_added_to_a_conversation_cache_too(model, processor):
    batch = batch_of(processor, TWO_IMAGES, ONE_IMAGE, side="left")
    cache = ConversationCache(model.config)
    ours = forward(model, batch, pixel_values=batch["pixel_values"], past_key_values=cache).logits
    theirs = forward(model, batch, image_states=states(model, 0, 1, 2)).logits
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("removed", [1, 5, IMAGE_TOKENS + 30])
def test_cropping_removes_text_and_images(model, processor, removed):
    batch = batch_of(processor, TWO_IMAGES)
    ids, modality = batch["input_ids"], batch["modality"]
    with torch.no_grad():
        cache = model(ids, modality, image_states=states(model, 0, 1)).past_key_values
        cache.crop(-removed)
        keep = ids.shape[1] - removed
        assert cache.get_seq_length() == keep and cache.layers[0].keys.shape[2] == int((modality[0, :keep] == 1).sum())
        seen = int((modality[0, :keep] == 2).sum()) // IMAGE_TOKENS
        again = model(ids[:, keep:], modality, past_key_values=cache, image_states=states(model, 0, 1)[seen:]).logits
        full = model(ids, modality, batch["pixel_values"]).logits
    torch.testing.assert_close(again[0, -1], full[0, -1], rtol=1e-4, atol=1e-5)
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.images == []


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
def test_generation_with_cached_images_equals_generation_with_pixels(model, processor, options):
    batch = prompts(processor, TWO_IMAGES, TEXT_ONLY, ONE_IMAGE)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None} | options
    expected = model.generate(**batch, **options)
    del batch["pixel_values"]
    assert torch.equal(model.generate(**batch, image_states=states(model, 0, 1, 2), **options), expected)


@pytest.mark.parametrize("choose", ["reorder_cache", "batch_select_indices"])
def test_conversations_of_a_cache_may_change_their_rows(model, processor, choose):
    batch = prompts(processor, TWO_IMAGES, TEXT_ONLY, ONE_IMAGE)
    del batch["pixel_values"]
    rows, expected = torch.tensor([2, 0, 1]), None
    for order in (torch.arange(3), rows):
        with torch.no_grad():
            cache = model(**batch, image_states=states(model, 0, 1, 2), use_cache=True).past_key_values
            getattr(cache, choose)(order)
            modality = torch.cat((batch["modality"][order], torch.ones(3, 1, dtype=torch.int64)), 1)
            found = model(torch.tensor([[30], [40], [50]])[order], modality=modality, past_key_values=cache).logits
        expected = found[rows] if expected is None else expected
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_sampling_several_answers(model, processor):
    batch = prompts(processor, TWO_IMAGES, ONE_IMAGE)
    del batch["pixel_values"]
    torch.manual_seed(0)
    options = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 3, "eos_token_id": None}
    out = model.generate(**batch, image_states=states(model, 0, 1, 2), **options)
    assert out.shape[0] == 6 and len({tuple(row.tolist()) for row in out}) > 2


def test_an_image_is_computed_once_and_the_least_recently_used_is_dropped(model, processor):
    cache = ImageCache(model)
    seen = []
    hook = model.vision_tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    first = cache.model_inputs([PICTURES[0], PICTURES[1], PICTURES[0]])["image_states"]
    again = cache.model_inputs([PICTURES[1], PICTURES[2]])["image_states"]
    hook.remove()
    assert seen == [2, 1] and cache.misses == 3
    assert first[0] is first[2] and first[1] is again[0]
    assert cache.model_inputs([]) == {} and cache.nbytes == sum(state.nbytes for state in (*first[:2], again[1]))

    small = ImageCache(model, max_bytes=2 * first[0].nbytes)
    for number in (0, 1, 0, 2):
        small.model_inputs([PICTURES[number]])
    assert small.nbytes == small.max_bytes and small.misses == 3
    small.model_inputs([PICTURES[0]])
    assert small.misses == 3, "what was used last must stay"
    small.model_inputs([PICTURES[1]])
    assert small.misses == 4
    small.clear()
    assert small.nbytes == 0 and small.model_inputs([PICTURES[1]]) and small.misses == 5


def test_with_causal_attention_the_tower_s_features_are_kept(folder, processor):
    config = VisualChatConfig.from_pretrained(folder, attention="causal")
    model = VisualChatForConditionalGeneration.from_pretrained(folder, config=config)
    with pytest.raises(ValueError, match="'causal' the states of an image depend on what precedes it"):
        states(model, 0)
    cache = ImageCache(model)
    inputs = cache.model_inputs([PICTURES[0], PICTURES[1]])
    batch = prompts(processor, TWO_IMAGES)
    expected = model.generate(**batch, max_new_tokens=4, do_sample=False)
    del batch["pixel_values"]
    assert torch.equal(model.generate(**batch, **inputs, max_new_tokens=4, do_sample=False), expected)
    cache.model_inputs([PICTURES[1]])
    assert cache.misses == 2


def test_images_that_do_not_match_their_placeholders_are_refused(model, processor):
    batch = batch_of(processor, TWO_IMAGES)
    with pytest.raises(ValueError, match="32 image placeholders, but their 1 images 16 tokens"):
        forward(model, batch, image_states=states(model, 0))
    with pytest.raises(ValueError, match="images in one form"):
        forward(model, batch, image_states=states(model, 0, 1), pixel_values=batch["pixel_values"])
    with pytest.raises(ValueError, match="need a ConversationCache"):
        forward(model, batch, image_states=states(model, 0, 1), past_key_values=DynamicCache(config=model.config))
    with pytest.raises(ValueError, match="supports neither packed documents, attentions nor hidden states"):
        forward(model, batch, image_states=states(model, 0, 1), output_hidden_states=True)


def test_an_image_may_not_lie_in_two_conversations(model):
    """As many placeholders as two images have, but half an image in the first row."""
    modality = torch.ones(2, 30, dtype=torch.int64)
    modality[0, 1 : 1 + IMAGE_TOKENS // 2] = modality[1, 1 : 1 + 3 * IMAGE_TOKENS // 2] = 2
    batch = {"input_ids": torch.where(modality == 2, model.config.image_token_id, 20), "modality": modality}
    with pytest.raises(ValueError, match="an image would lie in two conversations"):
        forward(model, batch, image_states=states(model, 0, 1))


@pytest.mark.parametrize("attention", ["mmca", "causal"])
def test_what_is_kept_of_an_image_takes_no_more_memory_than_is_counted(folder, attention):
    """A view would keep the images that were computed beside it."""
    config = VisualChatConfig.from_pretrained(folder, attention=attention)
    cache = ImageCache(VisualChatForConditionalGeneration.from_pretrained(folder, config=config))
    cache.model_inputs(PICTURES)
    kept = [(*x.keys, *x.values) if attention == "mmca" else (x,) for x in cache._kept.values()]
    assert len(kept) == 3 and sum(x.untyped_storage().nbytes() for parts in kept for x in parts) == cache.nbytes


ROTATIONS = TESTED | {
    "glm": {"pad_token_id": 0},
    "cohere": {"logit_scale": 1.0},
    "gpt_neox": {"rotary_pct": 0.5},
    "llama yarn": {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "attention_factor": 1.3}
        | {"original_max_position_embeddings": 64}
    },
}


@pytest.mark.parametrize("kind", ROTATIONS)
def test_keys_are_moved_as_every_decoder_moves_them(kind):
    """In halves, in pairs, part of a head, some layers only, scaled: moved keys equal those computed there."""
    config = CONFIG_MAPPING[kind.split()[0]](**SMALL | ROTATIONS[kind])
    torch.manual_seed(0)
    decoder = AutoModelForCausalLM.from_config(config, attn_implementation="mmca").eval().get_decoder()

    tokens = torch.randn(1, 2, 32)

    def keys_at(positions):
        cache = DynamicCache(config=config)
        attention_plan = AttentionPlan.build(torch.full(positions.shape, 2), **SWITCHES["mmca"])
        with torch.no_grad():
            inputs = {"inputs_embeds": tokens, "past_key_values": cache, "use_cache": True}
            decoder(**inputs, position_ids=positions, attention_plan=attention_plan)
        return [(layer.keys, layer.values) for layer in cache.layers]

    rotation = KeyRotation.detect(decoder, keys_at)
    assert "none" not in rotation.styles or kind == "smollm3"
    elsewhere = torch.tensor([[40, 2]])
    moved = rotation.rotate([key[0] for key, _ in keys_at(torch.zeros(1, 2, dtype=torch.int64))], elsewhere[0])
    for ours, (theirs, _) in zip(moved, keys_at(elsewhere), strict=True):
        torch.testing.assert_close(ours, theirs[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2}, "layer 0 does not rotate its keys"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic' depend"),
    ],
)
def test_decoders_whose_keys_cannot_be_moved_are_refused(folder, kind, options, error):
    base = VisualChatConfig.from_pretrained(folder)
    text = CONFIG_MAPPING[kind](**{**SMALL, "vocab_size": 320} | options)
    config = VisualChatConfig(vision_config=base.vision_config, text_config=text, image_token_id=2, image_tokens=16)
    model = VisualChatForConditionalGeneration(config).eval()
    assert not model.supports_image_states
    with pytest.raises(ValueError, match=error):
        states(model, 0)
    assert "image_features" in ImageCache(model).model_inputs([picture(5)])
