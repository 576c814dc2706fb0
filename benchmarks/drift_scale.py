"""What drift means: a decoder compared with itself, with rounded weights and at other temperatures.

    python -m benchmarks.drift_scale --language FOLDER

FOLDER holds a decoder that was tuned to chat. It answers the fixed prompts of the forgetting section of a report, and
the drift of each variant on these answers is printed, in nats per token (docs/evaluation.md): bf16, 8 and 4 bits
(where bitsandbytes is installed), and its own distributions at a temperature T, which are softmax(logits / T).
"""

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from model.chat_template import template_from_tokenizer
from model.template import encode
from scripts.evaluation.drift import HeadInputs, ScoredText, per_token, text_drifts
from scripts.evaluation.forgetting import MAX_NEW_TOKENS, scored_texts, text_prompts
from scripts.evaluation.forgetting_summary import nats
from scripts.inference.answer_cache import AnswerCache
from scripts.inference.quantization import NF4
from scripts.inference.text_answers import AnswerOptions, answer_ends, answer_texts, generation_defaults

TEMPERATURES = (1.1, 0.9, 0.8)
_BATCH = 8


def answered(language: Path, decoder: PreTrainedModel, max_new_tokens: int = MAX_NEW_TOKENS) -> list[ScoredText]:
    """The fixed prompts with the decoder's most likely answers, whose tokens are measured."""
    tokenizer = AutoTokenizer.from_pretrained(language)
    template = template_from_tokenizer(tokenizer)
    messages = [[{"role": "user", "content": prompt.text}] for prompt in text_prompts()]
    prompts = [encode(message, tokenizer, template, 0).input_ids for message in messages]
    ends = answer_ends(tokenizer, template, generation_defaults(language))
    options = AnswerOptions(max_new_tokens, _BATCH)
    with tempfile.TemporaryDirectory() as folder:
        cache = AnswerCache(Path(folder) / "answers.jsonl", {})
        answers = answer_texts(prompts, ends, options, lambda: decoder, cache, "answers")
    return scored_texts(prompts, answers)


@torch.inference_mode()
def read(decoder: PreTrainedModel, texts: Sequence[ScoredText]) -> HeadInputs:
    """What the decoder's head reads to predict the measured tokens."""
    hidden = []
    for text in texts:
        states = decoder.get_decoder()(torch.tensor([text.ids], device=decoder.device)).last_hidden_state[0]
        hidden.append(states[torch.tensor(text.positions) - 1].cpu())
    return HeadInputs(decoder.get_output_embeddings(), hidden)


def variants(language: Path, own: HeadInputs, texts: Sequence[ScoredText]) -> Iterator[tuple[str, HeadInputs]]:
    """The decoder with rounded weights and at other temperatures, one in memory at a time."""
    for temperature in TEMPERATURES:
        # A head without bias: its logits are divided by T if what it reads is.
        yield f"temperature {temperature}", HeadInputs(own.head, [hidden / temperature for hidden in own.hidden])
    yield "bf16", read(AutoModelForCausalLM.from_pretrained(language, dtype=torch.bfloat16).eval(), texts)
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    for name, config in {
        "8 bits": BitsAndBytesConfig(load_in_8bit=True),
        "4 bits": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=NF4,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
    }.items():
        rounded = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32, quantization_config=config)
        yield name, read(rounded.eval(), texts)


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--language", required=True, type=Path, help="folder of a decoder that was tuned to chat")
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    args = arguments.parse_args()
    torch.set_num_threads(args.threads)
    decoder = AutoModelForCausalLM.from_pretrained(args.language, dtype=torch.float32).eval()
    texts = answered(args.language, decoder)
    own = read(decoder, texts)
    for name, other in variants(args.language, own, texts):
        print(f"{name:16} {nats(per_token(text_drifts(own, other, texts), 'kl', 0.95))}", flush=True)


if __name__ == "__main__":
    main()
