"""VisualChat as a model of lmms-eval, the harness of many published multimodal benchmarks.

    pip install --no-deps -e .          in the environment of lmms-eval, which finds the model by an entry point
    python -m lmms_eval --model visualchat --model_args pretrained=exported/RUN/final --tasks muirbench

lmms-eval makes the prompts, scores and aggregates; the answers come from the same `ModelRunner` as in our own
evaluation, so a task file that both can read gives the same answers in both, which a test asserts.

Three properties of the harness that are easy to miss (lmms-eval 0.7.3):

- Chat models (`is_simple = False`) only get generation requests. Tasks of likelihoods need `--force_simple`.
- `multiple_choice` takes the choice with the *smallest* number that `loglikelihood` returns, so it expects a loss;
  tasks of output type `loglikelihood` average the same number as a log-likelihood. Both call one method. They differ in
  the continuation: a text for a choice, a function of the document for a reference.
- It converts every result that is neither a text nor a `GenerationResult` to a text, also pairs of numbers, which then
  cannot be unpacked. Wrapped in a `GenerationResult` they arrive unchanged.
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

from model.pixels import to_rgb
from scripts.common.files import bytes_sha256
from scripts.config.evaluate import EvaluationConfig
from scripts.inference.answering import ModelRunner, Prompt
from scripts.inference.generation import GenerationOptions
from scripts.inference.image_files import read_image_file

_GENERATION = ("max_new_tokens", "temperature", "top_p", "top_k", "num_beams")


class VisualChat(lmms):
    """A model that gets chat messages.

    Args:
        pretrained: a folder that `export` wrote.
        batch_size: prompts in one batch; 'auto' is 1.
        device: 'auto', 'cpu' or 'cuda'; with several processes each takes its own GPU.
        max_new_tokens: longest answer, for tasks that set none.
        threads: CPU threads.
        seed: seed of sampling, for tasks that sample.
        keep_history: whether the rounds of a multi-round task are one conversation with the model. By default a round
            has the messages that the task gives and nothing else, as with the other models of the harness.
        max_batch_size: accepted because the harness passes it, and not used.
        unknown: other options, which are refused.

    Raises:
        UserError: the folder holds no exported model.
        ValueError: an unknown option or device.
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
    ) -> None:
        super().__init__()
        if unknown:
            raise ValueError(f"--model_args: visualchat has no option {min(unknown)!r}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            self.accelerator = Accelerator()  # makes the process's GPU the current one, which "cuda" then refers to
        settings = EvaluationConfig.model_validate(
            {
                "batch_size": 1 if str(batch_size) == "auto" else int(batch_size),
                "device": (device or "auto").split(":")[0],
                "max_new_tokens": max_new_tokens,
                "threads": threads,
                "seed": seed,
            }
        )
        self._runner, self._keep_history = ModelRunner(Path(pretrained), settings), keep_history

    @property
    def model(self) -> Any:
        """The `VisualChatForConditionalGeneration`."""
        return self._runner.model

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of the model."""
        return self._runner.processor.tokenizer

    @property
    def device(self) -> Any:
        """The device of the model."""
        return self.model.device

    @property
    def batch_size(self) -> int:
        """Prompts in one batch."""
        return self._runner.settings.batch_size

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The answer to every request (context, doc_to_messages, options, document's number, task, split)."""
        prompts = []
        for request in requests:
            _, doc_to_messages, _, number, task, split = request.args
            prompts.append(_prompt(doc_to_messages(self._document(task, split, number)), f"{task}, document {number}"))
        return self._generate(prompts, [request.args[2] for request in requests], "generate_until", requests)

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """The answers to all rounds of every request; after each round the task decides whether there is another."""
        outputs: list[list[str]] = [[] for _ in requests]
        round_infos: list[Any] = [None] * len(requests)
        history: list[list[dict]] = [[] for _ in requests]
        active = list(range(len(requests)))
        while active:
            asked = []
            for index in active:
                messages, round_infos[index] = self._next_round(requests[index], outputs[index], round_infos[index])
                if messages is not None:
                    history[index] = [*history[index], *messages] if self._keep_history else list(messages)
                    asked.append(index)
            prompts = [_prompt(history[index], _name(requests[index])) for index in asked]
            options = [self._options(requests[index]) for index in asked]
            answers = self._generate(prompts, options, "generate_until_multi_round", [requests[i] for i in asked])
            for index, answer in zip(asked, answers, strict=True):
                outputs[index].append(answer)
                message = {"role": "assistant", "content": [{"type": "text", "text": answer or " "}]}
                history[index] = [*history[index], message]
            active = asked
        return outputs

    def loglikelihood(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """(number, greedy) of every request: whether greedy decoding gives the text, and a number in nats.

        The number is the loss of a choice, or the log-likelihood of a reference.

        Raises:
            ValueError: a request without a document.
        """
        conversations, signs = [], []
        for request in requests:
            if len(request.args) != 6:
                raise ValueError("visualchat needs a document in every request; the metric acc_mutual_info sends none")
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
        losses = self._runner.answer_losses(conversations, "likelihoods")
        pairs = [(sign * loss.nats, loss.greedy) for sign, loss in zip(signs, losses, strict=True)]
        return [GenerationResult(text=pair) for pair in pairs]

    def _next_round(self, request: Any, outputs: list[str], round_info: Any) -> tuple[list[dict] | None, Any]:
        """The messages of the next round, `None` after the last one, and the task's own state (round_info)."""
        _, doc_to_messages, _, number, task, split = request.args
        document = self._document(task, split, number)
        if not outputs:
            return doc_to_messages(document), None
        result = doc_to_messages(
            document, round_idx=len(outputs), previous_output=list(outputs), previous_round_info=round_info
        )
        if not (isinstance(result, tuple) and len(result) == 4):
            return None, None
        messages, is_last, _, next_info = result
        return (None, None) if is_last else (messages, next_info)

    def _options(self, request: Any) -> dict[str, Any]:
        return request.args[2]

    def _generate(
        self, prompts: Sequence[Prompt], options: Sequence[dict], method: str, requests: Sequence[Any]
    ) -> list[str]:
        """Answer prompts; those with the same options share batches."""
        generations = [_generation(each) for each in options]
        answers: list[str] = [""] * len(prompts)
        for generation in dict.fromkeys(generations):
            indices = [index for index, each in enumerate(generations) if each == generation]
            outputs = self._runner.generate([prompts[index] for index in indices], method, generation=generation)
            for index, output in zip(indices, outputs, strict=True):
                answers[index] = output
        for request, request_options, answer in zip(requests, options, answers, strict=True):
            self.cache_hook.add_partial(method, (request.args[0], request_options), answer)
        return answers

    def _document(self, task: str, split: str, number: int) -> Any:
        return self.task_dict[task][split][number]


class VisualChatSimple(VisualChat):
    """The same model for the harness's simple interface, which passes text and images separately.

    Only through this interface the harness requests likelihoods.
    """

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

    def _next_round(self, request: Any, outputs: list[str], round_info: Any) -> tuple[list[dict] | None, Any]:
        context, _, doc_to_visual, doc_to_text, number, task, split = request.args
        document = self._document(task, split, number)
        if not outputs:
            return _simple_messages(context, doc_to_visual(document)), None
        result = doc_to_text(
            document, round_idx=len(outputs), previous_output=list(outputs), previous_round_info=round_info
        )
        if not (isinstance(result, tuple) and len(result) == 5):
            return None, None
        visuals, text, is_last, _, next_info = result
        return (None, None) if is_last else (_simple_messages(text, visuals), next_info)


def _name(request: Any) -> str:
    return f"{request.task_name}, document {request.doc_id}"


def _simple_messages(text: str, visuals: Sequence[Any] | None) -> list[dict]:
    """One question about images, as chat messages of the harness."""
    images = [{"type": "image", "url": each} for each in visuals or () if each is not None]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text.replace("<image>", "").strip()}]}]


