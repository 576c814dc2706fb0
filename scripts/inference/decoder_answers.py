"""Conversations with a decoder as it was before training, in its own chat form: the rows of replay.

The decoder is loaded by itself, without a vision encoder: a dataset must not depend on a model that is trained on it.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from model.encoder_loading import load_strictly
from model.template import encode
from scripts.blending.tokens_identity import load_tokenizer, template_of
from scripts.common.errors import UserError
from scripts.common.fingerprint import code_fingerprint
from scripts.common.verified_folder import check_folder
from scripts.config.context import context_length
from scripts.config.tokens import TokensConfig
from scripts.inference.answer_cache import AnswerCache
from scripts.inference.base_folders import folder_sha256
from scripts.inference.text_answers import AnswerOptions, answer_ends, answer_texts, generation_defaults

CUT_OFF, EMPTY = "cut off by max_new_tokens", "empty"
TOO_LONG, UNREADABLE = "longer than the decoder reads", "not readable by the tokenizer"


class DecoderAnswers:
    """A decoder with its tokenizer and template; its weights are loaded when the first answer is needed."""

    def __init__(self, language: Path, tokenizer: str, tokens: TokensConfig, threads: int) -> None:
        """Read tokenizer and template.

        Raises:
            UserError: the folder is damaged, or tokenizer or template cannot be used.
        """
        torch.set_num_threads(threads)
        check_folder(language)
        self._language, self._threads = language, threads
        self._tokenizer = load_tokenizer(tokenizer)
        self._template = template_of(tokens, self._tokenizer)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._context = context_length(AutoConfig.from_pretrained(language).to_dict())
        except (OSError, ValueError) as error:
            raise UserError(f"{language} holds no decoder: {str(error).splitlines()[0]}") from None

    def converse(
        self,
        prompts: Sequence[Sequence[str]],
        max_new_tokens: int,
        temperature: float,
        seed: int,
        batch_size: int,
        cache_file: Path,
    ) -> tuple[list[list[dict[str, str]]], Counter[str]]:
        """Ask every question of every prompt, each with the answers before it.

        Returns:
            The messages of each conversation up to its last finished answer, none if there is no such answer; and how
            many conversations ended early, by reason.
        """
        cache_ = AnswerCache(cache_file, self._identity())
        options = AnswerOptions(max_new_tokens, batch_size, temperature, seed)
        ends = answer_ends(self._tokenizer, self._template, generation_defaults(self._language))
        conversations: list[list[dict[str, str]]] = [[] for _ in prompts]
        left_out: Counter[str] = Counter()
        open_ones = list(range(len(prompts)))
        for turn in range(max(map(len, prompts))):
            asked: dict[int, list[int]] = {}
            for index in (index for index in open_ones if turn < len(prompts[index])):
                question = {"role": "user", "content": prompts[index][turn]}
                ids = self._encode([*conversations[index], question], max_new_tokens, left_out)
                if ids is not None:
                    asked[index] = ids
            label = "replay" if turn == 0 else f"replay, question {turn + 1}"
            answers = answer_texts(list(asked.values()), ends, options, self._load, cache_, label) if asked else []
            open_ones = []
            for index, answer in zip(asked, answers, strict=True):
                text = self._tokenizer.decode(answer.ids, skip_special_tokens=True).strip()
                if answer.finished and text:
                    conversations[index].append({"role": "user", "content": prompts[index][turn]})
                    conversations[index].append({"role": "assistant", "content": text})
                    open_ones.append(index)
                else:
                    left_out[EMPTY if answer.finished else CUT_OFF] += 1
        return conversations, left_out

    def _encode(self, messages: list[dict[str, str]], room: int, left_out: Counter[str]) -> list[int] | None:
        """The tokens of a prompt; None, and counted, if the decoder cannot be asked it."""
        try:
            ids = encode(messages, self._tokenizer, self._template, 0).input_ids
        except ValueError:
            left_out[UNREADABLE] += 1
            return None
        if self._context is not None and len(ids) + room > self._context:
            left_out[TOO_LONG] += 1
            return None
        return ids

    def _identity(self) -> dict[str, Any]:
        return {
            "decoder": folder_sha256(self._language),
            "template": self._template.to_dict(),
            "code": code_fingerprint("scripts.inference.decoder_answers"),
            "device": torch.cuda.get_device_name() if self._device == "cuda" else "cpu",
            "threads": self._threads,
            "torch": torch.__version__,
        }

    @cache  # noqa: B019 - a program has one object of this class
    def _load(self) -> PreTrainedModel:
        logging.disable_progress_bar()
        dtype = "auto" if self._device == "cuda" else torch.float32
        try:
            model = load_strictly(AutoModelForCausalLM, self._language, dtype=dtype)
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"the decoder in {self._language} cannot be loaded: {error}") from None
        return model.to(self._device).eval()
