"""What a configuration means before anything runs: every value of its models and runs, and where it comes from.

Works without a network: what is not on this machine yet is marked as such.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from model.template import Template, render
from scripts.blending.tokens_identity import load_tokenizer, template_of
from scripts.common.errors import UserError
from scripts.config.base_facts import MINIATURE
from scripts.config.bases import Bases, encoder_layout
from scripts.config.blend import BlendDatasetConfig
from scripts.config.derivation import Derivation
from scripts.config.tokenizer_check import tokenizer_folder
from scripts.config.tokens import AUTO, CHAT, PAPER, TokensConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ABSENT = "not on this machine yet"
_MADE = "made by the workflow"
_EXAMPLE: list[dict[str, Any]] = [
    {"role": "user", "content": [{"type": "image", "index": 0}, {"type": "text", "text": "What is this?"}]},
    {"role": "assistant", "content": "A red circle."},
]


def explanation(derivation: Derivation) -> str:
    """The models, tokens, blends and runs of a configuration as tables of text: key, value, source."""
    return "\n".join(_Explanation(derivation).lines())


class _Explanation:
    """The tables, one kind of section after the other."""

    def __init__(self, derivation: Derivation) -> None:
        self.settings, self.sources, self.written = derivation.settings, derivation.sources, derivation.written
        self.bases = Bases(self.settings)
        self.root = Path(self.settings.results)

    def lines(self) -> Iterator[str]:
        """The whole text."""
        yield f"configuration {self.settings.name}, results below {self.settings.results}"
        for name in self.settings.models:
            yield from self._table(f"model {name}", self._model(name))
        for name, tokens in self.settings.tokens.items():
            yield from self._tokens(name, tokens)
        for name in self.settings.blends:
            yield from self._table(f"blend {name}", self._blend(name))
        for name in self.settings.replay:
            yield from self._table(f"replay {name}", self._replay(name))
        for name in self.settings.runs:
            yield from self._table(f"run {name}", self._run(name))
        if found := self.sources.get("evaluate.threads"):
            threads = str(self.settings.evaluate.threads)
            yield from self._table("evaluate", iter([("threads", threads, f"derived: {found}")]))

    def _table(self, title: str, rows: Iterator[tuple[str, str, str]]) -> Iterator[str]:
        yield from ("", title)
        table = tabulate([*rows], tablefmt="plain", disable_numparse=True, maxcolwidths=[None, 70, 60])
        yield from (f"  {line.rstrip()}" for line in table.splitlines())

    def _row(self, section: str, name: str, key: str) -> tuple[str, str, str]:
        """The key of an entry, its value and its source."""
        value = getattr(getattr(self.settings, section)[name], key)
        return key, _written(value), self._source(section, name, key)

    def _source(self, section: str, name: str, key: str) -> str:
        if found := self.sources.get(f"{section}.{name}.{key}"):
            return f"derived: {found}"
        entries = getattr(self.written, section)
        if name in entries and key in entries[name].model_fields_set:
            return self.sources.get(section, "written")
        return "default"

    def _model(self, name: str) -> Iterator[tuple[str, str, str]]:
        model = self.settings.models[name]
        for key in ("vision", "language", "tokens", "projector", "class_token", "vision_layer"):
            yield self._row("models", name, key)
        vision = self._facts(model.vision, "vision")
        if vision is None:
            yield "image size", "unknown", _ABSENT
        else:
            try:
                side, _ = encoder_layout(model, vision)
                yield "image size", f"{side} x {side} pixels", vision.source
            except ValueError as error:
                yield "image size", "unknown", str(error)
        language = self._facts(model.language, "language")
        if language is None:
            yield "decoder", "unknown", _ABSENT
            return
        if language.parameters is not None:
            yield "decoder's parameters", f"about {language.parameters / 1e6:,.0f} million", language.source
        if language.rows is not None:
            yield "decoder's rows", f"{language.rows:,} tokens", language.source
        if language.positions is not None:
            yield "decoder's positions", f"{language.positions:,} tokens", language.source

    def _facts(self, name: str, kind: str) -> Any:
        try:
            return self.bases.facts(name, kind)
        except ValueError:
            return None

    def _tokens(self, name: str, tokens: TokensConfig) -> Iterator[str]:
        tokenizer = self._tokenizer(tokens.tokenizer)
        template, problem = None, ""
        if tokenizer is not None:
            try:
                template = template_of(tokens, tokenizer)
            except UserError as error:
                problem = str(error)
        elif not isinstance(tokens.template, str):
            template = tokens.template.template()
        elif tokens.template == PAPER or tokens.tokenizer == MINIATURE:
            template = Template()
        yield from self._table(f"tokens {name}", self._tokens_rows(name, tokens, tokenizer, template, problem))
        if template is not None:
            end = str(tokenizer.eos_token) if tokenizer is not None else "</s>"
            yield "  a round with an image; + marks what is trained on:"
            yield from _marked(render(_EXAMPLE, template, end))

    def _tokens_rows(
        self,
        name: str,
        tokens: TokensConfig,
        tokenizer: "PreTrainedTokenizerBase | None",
        template: Template | None,
        problem: str,
    ) -> Iterator[tuple[str, str, str]]:
        yield self._row("tokens", name, "tokenizer")
        absent = _MADE if tokens.tokenizer == MINIATURE else _ABSENT
        if tokenizer is None:
            yield "tokenizer's tokens", "unknown", absent
        else:
            yield "tokenizer's tokens", f"{len(tokenizer):,}, <image> among them", str(tokenizer.name_or_path)
        yield self._row("tokens", name, "image_tokens")
        how = tokens.template if isinstance(tokens.template, str) else "texts"
        source = self._source("tokens", name, "template")
        if how == AUTO and tokenizer is not None:
            how, found = (CHAT, "a") if tokenizer.chat_template else (PAPER, "no")
            source = f"derived: the tokenizer has {found} chat template"
        yield "template", how, f"cannot be used: {problem}" if problem else source
        if template is not None:
            begin = tokenizer.bos_token if tokenizer is not None and template.bos else None
            yield "begin of a conversation", repr(begin) if begin else "no special token", ""
            end = template.answer_end or (str(tokenizer.eos_token) if tokenizer is not None else "")
            yield "begin of a question", repr(template.question_header), ""
            yield "begin of an answer", repr(template.answer_header), ""
            yield "end of an answer", repr(end) if end else "the end-of-sequence token", ""
            yield "images", template.images, ""

    def _tokenizer(self, name: str) -> "PreTrainedTokenizerBase | None":
        folder = tokenizer_folder(name, self.root)
        return None if folder is None else load_tokenizer(str(folder))

    def _blend(self, name: str) -> Iterator[tuple[str, str, str]]:
        for key in ("tokens", "packing", "sequence", "max_images", "global_batch"):
            yield self._row("blends", name, key)
        datasets = self.settings.blends[name].datasets
        yield (
            "datasets",
            ", ".join(_sampled(*entry) for entry in datasets.items()),
            self._source("blends", name, "datasets"),
        )

    def _replay(self, name: str) -> Iterator[tuple[str, str, str]]:
        replay = self.settings.replay[name]
        yield self._row("replay", name, "model")
        for key in ("prompts", "questions_of"):
            if getattr(replay, key):
                yield self._row("replay", name, key)
        if not replay.prompts and not replay.questions_of:
            yield "prompts", "those of this project", "default"
        for key in ("samples", "max_new_tokens", "temperature", "seed"):
            yield self._row("replay", name, key)

    def _run(self, name: str) -> Iterator[tuple[str, str, str]]:
        run = self.settings.runs[name]
        for key in ("model", "blend", "attention", "start"):
            yield self._row("runs", name, key)
        parts = {
            "language": run.train_language,
            "embeddings": "full" if run.train_embeddings else "frozen",
            "projector": "full" if run.train_projector else "frozen",
            "vision": run.train_vision,
        }
        for part, how in parts.items():
            key = "learning_rate" if part == "language" else f"{part}_learning_rate"
            if how == "frozen":
                yield part, how, self._source("runs", name, f"train_{part}")
                continue
            own = getattr(run, key) is not None
            rate = f"{how}, {key} {run.rate_of(part):g}"
            yield part, rate, self._source("runs", name, key) if own else "the same as learning_rate"
        for key in ("precision", "quantize", "epochs", "ranks", "threads", "micro_batch", "evaluate", "export"):
            yield self._row("runs", name, key)


def _written(value: Any) -> str:
    """A value as a configuration has it."""
    # `tabulate` takes a cell "False" for a truth value and prints "True", so these must be small letters.
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sampled(name: str, dataset: BlendDatasetConfig) -> str:
    """A dataset of a blend, with what of its sampling is not the default."""
    sampling = dataset.model_dump(mode="json", exclude_defaults=True)
    keys = ", ".join(f"{key}: {_written(value)}" for key, value in sampling.items())
    return f"{name} ({keys})" if keys else name


def _marked(pieces: Sequence[tuple[str, bool]]) -> Iterator[str]:
    """A rendered conversation, line by line, with a mark before lines that hold something supervised."""
    line, mark = "", " "
    for text, supervised in pieces:
        for position, part in enumerate(text.split("\n")):
            if position:
                yield f"  {mark} {line}"
                line, mark = "", " "
            line += f"[{part}]" if supervised and part else part
            mark = "+" if supervised and part else mark
    yield f"  {mark} {line}"