def _prompt(messages: Sequence[dict], name: str, last_answer_only: bool = False) -> Prompt:
    """Convert messages of the harness to our chat form.

    Raises:
        ValueError: a message holds a video, a sound, or an image of an unknown type.
    """
    chat = ChatMessages(messages=list(messages))
    images, videos, sounds = chat.extract_media()
    if videos or sounds:
        raise ValueError(f"{name} shows a video or plays a sound; VisualChat reads images only")
    data = [_encoded(image) for image in images]
    numbers = iter(range(len(data)))
    converted = [
        {
            "role": message.role,
            "content": [
                {"type": "image", "index": next(numbers)}
                if part.type == "image"
                else {"type": "text", "text": part.text}
                for part in message.content
            ],
        }
        for message in chat.messages
    ]
    return Prompt(name, converted, [bytes_sha256(each) for each in data], _reader(data), last_answer_only)


def _reader(data: list[bytes]) -> Callable[[], list[bytes]]:
    return lambda: data


def _encoded(image: Any) -> bytes:
    """The encoded bytes of an image: those of its file, or a PNG of a decoded one."""
    if isinstance(image, str | Path):
        return read_image_file(Path(image), str(image))
    if isinstance(image, dict) and image.get("bytes"):
        return image["bytes"]
    if not isinstance(image, Image.Image):
        raise ValueError(f"an image must be a file, bytes or a Pillow image, not {type(image).__name__}")
    buffer = BytesIO()
    to_rgb(image).save(buffer, "PNG")
    return buffer.getvalue()


def _generation(options: dict[str, Any]) -> GenerationOptions:
    """The options of the harness that apply to this model; others (image aspect ratio and so on) are ignored."""
    until = options.get("until") or ()
    sample = bool(options.get("do_sample")) and options.get("temperature") != 0
    known = {name: options[name] for name in _GENERATION if options.get(name) is not None}
    if not sample:
        known = {name: value for name, value in known.items() if name in ("max_new_tokens", "num_beams")}
    return GenerationOptions(until=(until,) if isinstance(until, str) else tuple(until), do_sample=sample, **known)
