# ruff: noqa: E501 - a template is read as one line
"""Chat templates in the published formats of model families, and small tokenizers with their kinds of splitting.

The Jinja texts are our own; the formats are facts. A tokenizer is trained on a few texts, so that it merges what stands
beside each other where its kind of splitting permits.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any, NamedTuple

LOOP = "{% for m in messages %}"
END = "{% endfor %}"


def prompt(text: str) -> str:
    """The Jinja of what a prompt ends with."""
    return "{% if add_generation_prompt %}{{ " + text + " }}{% endif %}"


def chatml(default: str = "") -> str:
    """ChatML; `default` is inserted where there is no system text."""
    first = "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n" + default + "<|im_end|>\n' }}{% endif %}"
    return (
        (first if default else "")
        + LOOP
        + "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}"
        + END
        + prompt("'<|im_start|>assistant\n'")
    )


# The system text becomes part of the first question.
MERGED = (
    "{% set first = '' %}{% set system = '' %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% endif %}"
)
THINKING = (
    "{% set last = namespace(user=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}"
    "{% endif %}{% endfor %}"
    + LOOP
    + "{{ '<|im_start|>' ~ m.role ~ '\n' }}"
    + "{% if m.role == 'assistant' and loop.index0 > last.user %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    + "{{ m.content ~ '<|im_end|>\n' }}"
    + END
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not "
    + "enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


def llama3(date: str = "") -> str:
    """Llama 3, and 3.1 with a system block that has dates."""
    head = "'<|start_header_id|>' ~ {} ~ '<|end_header_id|>\n\n'"
    block = ""
    if date:
        block = (
            "{% set system = '' %}{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}"
            "{% set messages = messages[1:] %}{% endif %}{{ " + head.format("'system'") + " }}"
            "{{ 'Cutting Knowledge Date: December 2023\nToday Date: ' ~ "
            + date
            + " ~ '\n\n' ~ system ~ '<|eot_id|>' }}"
        )
    return (
        "{{ bos_token }}"
        + block
        + LOOP
        + "{{ "
        + head.format("m.role")
        + " ~ (m.content | trim) ~ '<|eot_id|>' }}"
        + END
        + prompt(head.format("'assistant'"))
    )


def gemma(system: str) -> str:
    """Gemma; `system` is what it does with a system message."""
    return (
        "{{ bos_token }}"
        + system
        + LOOP
        + "{{ '<start_of_turn>' ~ ('model' if m.role == 'assistant' else m.role) ~ '\n' }}"
        + "{{ (system ~ '\n\n') if loop.first and system else '' }}{{ (m.content | trim) ~ '<end_of_turn>\n' }}"
        + END
        + prompt("'<start_of_turn>model\n'")
    )


def mistral(before: str, after: str, answer: str, last_system: bool = True) -> str:
    """Mistral: what comes before and after a question, and before an answer."""
    place = "loop.last" if last_system else "loop.first"
    return (
        MERGED
        + "{{ bos_token }}"
        + LOOP
        + "{% if m.role == 'user' %}{{ '"
        + before
        + "' }}{{ (system ~ '\n\n') if "
        + place
        + " and system else '' }}{{ m.content ~ '"
        + after
        + "' }}{% else %}{{ '"
        + answer
        + "' ~ m.content ~ eos_token }}{% endif %}"
        + END
    )


LLAMA2 = (
    MERGED
    + LOOP
    + "{% if loop.first and system %}{% set content = '<<SYS>>\n' ~ system ~ '\n<</SYS>>\n\n' ~ m.content %}"
    + "{% else %}{% set content = m.content %}{% endif %}"
    + "{% if m.role == 'user' %}{{ bos_token ~ '[INST] ' ~ content.strip() ~ ' [/INST]' }}"
    + "{% else %}{{ ' ' ~ content.strip() ~ ' ' ~ eos_token }}{% endif %}"
    + END
)
PHI = (
    LOOP
    + "{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ '<|end|>\n' }}"
    + END
    + "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
ZEPHYR = LOOP + "{{ '<|' ~ m.role ~ '|>\n' ~ m.content ~ eos_token ~ '\n' }}" + END + prompt("'<|assistant|>\n'")
VICUNA = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = 'A chat between a curious user and an assistant.' %}{% endif %}{{ bos_token ~ system }}"
    + LOOP
    + "{% if m.role == 'user' %}{{ ' USER: ' ~ m.content }}{% else %}{{ ' ASSISTANT: ' ~ m.content ~ eos_token }}{% endif %}"
    + END
    + prompt("' ASSISTANT:'")
)
ALPACA = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content ~ '\n\n' }}{% set messages = messages[1:] %}{% endif %}"
    + LOOP
    + "{% if m.role == 'user' %}{{ '### Instruction:\n' ~ m.content ~ '\n\n' }}"
    + "{% else %}{{ '### Response:\n' ~ m.content ~ eos_token ~ '\n\n' }}{% endif %}"
    + END
    + prompt("'### Response:\n'")
)
DEEPSEEK = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}"
    + LOOP
    + "{% if m.role == 'user' %}{{ '<|User|>' ~ m.content }}{% else %}{{ '<|Assistant|>' ~ m.content ~ eos_token }}{% endif %}"
    + END
    + prompt("'<|Assistant|>'")
)
OLMO = "{{ bos_token }}" + ZEPHYR.replace("~ eos_token ~ '\n'", "~ (eos_token if m.role == 'assistant' else '') ~ '\n'")
GRANITE = (
    "{% if messages[0].role != 'system' %}{{ '<|start_of_role|>system<|end_of_role|>You are helpful.<|end|>\n' }}{% endif %}"
    + LOOP
    + "{{ '<|start_of_role|>' ~ m.role ~ '<|end_of_role|>' ~ m.content ~ '<|end|>\n' }}"
    + END
    + prompt("'<|start_of_role|>assistant<|end_of_role|>'")
)
SMOLLM3 = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = 'You are helpful.' %}{% endif %}"
    "{{ '<|im_start|>system\n## Metadata\n\nReasoning Mode: /no_think\n\n## Instructions\n\n' ~ system ~ '<|im_end|>\n' }}"
    + LOOP
    + "{{ '<|im_start|>' ~ m.role ~ '\n' ~ ('<think>\n\n</think>\n' if m.role == 'assistant' else '') ~ m.content }}"
    + "{{ '<|im_end|>\n' }}"
    + END
    + prompt("'<|im_start|>assistant\n<think>\n\n</think>\n'")
)
RAISES = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


class Family(NamedTuple):
    """A chat template, the tokenizers it is used with, and whether system texts are written as the template does.

    `answer` is what is supervised for the answer "Red."; `prompt` the end of a prompt.
    """

    jinja: str
    tokenizers: tuple[str, ...]
    answer: str
    prompt: str
    system: bool = True


BYTE_LEVEL = ("gpt2", "llama3", "qwen")
PIECES = ("metaspace first", "metaspace always", "metaspace never", "prepend")
ALL = (*BYTE_LEVEL, *PIECES, "gemma")
# GPT-2's expression splits two newlines before a word, and not at the end of a prompt.
NO_GPT2 = ALL[1:]
FAMILIES = {
    "chatml": Family(chatml(), ALL, "Red.<|im_end|>", "<|im_start|>assistant\n"),
    "chatml with a default": Family(chatml("Be helpful."), ALL, "Red.<|im_end|>", "<|im_start|>assistant\n"),
    "qwen 3": Family(THINKING, NO_GPT2, "Red.<|im_end|>", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "smollm 3": Family(SMOLLM3, BYTE_LEVEL, "Red.<|im_end|>", "<|im_start|>assistant\n<think>\n\n</think>\n"),
    "llama 2": Family(LLAMA2, ALL, " Red. </s>", " [/INST]"),
    "llama 3": Family(llama3(), NO_GPT2, "Red.<|eot_id|>", "<|end_header_id|>\n\n"),
    "llama 3.1": Family(llama3("'26 Jul 2024'"), NO_GPT2, "Red.<|eot_id|>", "<|end_header_id|>\n\n"),
    "gemma": Family(gemma(RAISES), ALL, "Red.<end_of_turn>", "<start_of_turn>model\n", system=False),
    "gemma 3": Family(gemma(MERGED), ALL, "Red.<end_of_turn>", "<start_of_turn>model\n"),
    "phi": Family(PHI, (*ALL, "phi"), "Red.<|end|>", "<|assistant|>\n"),
    "mistral 1": Family(mistral("[INST] ", " [/INST]", " "), ALL, " Red.</s>", " [/INST]", system=False),
    "mistral 3": Family(mistral("[INST] ", "[/INST]", " "), (*ALL, "mistral"), " Red.</s>", "[/INST]", system=False),
    "mistral tekken": Family(
        mistral("[INST]", "[/INST]", "", last_system=False), (*ALL, "mistral"), "Red.</s>", "[/INST]"
    ),
    "mistral 7": Family(
        mistral("[INST] ", "[/INST]", " ").replace(
            "{{ bos_token }}",
            "{{ bos_token }}{% if system %}{{ '[SYSTEM_PROMPT] ' ~ system ~ '[/SYSTEM_PROMPT]' }}{% endif %}"
            "{% set system = '' %}",
        ),
        (*ALL, "mistral"),
        " Red.</s>",
        "[/INST]",
    ),
    "zephyr": Family(ZEPHYR, ALL, "Red.</s>", "<|assistant|>\n"),
    "vicuna": Family(VICUNA, ALL, " Red.</s>", " ASSISTANT:"),
    "alpaca": Family(ALPACA, ALL, "Red.</s>", "### Response:\n"),
    "deepseek": Family(DEEPSEEK, ALL, "Red.</s>", "<|Assistant|>"),
    "olmo": Family(OLMO, ALL, "Red.</s>", "<|assistant|>\n"),
    "granite": Family(GRANITE, ALL, "Red.<|end|>", "<|start_of_role|>assistant<|end_of_role|>"),
}
TURN_TOKENS = [
    *("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|end|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|User|>", "<|Assistant|>", "<|start_of_role|>", "<|end_of_role|>"),
]
_EXTRA = {
    "mistral": ["[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"],
    "phi": ["<|user|>", "<|assistant|>", "<|system|>"],
}
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CORPUS = (
    "### Question:\nWhat is on the left?\n\n### Answer:\nA red circle.\n\n" * 3,
    "USER: Which image has more objects? ASSISTANT: The second image. USER: How many? ASSISTANT: Two. yes no" * 3,
    "[INST] What is it? [/INST] It is a red circle. [INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nWhat is red? [/INST] yes"
    * 3,
    "<|user|>\nWhat is it?\n<|assistant|>\nyes.\n\n\n\n\n def f(x):\n    return 12,345.67  # more...\n" * 3,
)


@cache
def backend(kind: str) -> str:
    """The state of a tokenizer of a kind, as JSON."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    byte_level = kind in BYTE_LEVEL
    tokenizer = Tokenizer(models.BPE(byte_fallback=not byte_level, unk_token=None if byte_level else "<unk>"))
    special = ["<unk>", "<s>", "</s>"]
    if byte_level:
        regex = {"gpt2": _GPT2, "llama3": _LLAMA3, "qwen": _LLAMA3.replace("{1,3}", "")}[kind]
        split = pre_tokenizers.Split(Regex(regex), behavior="isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        if kind == "qwen":
            tokenizer.normalizer = normalizers.NFC()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        # As SentencePiece trains: no token holds a blank behind a letter.
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        special += [f"<0x{byte:02X}>" for byte in range(256)]
        alphabet = []
    texts = [line for text in _CORPUS for line in (text.split("\n") if not byte_level else [text])]
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=special, initial_alphabet=alphabet, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator(texts, trainer)
    if kind.startswith("metaspace"):
        scheme = kind.removeprefix("metaspace ")
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "never")
    elif kind == "gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    elif not byte_level:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    state = json.loads(tokenizer.to_str())
    # Bytes are ordinary tokens, which training knows only as special ones.
    if not (byte_level or kind == "gemma" or kind.startswith("metaspace")):
        state["pre_tokenizer"] = None
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    return json.dumps(state)


def tokenizer_of(kind: str, jinja: str) -> Any:
    """A tokenizer of a kind with a chat template."""
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(backend(kind)),
        bos_token="<s>",
        eos_token="</s>",
        unk_token=None if kind in BYTE_LEVEL else "<unk>",
    )
    names = [*TURN_TOKENS, "<image>", *_EXTRA.get(kind, [])]
    # As published, Phi's tokens take the newline behind them.
    tokens = [AddedToken(name, special=True, normalized=False, rstrip=kind == "phi") for name in names]
    tokenizer.add_special_tokens({"extra_special_tokens": tokens})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = jinja
    return tokenizer
