"""The whole model: images at their placeholders, losses, caches, generation, and inputs that it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model.configuration import VisualChatConfig
from model.modeling import VisualChatForConditionalGeneration
from model.template import IGNORE_INDEX
from tests.model.conversations import (
    ATTENTIONS,
    ONE_IMAGE,
    PICTURES,
    TEXT_ONLY,
    TWO_IMAGES,
    batch_of,
    logits_of,
    picture,
    prompts,
)
from tests.tiny_models import IMAGE_TOKENS, user


@pytest.fixture(params=ATTENTIONS)
def any_model(request, folder):
    config = VisualChatConfig.from_pretrained(folder, attention=request.param)
    return VisualChatForConditionalGeneration.from_pretrained(folder, config=config)


def test_placeholders_hold_their_own_image(model, processor):
    batch = batch_of(processor, TWO_IMAGES, TEXT_ONLY, ONE_IMAGE)
    seen = {}
    decoder = model.language_model.get_decoder()
    decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    logits_of(model, batch)
    images = seen["inputs_embeds"][batch["modality"] == 2].view(3, IMAGE_TOKENS, -1)
    for number, image in enumerate(PICTURES):
        with torch.no_grad():
            alone = model.projector(model.vision_tower(torch.from_numpy(image)[None]))[0]
        torch.testing.assert_close(images[number], alone)


def test_an_image_changes_only_what_follows_it(any_model, processor):
    batch = batch_of(processor, TWO_IMAGES)
    first = int((batch["modality"] == 2).nonzero()[0, 1])
    second = int((batch["modality"] == 2).nonzero()[IMAGE_TOKENS, 1])
    before = logits_of(any_model, batch)[0]
    for index, start in ((0, first), (1, second)):
        changed = list(PICTURES)
        changed[index] = picture(9)
        after = logits_of(any_model, batch_of(processor, TWO_IMAGES, pictures=changed))[0]
        assert torch.equal(before[:start], after[:start])
        assert not torch.allclose(before[start + IMAGE_TOKENS :], after[start + IMAGE_TOKENS :], atol=1e-5)
        if any_model.config.attention != "causal" and index == 0:
            # The image stream depends on nothing but the image.
            assert torch.equal(before[second : second + IMAGE_TOKENS], after[second : second + IMAGE_TOKENS])


def test_swapped_images_are_not_the_same_conversation(any_model, processor):
    swapped = [user("What is on the left?", 1), TWO_IMAGES[1], user("Which image has more?", 0), TWO_IMAGES[3]]
    first, second = (logits_of(any_model, batch_of(processor, messages)) for messages in (TWO_IMAGES, swapped))
    assert not torch.allclose(first[0, -5:], second[0, -5:], atol=1e-5)
    exchanged = [PICTURES[1], PICTURES[0], PICTURES[2]]
    assert torch.equal(first, logits_of(any_model, batch_of(processor, swapped, pictures=exchanged)))


def test_a_row_does_not_depend_on_its_batch_or_padding(any_model, processor):
    conversations = (TWO_IMAGES, TEXT_ONLY, ONE_IMAGE)
    seen = {}
    decoder = any_model.language_model.get_decoder()
    decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    alone = [logits_of(any_model, batch_of(processor, messages))[0] for messages in conversations]
    for side in ("left", "right"):
        batch = batch_of(processor, *conversations, side=side)
        together = logits_of(any_model, batch)
        for row, expected in enumerate(alone):
            real = batch["modality"][row] != 0
            torch.testing.assert_close(together[row][real], expected, rtol=1e-4, atol=1e-5)
            assert seen["position_ids"][row][real].tolist() == list(range(len(expected)))


def test_loss_is_the_cross_entropy_of_the_labels(any_model, processor):
    batch = batch_of(processor, TWO_IMAGES, TEXT_ONLY, ONE_IMAGE)
    logits, labels = logits_of(any_model, batch), batch["labels"]
    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=IGNORE_INDEX)
    count = (labels != IGNORE_INDEX).sum()
    with torch.no_grad():
        out = any_model(**batch)
        torch.testing.assert_close(out.loss, losses.sum() / count)
        torch.testing.assert_close(any_model(**batch, num_items_in_batch=7).loss, losses.sum() / 7)
        each, rows = any_model.token_losses(**batch)
    assert out.logits.shape == (count, logits.shape[-1])
    torch.testing.assert_close(each, losses[labels[:, 1:] != IGNORE_INDEX])
    torch.testing.assert_close(torch.zeros(3).index_add(0, rows, each), losses.sum(1))


def test_precomputed_features_equal_pixels(model, processor):
    batch = batch_of(processor, TWO_IMAGES, ONE_IMAGE)
    expected = logits_of(model, batch)
    tower = model.detach_vision_tower()
    assert not any(name.startswith("vision_tower") for name, _ in model.named_parameters())
    with pytest.raises(ValueError, match="vision tower is detached: run it"):
        model(**batch)
    pixels = batch.pop("pixel_values")
    with torch.no_grad():
        batch["image_features"] = tower(pixels)
    assert torch.equal(logits_of(model, batch), expected)
    with pytest.raises(ValueError, match="attach it before saving"):
        model.save_pretrained("nowhere")
    model.attach_vision_tower(tower)
    del batch["image_features"]
    assert torch.equal(logits_of(model, batch | {"pixel_values": pixels}), expected)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_batch_without_images_still_uses_the_projector(model, processor, checkpointing):
    model.train()
    model.vision_tower.requires_grad_(False)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model(**batch_of(processor, TEXT_ONLY)).loss.backward()
    for parameter in model.projector.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
    model(**batch_of(processor, TWO_IMAGES)).loss.backward()
    assert all(parameter.grad.any() for parameter in model.projector.parameters())


def test_a_batch_without_labels_has_a_loss_of_zero(model, processor):
    model.train()
    batch = batch_of(processor, TEXT_ONLY[:1])
    loss = model(**batch).loss
    loss.backward()
    assert loss.item() == 0 and not model.get_input_embeddings().weight.grad.any()


def test_gradient_checkpointing_changes_nothing(folder, processor):
    batch = batch_of(processor, TWO_IMAGES, TEXT_ONLY, ONE_IMAGE)
    gradients = []
    for checkpointing in (False, True):
        model = VisualChatForConditionalGeneration.from_pretrained(folder).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(**batch).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        if gradient is None:  # the encoder's pooling head takes no part
            assert gradients[1][name] is None and "post_layernorm" in name
        else:
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("step", [1, 5])
def test_cache_equals_full_forward(any_model, processor, step):
    batch = batch_of(processor, TWO_IMAGES, ONE_IMAGE, TEXT_ONLY, side="left")
    full = logits_of(any_model, batch)
    ids, modality = batch["input_ids"], batch["modality"]
    start = ids.shape[1] - 10
    assert (modality[:, start:] == 1).all()
    with torch.no_grad():
        out = any_model(ids[:, :start], modality[:, :start], batch["pixel_values"], use_cache=True)
        parts, cache = [out.logits], out.past_key_values
        for begin in range(start, ids.shape[1], step):
            # The modality of the prompt is enough: what follows it is text.
            out = any_model(ids[:, begin : begin + step], modality[:, :start], past_key_values=cache, use_cache=True)
            parts.append(out.logits)
    real = modality != 0
    torch.testing.assert_close(torch.cat(parts, 1)[real], full[real], rtol=1e-4, atol=1e-5)


def test_a_new_image_behind_a_cache(any_model, processor):
    batch = batch_of(processor, TWO_IMAGES)
    full = logits_of(any_model, batch)
    ids, modality, pixels = batch["input_ids"], batch["modality"], batch["pixel_values"]
    start = int((modality == 2).nonzero()[IMAGE_TOKENS, 1]) - 3
    with torch.no_grad():
        out = any_model(ids[:, :start], modality[:, :start], pixels[:1], use_cache=True)
        rest = any_model(ids[:, start:], modality, pixels[1:], past_key_values=out.past_key_values, use_cache=True)
    torch.testing.assert_close(rest.logits, full[:, start:], rtol=1e-4, atol=1e-5)


def test_batched_generation_equals_single_generation(any_model, processor):
    conversations = (TWO_IMAGES, TEXT_ONLY, ONE_IMAGE)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    together = any_model.generate(**prompts(processor, *conversations), **options)[:, -8:]
    for row, messages in enumerate(conversations):
        assert torch.equal(any_model.generate(**prompts(processor, messages), **options)[0, -8:], together[row])


def test_generation_equals_taking_the_best_token_of_full_forwards(any_model, processor):
    batch = prompts(processor, TWO_IMAGES, ONE_IMAGE)
    generated = any_model.generate(**batch, max_new_tokens=5, do_sample=False, eos_token_id=None)
    ids, modality = batch["input_ids"], batch["modality"]
    for _ in range(5):
        logits = logits_of(any_model, {"input_ids": ids, "modality": modality, "pixel_values": batch["pixel_values"]})
        logits[:, -1, any_model.config.image_token_id] = -torch.inf
        ids = torch.cat((ids, logits[:, -1].argmax(-1, keepdim=True)), 1)
        modality = F.pad(modality, (0, 1), value=1)
    assert torch.equal(generated, ids)


def test_generation_from_features_without_modality_and_with_beams(model, processor):
    batch = prompts(processor, TWO_IMAGES, TEXT_ONLY, ONE_IMAGE)
    options = {"max_new_tokens": 6, "do_sample": False}
    expected = model.generate(**batch, **options)
    without = {name: value for name, value in batch.items() if name != "modality"}
    assert torch.equal(model.generate(**without, **options), expected)
    with torch.no_grad():
        features = model.vision_tower(batch["pixel_values"])
    by_features = {name: value for name, value in batch.items() if name != "pixel_values"}
    assert torch.equal(model.generate(**by_features, image_features=features, **options), expected)
    seen = []
    model.vision_tower.encoder.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    beams = model.generate(**batch, **options, num_beams=2)
    assert seen == [3], "beams must not encode an image again"
    assert torch.equal(model.generate(**by_features, image_features=features, **options, num_beams=2), beams)
    one = model.generate(**prompts(processor, TWO_IMAGES), **options, num_beams=2)
    assert torch.equal(beams[0, -6:], one[0, -6:])


def test_the_placeholder_is_never_generated(model, processor):
    def prefer(module, args, logits):
        logits[..., model.config.image_token_id] = 100.0
        return logits

    model.get_output_embeddings().register_forward_hook(prefer)
    tokens = model.generate(**prompts(processor, TEXT_ONLY), max_new_tokens=4, do_sample=False)
    assert model.config.image_token_id not in tokens


@pytest.mark.parametrize("images", [0, 1, 3])
def test_a_wrong_number_of_images_is_refused(model, processor, images):
    batch = batch_of(processor, TWO_IMAGES)
    del batch["pixel_values"]
    if images:
        batch["pixel_values"] = torch.from_numpy(np.stack(PICTURES[:images]))
    with pytest.raises(ValueError, match=f"32 image placeholders, but {images} images of 16 tokens; pass every"):
        model(**batch)


def test_features_of_another_length_are_refused(model, processor):
    batch = batch_of(processor, TWO_IMAGES)
    del batch["pixel_values"]
    with pytest.raises(ValueError, match="image placeholders"):
        model(**batch, image_features=torch.zeros(2, 8, 32))
