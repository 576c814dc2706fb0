"""What a trained model still says: text prompts answered before and after training, and the drift between the two.

Both models answer the fixed prompts of `forgetting_prompts.yaml` greedily, in the model's chat form. Then three sets of
texts are read by both: the answers before training, the answers after it, and the text of held-out conversations. One
model is in memory at a time (drift.py). The answers before training are kept in a cache of the model, so that several
runs of it share them.
"""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from model.template import encode
from scripts.common.errors import UserError
from scripts.common.files import canonical_json, read_json, text_sha256
from scripts.common.fingerprint import code_fingerprint
from scripts.evaluation.checkpoint_evaluation import device_name, model_sha256, versions
from scripts.evaluation.drift import HeadInputs, ScoredText, TextDrift, head_inputs, per_token, text_drifts
from scripts.evaluation.own_texts import OwnTexts, own_texts
from scripts.inference import model_assembly, model_loading
from scripts.inference.answer_cache import AnswerCache
from scripts.inference.base_folders import find_base
from scripts.inference.blend_reader import BlendReader
from scripts.inference.text_answers import (
    AnswerOptions,
    TextAnswer,
    answer_ends,
    answer_texts,
    generation_defaults,
)

PROMPTS = Path(__file__).with_name("forgetting_prompts.yaml")
MAX_NEW_TOKENS = 96
OWN_TOKENS = 4000
LONGEST = 1024
_BATCH = 8
SAME, CLOSE, DRIFTED, FORGOTTEN = "same", "close", "drifted", "forgotten"
CLOSE_KL, DRIFTED_KL = 0.05, 0.3
"""Largest drift per token on the answers before training, in nats, that is called close, and drifted.

At 0.05 nats the probability of the tokens that the model would have chosen has fallen by 5 % on (geometric) average, so
that an answer of 20 tokens is still about a third as likely as before; at 0.3 by a quarter, and such an answer is 400
times less likely.
"""


class TextPrompt(NamedTuple):
    """A prompt, and the name of its group."""

    group: str
    text: str


class Side(NamedTuple):
    """A model on one side of the training: how it is loaded, and when it was, kept until `drop`."""

    load: Callable[[], VisualChatForConditionalGeneration]
    loaded: list[VisualChatForConditionalGeneration]

    def model(self) -> VisualChatForConditionalGeneration:
        """The model, loaded if it is not."""
        if not self.loaded:
            self.loaded.append(self.load())
        return self.loaded[0]

    def drop(self) -> None:
        """Take the model out of memory, apart from what is referred to elsewhere."""
        self.loaded.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def text_prompts() -> list[TextPrompt]:
    """The fixed prompts."""
    groups = yaml.safe_load(PROMPTS.read_text(encoding="utf-8"))
    return [TextPrompt(group, text) for group, texts in groups.items() for text in texts]


