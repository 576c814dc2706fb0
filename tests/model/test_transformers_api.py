"""The interface of `transformers`: the pipeline, chat templates, optional outputs, modes of `generate`, compiling."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    DynamicCache,
    pipeline,
)

from model.configuration import VisualChatConfig
from model.modeling import VisualChatForConditionalGeneration
from tests.model.conversations import (
    ATTENTIONS,
    ONE_IMAGE,
    TEXT_ONLY,
    TWO_IMAGES,
    batch_of,
    logits_of,
    prompts,
)
from tests.tiny_models import user

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")
GREEDY = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module", params=ATTENTIONS)
def model(request, folder):
    config = VisualChatConfig.from_pretrained(folder, attention=request.param)
    return VisualChatForConditionalGeneration.from_pretrained(folder, config=config)


@pytest.fixture(scope="module")
def batch(processor):
    return prompts(processor, TWO_IMAGES, TEXT_ONLY, ONE_IMAGE)


def chat(*parts) -> list[dict]:
    """A question in the form of `transformers`, which brings its images along."""
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return [{"role": "user", "content": content}]


def test_the_pipeline_answers_chats_texts_and_batches(folder, tmp_path):
    pipe = pipeline("image-text-to-text", model=str(folder))
    assert type(pipe.model) is VisualChatForConditionalGeneration
    options = {"max_new_tokens": 4, "do_sample": False}
    BLUE.save(tmp_path / "blue.png")
    one = pipe(text=chat("What is this?", RED), generate_kwargs=options, return_full_text=False)
    answer = one[0]["generated_text"]
    assert isinstance(answer, str) and answer
    full = pipe(text=chat("What is this?", RED), generate_kwargs=options)[0]["generated_text"]
    assert full[-1] == {"role": "assistant", "content": answer}
    by_text = pipe(RED, text="What is this?", generate_kwargs=options, return_full_text=False)
    assert by_text[0]["generated_text"] == answer
    several = [chat("What is this?", RED), chat("Which?", RED, str(tmp_path / "blue.png")), chat("Hello?")]
    for message in several[1][0]["content"][2:]:
        message.update({"type": "image", "path": message.pop("text")})
    answers = pipe(text=several, generate_kwargs=options, return_full_text=False, batch_size=1)
    assert answers[0][0]["generated_text"] == answer and len(answers) == 3


def test_a_chat_template_is_the_model_s_own(processor):
    messages = [*chat(RED, "What?"), {"role": "assistant", "content": "A red one."}, *chat("And", BLUE, "this?")]
    ours = [user("What?", 0), {"role": "assistant", "content": "A red one."}, user("And image 2 this?", 1)]
    expected = processor(ours, [RED, BLUE])
    inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert inputs.keys() == expected.keys() and all(torch.equal(inputs[name], expected[name]) for name in inputs)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text.startswith("<s>### Image 1:\n<image>\n\n### Question:\nWhat?") and text.endswith("\n\n### Answer:\n")
    assert processor.apply_chat_template(messages) == text.removesuffix("\n\n### Answer:\n")
    ids = processor.apply_chat_template(messages, tokenize=True)
    assert torch.equal(ids[0], expected["input_ids"][0, : ids.shape[1]])
    open_ended = processor.apply_chat_template(messages[:2], continue_final_message=True, tokenize=True)
    closed = processor.apply_chat_template(messages[:2], tokenize=True)
    assert torch.equal(open_ended, closed[:, :-1]) and closed[0, -1] == processor.tokenizer.eos_token_id
    two = processor.apply_chat_template([messages[:1], messages[:2]], tokenize=True, return_dict=True)
    assert two["pixel_values"].shape[0] == 2 and two["input_ids"].shape[0] == 2
    with pytest.raises(ValueError, match="template is part of the model"):
        processor.apply_chat_template(messages, chat_template="{{ messages }}")
    with pytest.raises(ValueError, match="must contain one image"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])


def test_auto_classes_find_the_model(folder):
    assert type(AutoModelForImageTextToText.from_pretrained(folder)) is VisualChatForConditionalGeneration
    assert type(AutoProcessor.from_pretrained(folder)).__name__ == "VisualChatProcessor"


def test_hidden_states_and_attentions_on_request(model, batch):
    real = batch["modality"] != 0
    plain = logits_of(model, batch)
    with torch.no_grad():
        out = model(**batch, output_hidden_states=True, output_attentions=True)
    torch.testing.assert_close(out.logits[real], plain[real], rtol=1e-4, atol=1e-5)
    length = batch["input_ids"].shape[1]
    assert [state.shape for state in out.hidden_states] == [(3, length, 32)] * 3
    assert [weights.shape for weights in out.attentions] == [(3, 2, length, length)] * 2
    rows = out.attentions[0].sum(-1).mean(1)
    text, first_image = batch["modality"] == 1, (batch["modality"] == 2).cumsum(1) > 0
    both = text & first_image if model.config.attention == "mmca" else torch.zeros_like(text)
    torch.testing.assert_close(rows[real], 1.0 + both[real].float(), rtol=1e-4, atol=1e-4)
    assert out.attentions[0].triu(1).abs().max() == 0
    with torch.no_grad():
        assert model(**batch).attentions is None and model(**batch).hidden_states is None


def test_attentions_are_what_an_image_and_a_text_read(model, batch):
    with torch.no_grad():
        weights = model(**batch, output_attentions=True).attentions[-1][0].mean(0)
    modality = batch["modality"][0]
    image_rows = weights[modality == 2]
    itself = torch.eye(len(modality))[modality == 2]
    assert torch.equal(image_rows, itself) == (model.config.attention != "causal")


def test_outputs_of_generate_on_request(model, batch):
    out = model.generate(
        **batch, **GREEDY, return_dict_in_generate=True, output_attentions=True, output_hidden_states=True
    )
    length = batch["input_ids"].shape[1]
    assert torch.equal(out.sequences, model.generate(**batch, **GREEDY))
    assert [step[0].shape[-2:] for step in out.attentions] == [
        (length, length),
        *((1, length + n) for n in range(1, 5)),
    ]
    assert out.hidden_states[0][0].shape == (3, length, 32) and out.hidden_states[1][0].shape == (3, 1, 32)


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"prefill_chunk_size": 7},
        {"repetition_penalty": 1.0001},
        {"num_beams": 1, "output_scores": True},
    ],
    ids=str,
)
def test_generate_gives_the_same_answer_in_every_mode(model, batch, options):
    assert torch.equal(model.generate(**batch, **GREEDY | options), model.generate(**batch, **GREEDY))


def test_prompt_lookup_and_going_on_from_a_cache(model, processor):
    batch = prompts(processor, TWO_IMAGES)
    expected = model.generate(**batch, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY, prompt_lookup_num_tokens=3), expected)
    begun = model.generate(**batch, **GREEDY | {"max_new_tokens": 3}, return_dict_in_generate=True)
    whole = {"input_ids": begun.sequences, "attention_mask": torch.ones_like(begun.sequences)}
    done = model.generate(**whole, past_key_values=begun.past_key_values, **GREEDY | {"max_new_tokens": 2})
    assert torch.equal(done, expected)


def test_generation_from_embeddings(model, batch):
    expected = model.generate(**batch, **GREEDY)
    inputs = {"pixel_values": batch["pixel_values"], "attention_mask": batch["attention_mask"]}
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach()
    assert torch.equal(model.generate(inputs_embeds=embeds, **inputs, **GREEDY), expected[:, -5:])
    with torch.no_grad():
        ours = model(inputs_embeds=embeds, modality=batch["modality"], pixel_values=batch["pixel_values"]).logits
    torch.testing.assert_close(ours, logits_of(model, batch))


def test_beams_and_samples_share_a_prompt(model, batch):
    beams = model.generate(**batch, **GREEDY | {"num_beams": 3, "num_return_sequences": 2})
    assert beams.shape[0] == 6 and torch.equal(beams[::2], model.generate(**batch, **GREEDY | {"num_beams": 3}))
    torch.manual_seed(0)
    drawn = model.generate(**batch, **GREEDY | {"do_sample": True, "num_return_sequences": 3, "top_p": 0.9})
    assert drawn.shape[0] == 9 and torch.equal(drawn[:3, :20], drawn[:1, :20].expand(3, -1))


def test_every_sample_of_a_conversation_sees_its_own_images(model, batch):
    expected = logits_of(model, batch)[:, -1].repeat_interleave(3, 0)
    pixels = batch["pixel_values"]
    batch = {name: value for name, value in batch.items() if name != "pixel_values"}
    forms = [{"pixel_values": pixels}, {"image_features": model.vision_tower(pixels)}]
    if model.supports_image_states:
        forms.append({"image_states": model.compute_image_states(pixels)})
    options = {"do_sample": True, "num_return_sequences": 3, "return_dict_in_generate": True, "output_logits": True}
    for form in forms:
        first = model.generate(**batch, **form, **GREEDY | options).logits[0]
        torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-4)


def test_padding_on_the_left_changes_nothing(model, processor):
    batch = prompts(processor, TWO_IMAGES)
    ids = torch.cat((torch.zeros(1, 7, dtype=torch.int64), batch["input_ids"]), 1)
    mask = (torch.arange(ids.shape[1]) >= 7).long()[None]
    with torch.no_grad():
        padded = model(input_ids=ids, attention_mask=mask, pixel_values=batch["pixel_values"]).logits
    torch.testing.assert_close(padded[:, 7:], logits_of(model, batch), rtol=1e-5, atol=1e-5)


def test_a_static_cache_is_refused_with_the_reason(model, batch):
    with pytest.raises(ValueError, match="only a DynamicCache"):
        model.generate(**batch, **GREEDY, cache_implementation="static")


def test_a_cache_without_its_modality_is_refused(model, batch):
    with torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
        assert isinstance(cache, DynamicCache)
        with pytest.raises(ValueError, match="needs the modality of all tokens"):
            model(batch["input_ids"][:, :1], past_key_values=cache)


@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings_stay_tied_or_apart(folder, processor, tied, tmp_path):
    model = VisualChatForConditionalGeneration.from_pretrained(folder)
    if not tied:
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
        model.language_model.lm_head.weight = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
    rows = model.get_input_embeddings().num_embeddings
    batch = batch_of(processor, TWO_IMAGES)
    before = logits_of(model, batch)
    model.resize_token_embeddings(rows + 9)
    assert model.config.text_config.vocab_size == model.language_model.config.vocab_size == rows + 9
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert torch.equal(logits_of(model, batch)[..., :rows], before)
    model.save_pretrained(tmp_path)
    again = VisualChatForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(logits_of(again, batch), logits_of(model, batch))


def test_a_model_may_be_spread_over_devices(folder, batch):
    pytest.importorskip("accelerate")
    plain = VisualChatForConditionalGeneration.from_pretrained(folder)
    parts = {"vision_tower": "cpu", "projector": "cpu", "language_model": "cpu"}
    for device_map in ("auto", parts):
        spread = VisualChatForConditionalGeneration.from_pretrained(folder, device_map=device_map)
        assert torch.equal(spread.generate(**batch, **GREEDY), plain.generate(**batch, **GREEDY))
    assert {"CLIPEncoderLayer", "LlamaDecoderLayer"} <= set(plain._no_split_modules), "layers stay whole"


def test_compiling_changes_nothing(folder, processor):
    model = VisualChatForConditionalGeneration.from_pretrained(folder).train()
    compiled = torch.compile(model, backend="eager")
    for conversations in ((TWO_IMAGES, TEXT_ONLY), (ONE_IMAGE, TEXT_ONLY)):
        batch = batch_of(processor, *conversations)
        results = []
        for function in (model, compiled):
            model.zero_grad()
            loss = function(**batch).loss
            loss.backward()
            results.append((loss.item(), [value.grad for value in model.projector.parameters()]))
        assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
        torch.testing.assert_close(results[0][1], results[1][1])
