"""VisualChat models in lmms-eval, the harness of many published multimodal benchmarks.

    pip install --no-deps -e .          in the environment of lmms-eval, which finds us by an entry point
    python -m lmms_eval --model visualchat --model_args pretrained=exported/RUN/final --tasks muirbench

lmms-eval makes the prompts, judges and aggregates; the answers come from the same `ModelRunner` as in our own evaluation,
so a task file that both can read gives the same answers in both, which a test asserts.

Three things about the harness that are easily got wrong (lmms-eval 0.7.3):

- Chat models (`is_simple = False`) are asked to generate only. Tasks of likelihoods need `--force_simple`.
- `multiple_choice` takes the choice with the *smallest* number that `loglikelihood` returns, a loss; tasks of output
  type `loglikelihood` average what they take for a log-likelihood. The two come through one method. They differ in the
  continuation: a text for a choice, a function of the document for the other.
- It turns whatever is neither a text nor a `GenerationResult` into a text, pairs of numbers too, which then cannot be
  taken apart. In the wrapper they arrive whole.
"""

import os
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from PIL import Image

from scripts.common.files import bytes_sha256
from scripts.config.evaluate import EvaluationConfig
from scripts.inference.answering import ModelRunner, Prompt
from scripts.inference.generation import GenerationOptions

_GENERATION = ("max_new_tokens", "temperature", "top_p", "top_k", "num_beams")


class VisualChat(lmms):
    """A model that is given chat messages.

    Args:
        pretrained: a folder that `export` wrote.
        batch_size: prompts generated together.
        device: 'auto', 'cpu' or 'cuda'; with several processes each takes its own GPU.
        max_new_tokens: where a task does not say it.
        threads: threads of the processor.
        seed: where sampling begins, for tasks that sample.
        keep_history: whether the rounds of a multi-round task are one conversation with the model. By default a round shows
            what the task puts into its messages and nothing else, as with the harness's other models.

    Raises:
        UserError: there is no such model.
        ValueError: an option that is not listed here.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str | None = None,
        max_new_tokens: int = 256,
        threads: int = 1,
        seed: int = 0,
        keep_history: bool = False,
        max_batch_size: int | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            raise ValueError(f"--model_args: visualchat has no option {sorted(unknown)[0]!r}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            self.accelerator = Accelerator()  # makes its GPU the current one, which "cuda" then means
        settings = EvaluationConfig(
            batch=1 if str(batch_size) == "auto" else int(batch_size),
            device=(device or "auto").split(":")[0],
            max_new_tokens=max_new_tokens,
            threads=threads,
            seed=seed,
        )
        self._answerer, self._keep_history = ModelRunner(Path(pretrained), settings), keep_history

    @property
    def model(self) -> Any:
        """The network."""
        return self._answerer.model

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._answerer.processor.tokenizer

    @property
    def device(self) -> Any:
        """Where it runs."""
        return self.model.device

    @property
    def batch_size(self) -> int:
        """Prompts generated together."""
        return self._answerer.settings.batch

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to every request (context, doc_to_messages, options, document's number, task, split)."""
        prompts = []
        for request in requests:
            _, doc_to_messages, _, number, task, split = request.args
            prompts.append(_prompt(doc_to_messages(self._document(task, split, number)), f"{task}, document {number}"))
        return self._generate(prompts, [request.args[2] for request in requests], "generate_until", requests)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers to every round of every request; the task says with each round whether there is another."""
        said: list[list[str]] = [[] for _ in requests]
        notes: list[Any] = [None] * len(requests)
        history: list[list[dict]] = [[] for _ in requests]
        going = list(range(len(requests)))
        while going:
            asked = []
            for place in going:
                messages, notes[place] = self._next_round(requests[place], said[place], notes[place])
                if messages is not None:
                    history[place] = [*history[place], *messages] if self._keep_history else list(messages)
                    asked.append(place)
            names = [_name(requests[place]) for place in asked]
            prompts = [_prompt(history[place], name) for place, name in zip(asked, names, strict=True)]
            options = [self._options(requests[place]) for place in asked]
            answers = self._generate(prompts, options, "generate_until_multi_round", [requests[p] for p in asked])
            for place, answer in zip(asked, answers, strict=True):
                said[place].append(answer)
                spoken = {"role": "assistant", "content": [{"type": "text", "text": answer or " "}]}
                history[place] = [*history[place], spoken]
            going = asked
        return said

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Choices' losses in nats, or references' log-likelihoods, and whether greedy decoding gives them."""
        conversations, signs = [], []
        for request in requests:
            if len(request.args) != 6:
                raise ValueError("visualchat does not answer without a document, as acc_mutual_info asks")
            context, continuation, doc_to_visual, number, task, split = request.args
            document = self._document(task, split, number)
            is_choice = isinstance(continuation, str)
            answer = continuation if is_choice else str(continuation(document))
            messages = [
                *_simple_messages(context, doc_to_visual(document)),
                {"role": "assistant", "content": [{"type": "text", "text": answer.strip()}]},
            ]
            conversations.append(_prompt(messages, _name(request), last_answer_only=True))
            signs.append(1.0 if is_choice else -1.0)
        measured = self._answerer.answer_losses(conversations, "likelihoods")
        pairs = [(sign * nats, greedy) for sign, (nats, _, greedy) in zip(signs, measured, strict=True)]
        return [GenerationResult(text=pair) for pair in pairs]

    def _next_round(self, request: Any, said: list[str], note: Any) -> tuple[list[dict] | None, Any]:
        """The messages of the next round, `None` after the last one, and what the task notes for itself."""
        _, doc_to_messages, _, number, task, split = request.args
        document = self._document(task, split, number)
        if not said:
            return doc_to_messages(document), None
        found = doc_to_messages(document, round_idx=len(said), previous_output=list(said), previous_round_info=note)
        if not (isinstance(found, tuple) and len(found) == 4) or found[1]:
            return None, None
        return found[0], found[3]

    def _options(self, request: Any) -> dict[str, Any]:
        return request.args[2]

    def _generate(
        self, prompts: Sequence[Prompt], options: Sequence[dict], method: str, requests: Sequence[Any]
    ) -> list[str]:
        """Answer prompts, those with the same options together."""
        hows = [_generation(each) for each in options]
        answers: list[str] = [""] * len(prompts)
        for how in dict.fromkeys(hows):
            places = [place for place, each in enumerate(hows) if each == how]
            found = self._answerer.generate([prompts[place] for place in places], method, generation=how)
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        for request, given, answer in zip(requests, options, answers, strict=True):
            self.cache_hook.add_partial(method, (request.args[0], given), answer)
        return answers

    def _document(self, task: str, split: str, number: int) -> Any:
        return self.task_dict[task][split][number]


