"""Stock LLaVA: the same logits where it can compute them, and a refusal with the reason where it cannot."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model.llava_export import jinja_chat_template, to_llava
from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from model.template import Template, render
from tests.model.conversations import ONE_IMAGE, TEXT_ONLY, TWO_IMAGES, batch_of
from tests.tiny_models import make_bases, make_model, user


def load(tmp_path, **options):
    folder = make_model(tmp_path, **{"attention": "causal", "projector": "mlp", **options})
    return VisualChatForConditionalGeneration.from_pretrained(folder), VisualChatProcessor.from_pretrained(folder)


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("class_token", ["drop", "keep"])
@pytest.mark.parametrize("bos", [True, False])
def test_a_stock_llava_gives_the_same_logits(tmp_path, layer, class_token, bos):
    model, processor = load(tmp_path, vision_feature_layer=layer, vision_class_token=class_token, bos=bos)
    for part in to_llava(model, processor):
        part.save_pretrained(tmp_path / "llava")
    stock = LlavaForConditionalGeneration.from_pretrained(tmp_path / "llava").eval()
    assert {type(stock).__module__.split(".")[0], type(model).__module__.split(".")[0]} == {"transformers", "model"}
    batch = batch_of(processor, TWO_IMAGES, TEXT_ONLY, ONE_IMAGE)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        theirs = stock(**inputs, pixel_values=model.vision_tower.normalise(batch["pixel_values"])).logits
        ours = model(**inputs, pixel_values=batch["pixel_values"]).logits
    real = batch["attention_mask"] == 1
    torch.testing.assert_close(theirs[real], ours[real], rtol=1e-4, atol=1e-5)

    loaded = AutoProcessor.from_pretrained(tmp_path / "llava")
    assert type(loaded).__name__ == "LlavaProcessor"
    from PIL import Image

    text = loaded.apply_chat_template(as_parts(TWO_IMAGES[:-1]))
    encoded = loaded(text=text, images=[Image.new("RGB", (50, 40), colour) for colour in ("red", "blue")])
    placeholders = encoded["input_ids"][0].count(model.config.image_token_id)
    assert placeholders == 2 * model.config.image_tokens


def as_parts(messages: list[dict]) -> list[dict]:
    """Messages whose content is parts throughout, as stock templates are used."""
    return [
        message
        if not isinstance(message["content"], str)
        else {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]}
        for message in messages
    ]


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("parts", [True, False])
@pytest.mark.parametrize(
    "messages",
    [
        TWO_IMAGES,
        TWO_IMAGES[:-1],
        TEXT_ONLY,
        [{"role": "system", "content": "From the conversation."}, *TWO_IMAGES],
        [{"role": "system", "content": ""}, *TEXT_ONLY],
        [{"role": "system", "content": " "}, *TEXT_ONLY],
        [user("Both, 'please'", 0, 1), {"role": "assistant", "content": "Yes."}, user("And now?")],
    ],
)
def test_the_chat_template_writes_what_the_template_writes(tmp_path, bos, parts, messages):
    tokenizer = AutoTokenizer.from_pretrained(make_bases(tmp_path, bos=bos)["tokenizer"])
    for template in (
        Template(),
        Template(images="inline"),
        Template(system='It\'s "brief".', image_header="[{number} of {number}]\\"),
        Template(system="Hm.", system_header="<|s|>", answer_end="<|e|>", bos=False, images="inline", special=True),
        Template(answer_start=" ", last_answer_header="L", images="inline", system_inside=True, system_end="-"),
        Template(without_system="W", system="", images="inline", strip=True, joined=True),
    ):
        tokenizer.chat_template = jinja_chat_template(template, tokenizer)
        given = as_parts(messages) if parts else messages
        written = tokenizer.apply_chat_template(given, tokenize=False)
        expected = "".join(text for text, _ in render(messages, template))
        assert written == ("<s>" if bos and template.bos else "") + expected


IMAGE = {"type": "image", "index": 0}


@pytest.mark.parametrize(
    ("parts", "before"),
    [
        ([IMAGE, "What is it?", IMAGE], False),
        (["Is", IMAGE, "older than", IMAGE, "or", "", "not?"], False),
        (["Before: ", IMAGE, "\nAfter: ", IMAGE], False),
        (["", IMAGE, ": what is it?"], False),
        (["1. ", IMAGE], False),
        (["What is it?", IMAGE], True),
        (["A photo.\nWhat is it? ", IMAGE, IMAGE], True),
        ([IMAGE, IMAGE, "", "Which?", " And why?"], True),
        ([IMAGE], True),
    ],
)
def test_images_between_texts_are_written_in_their_places_or_refused(tmp_path, parts, before):
    """A Jinja template cannot tell which images stand inside a sentence; where it matters it says so."""
    from jinja2.exceptions import TemplateError

    tokenizer = AutoTokenizer.from_pretrained(make_bases(tmp_path)["tokenizer"])
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    messages = [{"role": "user", "content": content}]
    for images, possible in (("inline", True), ("before", before)):
        template = Template(images=images)
        tokenizer.chat_template = jinja_chat_template(template, tokenizer)
        if possible:
            expected = "".join(text for text, _ in render(messages, template))
            assert tokenizer.apply_chat_template(messages, tokenize=False) == "<s>" + expected
        else:
            with pytest.raises(TemplateError, match="shows images before the text"):
                tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"attention": "mmca"}, "attention 'mmca': LLaVA would attend causally"),
        ({"attention": "dattn", "projector": "linear"}, "'dattn'.*projector 'linear': LLaVA's is 'mlp'"),
    ],
)
def test_models_that_llava_cannot_compute_are_refused(tmp_path, options, error):
    with pytest.raises(ValueError, match=error):
        to_llava(*load(tmp_path, **options))


@pytest.mark.parametrize("layer", [-1, -2])
def test_an_encoder_that_normalises_its_output_once_more_needs_an_inner_layer(tmp_path, layer):
    bases = make_bases(tmp_path)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    encoder = SiglipVisionModel(SiglipVisionConfig(**small, image_size=32, patch_size=8))
    (bases["vision"] / "model.safetensors").unlink()
    encoder.save_pretrained(bases["vision"])
    tokenizer = AutoTokenizer.from_pretrained(bases["tokenizer"])
    options = {"attention": "causal", "projector": "mlp", "vision_feature_layer": layer}
    model = VisualChatForConditionalGeneration.from_base_models(
        bases["vision"], bases["language"], tokenizer, **options
    )
    processor = VisualChatProcessor.from_base_models(bases["vision"], tokenizer, model.config.image_tokens)
    if layer == -1:
        with pytest.raises(ValueError, match="reads layer -1 of the encoder, which LLaVA reads differently"):
            to_llava(model, processor)
        return
    stock, _ = to_llava(model, processor)
    assert stock.config.vision_feature_select_strategy == "full"
