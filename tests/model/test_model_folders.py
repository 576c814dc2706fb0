"""Base models, folders of models, their faults, and other decoders and encoders."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model.configuration import VisualChatConfig
from model.modeling import VisualChatForConditionalGeneration
from tests.model.conversations import ATTENTIONS, PICTURES, TEXT_ONLY, TWO_IMAGES, batch_of, logits_of, prompts
from tests.tiny_models import IMAGE_SIZE, IMAGE_TOKENS, make_bases, make_model


def test_folder_keeps_every_weight_and_byte(folder, model, processor, tmp_path):
    model.save_pretrained(tmp_path / "again")
    processor.save_pretrained(tmp_path / "again")
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "again").iterdir()}
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    again = make_model(tmp_path / "elsewhere", large_weights=True)
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes(), path.name
    loaded = AutoModelForImageTextToText.from_pretrained(folder)
    assert type(loaded) is VisualChatForConditionalGeneration
    batch = batch_of(processor, TWO_IMAGES)
    assert torch.equal(logits_of(loaded, batch), logits_of(model, batch))


def test_weights_of_the_bases_arrive_unchanged(folder):
    weights = load_file(folder / "model.safetensors")
    for kind, prefix in (("vision", "vision_tower.encoder."), ("language", "language_model.")):
        for name, value in load_file(folder.parent / "bases" / kind / "model.safetensors").items():
            assert torch.equal(value, weights[prefix + name])


def test_there_is_one_embedding(model):
    table = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is table
    assert sum(parameter.shape == table.shape for parameter in model.parameters()) == 1
    assert model.language_model.get_decoder().embed_tokens.weight is table


@pytest.mark.parametrize("fault", ["missing", "unexpected"])
def test_folders_with_wrong_weights_are_refused(folder, tmp_path, fault):
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    if fault == "missing":
        del weights["projector.linear.weight"]
    else:
        weights["projector.extra"] = torch.zeros(1)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"{fault} keys: projector"):
        VisualChatForConditionalGeneration.from_pretrained(broken)


def test_a_base_without_its_weights_is_refused(tmp_path):
    bases = make_bases(tmp_path)
    weights = load_file(bases["language"] / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, bases["language"] / "model.safetensors", {"format": "pt"})
    tokenizer = AutoTokenizer.from_pretrained(bases["tokenizer"])
    with pytest.raises(ValueError, match=r"missing keys: model\.norm\.weight"):
        VisualChatForConditionalGeneration.from_base_models(bases["vision"], bases["language"], tokenizer)


def test_a_tokenizer_without_placeholder_gets_one_and_the_embedding_a_row(tmp_path):
    bases = make_bases(tmp_path)
    file = bases["tokenizer"] / "tokenizer.json"
    content = json.loads(file.read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<image>"]
    content["model"]["vocab"]["<was image>"] = content["model"]["vocab"].pop("<image>")
    file.write_text(json.dumps(content))
    settings = bases["tokenizer"] / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"<image>"', ""))
    tokenizer = AutoTokenizer.from_pretrained(bases["tokenizer"])
    rows = len(tokenizer)
    model = VisualChatForConditionalGeneration.from_base_models(bases["vision"], bases["language"], tokenizer)
    assert model.config.image_token_id == rows and len(tokenizer) == rows + 1
    assert model.get_input_embeddings().weight.shape[0] == rows + 1 == model.config.text_config.vocab_size
    before = load_file(bases["language"] / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.get_input_embeddings().weight[:rows], before)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_in_half_precision_a_joined_model_computes_what_its_folder_does(tmp_path, processor):
    """Positions too: frequencies of rotary embeddings that are rounded to bfloat16 are another model."""
    bases = make_bases(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(bases["tokenizer"])
    parts = bases["vision"], bases["language"], tokenizer
    joined = VisualChatForConditionalGeneration.from_base_models(*parts, dtype=torch.bfloat16)
    joined.save_pretrained(tmp_path / "joined")
    loaded = VisualChatForConditionalGeneration.from_pretrained(tmp_path / "joined", dtype=torch.bfloat16)
    batch = batch_of(processor, TWO_IMAGES, TEXT_ONLY)
    with torch.no_grad():
        assert torch.equal(joined(**batch).logits, loaded(**batch).logits)


def test_a_decoder_may_keep_the_dtype_of_its_files(tmp_path):
    bases = make_bases(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(bases["tokenizer"])
    parts = bases["vision"], bases["language"], tokenizer
    plain = VisualChatForConditionalGeneration.from_base_models(*parts, dtype=torch.bfloat16)
    model = VisualChatForConditionalGeneration.from_base_models(*parts, dtype=torch.bfloat16, keep_language_dtype=True)
    assert {value.dtype for value in model.language_model.parameters()} == {torch.float32}
    assert {value.dtype for part in (model.vision_tower, model.projector) for value in part.parameters()} == {
        torch.bfloat16
    }
    model.projector.load_state_dict(plain.projector.state_dict())
    for name, value in model.named_parameters():
        assert torch.equal(value.to(torch.bfloat16), plain.get_parameter(name)), name


def attentions_of(decoder) -> set[str]:
    """What the attention modules of a decoder call."""
    return {module.config._attn_implementation for module in decoder.modules() if hasattr(module, "layer_idx")}


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_each_part_has_its_attention(folder, attention):
    bases = folder.parent / "bases"
    tokenizer = AutoTokenizer.from_pretrained(bases / "tokenizer")
    joined = VisualChatForConditionalGeneration.from_base_models(
        bases / "vision", bases / "language", tokenizer, attention=attention
    )
    config = VisualChatConfig.from_pretrained(folder, attention=attention)
    loaded = VisualChatForConditionalGeneration.from_pretrained(folder, config=config)
    for model in (joined, loaded):
        assert attentions_of(model.language_model) == attentions_of(copy.deepcopy(model).language_model) == {attention}
        assert model.vision_tower.encoder.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_attn_implementation_changes_how_and_not_what_is_computed(folder, processor, attention):
    """The most common option of `transformers` must not turn MMCA off."""
    config = VisualChatConfig.from_pretrained(folder, attention=attention)
    plain = VisualChatForConditionalGeneration.from_pretrained(folder, config=config)
    eager = VisualChatForConditionalGeneration.from_pretrained(folder, config=config, attn_implementation="eager")
    batch = batch_of(processor, TWO_IMAGES, TEXT_ONLY)
    real = batch["modality"] != 0
    expected = logits_of(plain, batch)[real]
    assert eager.config.text_config._attn_implementation == "eager"
    torch.testing.assert_close(logits_of(eager, batch)[real], expected, rtol=1e-4, atol=1e-5)
    for name in ("eager", "sdpa"):
        plain.set_attn_implementation(name)
        torch.testing.assert_close(logits_of(plain, batch)[real], expected, rtol=1e-4, atol=1e-5)
    again = copy.deepcopy(plain)
    again.config.text_config.use_cache = False
    assert again.language_model.model.layers[0].self_attn.config.use_cache is False, "a view, not a copy"


def test_a_decoder_that_lost_the_attention_is_noticed(model, processor):
    for layer in model.get_decoder().layers:
        layer.self_attn.config = model.config.text_config
    with pytest.raises(ValueError, match="called the attention 'mmca' 0 times in 2 layers"):
        model(**batch_of(processor, TWO_IMAGES))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"attention": "flash"}, "attention: 'flash' is not one of mmca, causal, dattn"),
        ({"vision_class_token": "twice"}, "vision_class_token: 'twice' is not one of drop, keep"),
        ({"template": {"sytem": ""}}, "unknown template key"),
    ],
)
def test_invalid_configurations_are_refused(options, error):
    with pytest.raises(ValueError, match=error):
        VisualChatConfig(**options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_other_shapes_of_model_run(tmp_path, dtype, kv_heads):
    """Grouped heads, no begin-of-sequence token, the other projector, an inner feature layer with its class token."""
    from model.processing import VisualChatProcessor

    folder = make_model(
        tmp_path,
        kv_heads=kv_heads,
        bos=False,
        dtype=dtype,
        projector="mlp",
        vision_feature_layer=-2,
        vision_class_token="keep",
    )
    processor = VisualChatProcessor.from_pretrained(folder)
    model = VisualChatForConditionalGeneration.from_pretrained(folder)
    assert processor.image_tokens == model.config.image_tokens == IMAGE_TOKENS + 1
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    model(**batch_of(processor, TWO_IMAGES, TEXT_ONLY)).loss.backward()
    assert model.generate(**prompts(processor, TWO_IMAGES), max_new_tokens=3, eos_token_id=None).shape[1] > 3


def test_other_encoders(tmp_path):
    """SigLIP, which has no class token; and a whole CLIP, of which only the vision half is taken."""
    bases = make_bases(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(bases["tokenizer"])
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**small, "image_size": IMAGE_SIZE, "patch_size": 8}
    encoders = [
        SiglipVisionModel(SiglipVisionConfig(**vision)),
        CLIPModel(CLIPConfig(vision_config=vision, text_config={**small, "vocab_size": 99}, projection_dim=8)),
    ]
    for encoder in encoders:
        (bases["vision"] / "model.safetensors").unlink()
        encoder.save_pretrained(bases["vision"])
        model = VisualChatForConditionalGeneration.from_base_models(bases["vision"], bases["language"], tokenizer)
        assert model.config.image_tokens == IMAGE_TOKENS
        pixels = torch.from_numpy(np.stack(PICTURES))
        half = getattr(encoder, "vision_model", encoder)
        with torch.no_grad():
            expected = half(model.vision_tower.normalise(pixels)).last_hidden_state[:, -IMAGE_TOKENS:]
            torch.testing.assert_close(model.vision_tower(pixels), expected)