class VisualChatSimple(VisualChat):
    """The same model where the harness hands over a text and images apart; only so it asks for likelihoods."""

    is_simple = True

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to every request (context, options, doc_to_visual, document's number, task, split)."""
        prompts = []
        for request in requests:
            context, _, doc_to_visual, number, task, split = request.args
            messages = _simple_messages(context, doc_to_visual(self._document(task, split, number)))
            prompts.append(_prompt(messages, _name(request)))
        return self._generate(prompts, [request.args[1] for request in requests], "generate_until", requests)

    def _options(self, request: Any) -> dict[str, Any]:
        return request.args[1]

    def _next_round(self, request: Any, said: list[str], note: Any) -> tuple[list[dict] | None, Any]:
        context, _, doc_to_visual, doc_to_text, number, task, split = request.args
        document = self._document(task, split, number)
        if not said:
            return _simple_messages(context, doc_to_visual(document)), None
        found = doc_to_text(document, round_idx=len(said), previous_output=list(said), previous_round_info=note)
        if not (isinstance(found, tuple) and len(found) == 5) or found[2]:
            return None, None
        return _simple_messages(found[1], found[0]), found[4]


def _name(request: Any) -> str:
    return f"{request.task_name}, document {request.doc_id}"


def _simple_messages(text: str, visuals: Sequence[Any] | None) -> list[dict]:
    """One question about images, as messages of the harness."""
    images = [{"type": "image", "url": each} for each in visuals or () if each is not None]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text.replace("<image>", "").strip()}]}]


def _prompt(messages: Sequence[dict], name: str, last_answer_only: bool = False) -> Prompt:
    """The harness's messages in our chat form. Raises ValueError for videos and sounds."""
    found = ChatMessages(messages=list(messages))
    images, videos, sounds = found.extract_media()
    if videos or sounds:
        raise ValueError(f"{name} shows a video or plays a sound; VisualChat looks at images")
    data = [_encoded(image) for image in images]
    numbers = iter(range(len(data)))
    ours = [
        {
            "role": message.role,
            "content": [
                {"type": "image", "index": next(numbers)}
                if part.type == "image"
                else {"type": "text", "text": part.text}
                for part in message.content
            ],
        }
        for message in found.messages
    ]
    return Prompt(name, ours, [bytes_sha256(each) for each in data], _reader(data), last_answer_only)


def _reader(data: list[bytes]) -> Callable[[], list[bytes]]:
    return lambda: data


def _encoded(image: Any) -> bytes:
    """An image's bytes: those of its file, or of a PNG, which keeps every pixel."""
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if isinstance(image, dict) and image.get("bytes"):
        return image["bytes"]
    if not isinstance(image, Image.Image):
        raise ValueError(f"an image must be a file, bytes or a Pillow image, not {type(image).__name__}")
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _generation(options: dict[str, Any]) -> GenerationOptions:
    """The harness's options; those that mean nothing to us (aspect ratios and the like) are passed over."""
    until = options.get("until") or ()
    sample = bool(options.get("do_sample")) and options.get("temperature") != 0
    known = {name: options[name] for name in _GENERATION if options.get(name) is not None}
    if not sample:
        known = {name: value for name, value in known.items() if name in ("max_new_tokens", "num_beams")}
    return GenerationOptions(until=(until,) if isinstance(until, str) else tuple(until), do_sample=sample, **known)
