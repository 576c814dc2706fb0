"""Decoders: supported ones give the numbers of `transformers` with `causal`; the others are refused."""

from __future__ import annotations

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

from model.attention_plan import SWITCHES, AttentionPlan
from model.decoders import check_attention_calls, check_decoder_supported, dry_run_decoder
from model.documents import PAD, compute_position_ids
from tests.model.attention_cases import CASES, parse_modality

TESTED = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "olmo2": {},
    "phi": {"partial_rotary_factor": 0.5},
    "smollm3": {"no_rope_layers": [1, 0]},
    "gemma": {},
    "mixtral": {"num_local_experts": 2},
}
"""The table of decoders in docs/model.md."""

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def decoder(kind: str, attention: str, **options):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**SMALL | options)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@pytest.mark.parametrize("kind", TESTED)
@pytest.mark.parametrize("case", ["padding right", "padding left", "adjacent images"])
def test_causal_equals_transformers(kind, case):
    modality = parse_modality(CASES[case])
    ids = torch.randint(0, 64, modality.shape, generator=torch.Generator().manual_seed(2))
    attention_plan = AttentionPlan.build(modality, **SWITCHES["causal"])
    inputs = {"input_ids": ids, "position_ids": compute_position_ids(modality)}
    with torch.no_grad():
        ours = decoder(kind, "causal", **TESTED[kind])(**inputs, attention_plan=attention_plan).logits
        theirs = decoder(kind, "sdpa", **TESTED[kind])(**inputs, attention_mask=modality.ne(PAD).long()).logits
    assert attention_plan.calls == 2
    torch.testing.assert_close(ours[modality != PAD], theirs[modality != PAD], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", TESTED)
def test_mmca_is_another_function_and_passes_the_dry_run(kind):
    model = decoder(kind, "mmca", **TESTED[kind])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dry_run_decoder(model, "mmca")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    modality = parse_modality(["tiitiitt"])
    ids = torch.randint(0, 64, modality.shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = model(input_ids=ids, attention_plan=AttentionPlan.build(modality, **SWITCHES["mmca"])).logits
        causal = decoder(kind, "sdpa", **TESTED[kind])(input_ids=ids).logits
    torch.testing.assert_close(ours[:, 0], causal[:, 0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(ours[:, -1], causal[:, -1], atol=1e-4)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        (MistralConfig(sliding_window=32), "a sliding window of 32 tokens"),
        (Qwen3Config(use_sliding_window=True, max_window_layers=4), "layers of sliding_attention"),
        (CONFIG_MAPPING["gemma2"](), "layers of sliding_attention, attn_logit_softcapping = 50.0"),
        (CONFIG_MAPPING["gemma3_text"](), "layers of sliding_attention"),
        (CONFIG_MAPPING["gpt_oss"](), "layers of sliding_attention"),
        (CONFIG_MAPPING["cohere"](), "logit_scale = 0.0625"),
        (CONFIG_MAPPING["granite"](logits_scaling=8.0), "logits_scaling = 8.0"),
        (CONFIG_MAPPING["falcon"](alibi=True), "alibi = True"),
        (CONFIG_MAPPING["nanochat"](), "final_logit_softcapping = 15.0"),
        (CONFIG_MAPPING["qwen3_next"](), "layers of linear_attention"),
        (LlamaConfig(attention_chunk_size=128), "attention_chunk_size = 128"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_unsupported_decoders_are_refused(config, error):
    with pytest.raises(ValueError, match=error):
        check_decoder_supported(config)


@pytest.mark.parametrize("config", [LlamaConfig(), MistralConfig(sliding_window=None), Qwen3Config(), GPT2Config()])
def test_ordinary_decoders_are_accepted(config):
    check_decoder_supported(config)


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        ("bloom", {}, "BloomForCausalLM cannot run with this attention"),
        ("xglm", {"d_model": 32, "num_layers": 2, "attention_heads": 4}, "cannot run with this attention"),
        ("diffllama", {}, "4 times in 2 layers"),
        ("gpt_oss", {"layer_types": ["full_attention"] * 2, "num_local_experts": 2}, "passes 's_aux' to its attention"),
    ],
)
def test_decoders_that_do_not_call_the_attention_as_required_are_refused_by_the_dry_run(kind, options, error):
    # Bloom ignores `attn_implementation` with a warning.
    model = decoder(kind, "eager", **options)
    model.set_attn_implementation("mmca")
    with pytest.raises(ValueError, match=error):
        dry_run_decoder(model, "mmca")


def test_calls_are_counted_in_real_forwards_too():
    model = decoder("llama", "sdpa")
    attention_plan = AttentionPlan.build(parse_modality(["tiit"]), **SWITCHES["mmca"])
    model(input_ids=torch.tensor([[5, 6, 7, 8]]), attention_plan=attention_plan)
    with pytest.raises(ValueError, match="0 times in 2 layers; use a decoder of full attention layers"):
        check_attention_calls(model, "mmca", attention_plan)
