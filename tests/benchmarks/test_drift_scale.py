"""A decoder's drift from itself: none, that of a temperature by its formula, and that of rounded weights."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.drift_scale import TEMPERATURES, answered, read, variants
from scripts.evaluation.drift import HeadInputs, per_token, text_drifts
from tests.tiny_models import make_bases

CHAT = (
    "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    folder = make_bases(tmp_path_factory.mktemp("bases"), large_weights=True)["language"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def test_variants_of_a_decoder(language):
    decoder = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32).eval()
    texts = answered(language, decoder, max_new_tokens=4)
    assert len(texts) == 24 and all(1 <= len(text.positions) <= 4 for text in texts)
    own = read(decoder, texts)
    with torch.no_grad():
        first = decoder(torch.tensor([texts[0].ids])).logits[0].log_softmax(-1)
    expected = sum(float(first[place - 1, texts[0].ids[place]]) for place in texts[0].positions)
    (same, *_) = text_drifts(own, own, texts)
    assert same.kl == 0
    assert same.before == pytest.approx(expected, rel=1e-5)

    found = dict(variants(language, own, texts))
    cooler = found[f"temperature {TEMPERATURES[-1]}"]
    (alone,) = text_drifts(
        HeadInputs(own.head, [own.hidden[0][:1]]),
        HeadInputs(cooler.head, [cooler.hidden[0][:1]]),
        [texts[0]._replace(positions=texts[0].positions[:1])],
    )
    with torch.no_grad():
        logits = decoder(torch.tensor([texts[0].ids])).logits[0, texts[0].positions[0] - 1].double()
    p, q = logits.log_softmax(-1), (logits / TEMPERATURES[-1]).log_softmax(-1)
    assert alone.kl == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-2)  # small, of numbers in fp32
    drifts = {name: per_token(text_drifts(own, other, texts), "kl", 0.95)["value"] for name, other in found.items()}
    assert drifts["temperature 0.8"] > drifts["temperature 0.9"] > 0
    assert drifts["bf16"] > 0