class Forgetting:
    """The comparison of one trained model with the model that it was before."""

    def __init__(
        self,
        model: Path,
        exported: Path,
        root: Path,
        cache: Path,
        answers_after: Path,
        device: str = "auto",
        threads: int = 1,
        confidence: float = 0.95,
    ) -> None:
        """Read what both models have in common.

        Args:
            model: models/<model>, before training.
            exported: the exported folder, after training.
            root: results root, which bases may lie below.
            cache: folder of the answers before training, which the runs of a model share.
            answers_after: folder of the answers after training, from which a comparison that was killed goes on.
            device: "auto", "cpu" or "cuda".
            threads: of the CPU.
            confidence: of intervals.
        """
        torch.set_num_threads(threads)
        self.confidence = confidence
        self._model, self._exported, self._root, self._threads = model, exported, root, threads
        self._cache, self._answers_after = cache, answers_after
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._device = torch.device(device)
        self.processor = VisualChatProcessor.from_pretrained(model)
        self._dtype = _dtype_of(exported)
        self.before, self.after = Side(self._load_before, []), Side(self._load_after, [])

    def _load_before(self) -> VisualChatForConditionalGeneration:
        # Text is read alike by all attentions; in the dtype of the trained model, so that rounding is no drift.
        attention = read_json(self._exported / "config.json")["attention"]
        model, _ = model_assembly.load_model(self._model, self._root, attention, self._dtype)
        return model.to(self._device).eval()

    def _load_after(self) -> VisualChatForConditionalGeneration:
        model, processor = model_loading.load_model(self._exported, self._device.type)
        if processor.template != self.processor.template:
            raise UserError(f"{self._exported} has another prompt template than {self._model}: it is not of this model")
        return model

    @cached_property
    def ends(self) -> list[int]:
        """The tokens at which an answer ends, those of the decoder before training included."""
        language = read_json(self._model / "manifest.json")["bases"]["language"]["path"]
        decoder = generation_defaults(find_base(language, self._root))
        return answer_ends(self.processor.tokenizer, self.processor.template, decoder)

    def compare(
        self, run: str, blend: BlendReader | None, without: Collection[str], max_new_tokens: int = MAX_NEW_TOKENS
    ) -> dict[str, Any]:
        """Answer, read and compare; returns what `forgetting.json` holds (docs/evaluation.md).

        Args:
            run: name of the run.
            blend: held-out conversations, whose texts are the text of the own data; None: no such text.
            without: datasets of the blend that are left out, such as replay.
            max_new_tokens: of an answer.
        """
        prompts = text_prompts()
        encoded = [self._encode(prompt.text) for prompt in prompts]
        options = AnswerOptions(max_new_tokens, _BATCH)
        before = self._answers_before(encoded, options)
        cache = self._cache_after()
        after = answer_texts(encoded, self.ends, options, self.after.model, cache, "answers after training")
        own = self._own_texts(blend, without)
        sets = [scored_texts(encoded, before), scored_texts(encoded, after), own.questions, own.answers]
        drifts = self._drifts(sets)
        rows = self._rows(prompts, before, after, drifts)
        summary = self._summary(rows, drifts)
        return {
            "v": 1,
            "run": run,
            "before": model_sha256(self._model),
            "after": model_sha256(self._exported),
            "prompts_sha256": text_sha256(canonical_json([list(prompt) for prompt in prompts])),
            "settings": {
                "max_new_tokens": max_new_tokens,
                "own_tokens": OWN_TOKENS,
                "confidence": self.confidence,
                "dtype": str(self._dtype).removeprefix("torch."),
                "device": device_name(self._device),
                "threads": self._threads,
            },
            "versions": versions(),
            "prompts": rows,
            **summary,
        }

    def _encode(self, prompt: str) -> list[int]:
        message = {"role": "user", "content": prompt}
        return encode([message], self.processor.tokenizer, self.processor.template, 0).input_ids

    def _answers_before(self, prompts: list[list[int]], options: AnswerOptions) -> list[TextAnswer]:
        answers = answer_texts(
            prompts, self.ends, options, self.before.model, self._cache_before(), "answers before training"
        )
        self.before.drop()
        return answers

    def _cache_before(self) -> AnswerCache:
        identity = self._identity(model_sha256(self._model))
        # A name of its own for every identity: runs in different precisions must not discard each other's answers.
        return AnswerCache(self._cache / f"{text_sha256(canonical_json(identity))[:16]}.jsonl", identity)

    def _cache_after(self) -> AnswerCache:
        path = self._answers_after / f"{self._exported.name}.jsonl"
        return AnswerCache(path, self._identity(model_sha256(self._exported)))

    def _identity(self, model: str) -> dict[str, Any]:
        return {
            "model": model,
            "code": code_fingerprint("scripts.inference.text_answers"),
            "versions": versions(),
            "device": device_name(self._device),
            "dtype": str(self._dtype),
            "threads": self._threads,
        }

    def _own_texts(self, blend: BlendReader | None, without: Collection[str]) -> OwnTexts:
        if blend is None:
            return OwnTexts([], [])
        return own_texts(blend, self.processor.tokenizer, self.processor.template, OWN_TOKENS, LONGEST, without)

    def _drifts(self, sets: Sequence[list[ScoredText]]) -> list[list[TextDrift]]:
        """Read sets of texts with both models, one after the other."""
        after = [self._read(self.after, texts, "reading after training") for texts in sets]
        self.after.drop()
        before = [self._read(self.before, texts, "reading before training") for texts in sets]
        found = [text_drifts(*pair) for pair in zip(before, after, sets, strict=True)]
        self.before.drop()
        return found

    def _read(self, side: Side, texts: list[ScoredText], label: str) -> HeadInputs:
        if not texts:
            return HeadInputs(torch.nn.Identity(), [])
        return head_inputs(side.model(), texts, label)

    def _rows(
        self,
        prompts: Sequence[TextPrompt],
        before: Sequence[TextAnswer],
        after: Sequence[TextAnswer],
        drifts: Sequence[Sequence[TextDrift]],
    ) -> list[dict[str, Any]]:
        tokenizer = self.processor.tokenizer

        def side(answer: TextAnswer, drift: TextDrift) -> dict[str, Any]:
            return {
                "text": tokenizer.decode(answer.ids, skip_special_tokens=True).strip(),
                "tokens": len(answer.ids),
                "finished": answer.finished,
                "log_likelihood": {"before": drift.before, "after": drift.after},
                "kl": drift.kl,
            }

        return [
            {
                "group": prompt.group,
                "prompt": prompt.text,
                "same": first.ids == second.ids,
                "before": side(first, first_drift),
                "after": side(second, second_drift),
            }
            for prompt, first, second, first_drift, second_drift in zip(
                prompts, before, after, drifts[0], drifts[1], strict=True
            )
        ]

    def _summary(self, rows: Sequence[dict[str, Any]], drifts: Sequence[Sequence[TextDrift]]) -> dict[str, Any]:
        def means(texts: Sequence[TextDrift]) -> dict[str, Any] | None:
            if not texts:
                return None
            return {name: per_token(texts, name, self.confidence) for name in ("kl", "before", "after")}

        answers_before, answers_after, questions, answers = map(means, drifts)
        assert answers_before is not None
        same = sum(row["same"] for row in rows)
        kl = float(answers_before["kl"]["value"])
        return {
            "same": same,
            "answers": {"before": answers_before, "after": answers_after},
            "own": {"questions": questions, "answers": answers} if questions else None,
            "verdict": verdict(same, len(rows), kl),
        }


def verdict(same: int, prompts: int, kl: float) -> str:
    """One of "same", "close", "drifted" and "forgotten", by the drift per token on the answers before training."""
    if same == prompts and kl < 1e-9:
        return SAME
    return CLOSE if kl <= CLOSE_KL else DRIFTED if kl <= DRIFTED_KL else FORGOTTEN


def scored_texts(prompts: Sequence[list[int]], answers: Sequence[TextAnswer]) -> list[ScoredText]:
    """Prompts with their answers; the tokens of the answers are measured."""
    return [
        ScoredText([*prompt, *answer.ids], list(range(len(prompt), len(prompt) + len(answer.ids))))
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _dtype_of(exported: Path) -> torch.dtype:
    """The number format of an exported model's weights."""
    if (exported / "delta.json").is_file():
        return getattr(torch, read_json(exported / "delta.json")["dtype"])
    config = read_json(exported / "config.json")
    return getattr(torch, config.get("dtype") or config.get("torch_dtype") or "float32")
