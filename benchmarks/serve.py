"""Answers per second of the server and time to the first token, against one request at a time.

    python -m benchmarks.serve
    python -m benchmarks.serve --model results/exported/mmca/final

Clients hold conversations of several rounds at the same time; every round shows one of a few images that all clients
share, sends the whole conversation, as OpenAI's interface requires, and waits for the answer before the next round.

    server    `python -m scripts.serve` over HTTP on the loopback interface, streamed; restarted for every repeat, so
              that its caches are empty
    generate  the same requests by `processor.apply_chat_template` and `model.generate`, one at a time in order of
              arrival: what `transformers serve` does for models with images, here without its HTTP

`transformers serve` (5.23) itself cannot load this model: it looks the class up in `transformers` by name, and ours
comes with the model's folder. Both sides run the same weights on the same machine, alternate, and decode greedily the
same number of tokens. Without --model the weights are random, with the given widths.
"""

import argparse
import base64
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from statistics import median

import numpy as np
import requests
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import TextStreamer

from benchmarks.chat import make_model
from benchmarks.measuring import processor as processor_name
from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor
from scripts.inference.model_loading import load_model

IMAGES = 8  # that all clients share
QUESTIONS = (
    "What is at the top-left?",
    "Which colour is the object in image 1?",
    "How many objects are there?",
    "Which image has more objects?",
)

Ask = Callable[[list[dict]], tuple[str, float, float]]  # messages -> answer, seconds to the first token and to the last


def data_url(seed: int) -> str:
    """A random image of 224 x 224 pixels."""
    file = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(file, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def hold_conversations(ask: Ask, args: argparse.Namespace) -> tuple[float, list[float], list[list[str]]]:
    """Hold the conversations of all clients; returns total seconds, seconds to every first token, and the answers."""
    urls = [data_url(seed) for seed in range(IMAGES)]
    firsts: list[float] = []
    answers: list[list[str]] = [[] for _ in range(args.clients)]

    def converse(client: int) -> None:
        messages: list[dict] = []
        for number in range(args.rounds):
            image = {"type": "image_url", "image_url": {"url": urls[(client + number) % IMAGES]}}
            text = {"type": "text", "text": QUESTIONS[(client // IMAGES + number) % len(QUESTIONS)]}
            messages.append({"role": "user", "content": [image, text]})
            answer, first, _ = ask(messages)
            firsts.append(first)
            answers[client].append(answer)
            messages.append({"role": "assistant", "content": answer or "."})

    threads = [threading.Thread(target=converse, args=(client,)) for client in range(args.clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start, firsts, answers


@contextmanager
def served(folder: Path, args: argparse.Namespace) -> Iterator[str]:
    """Run the server until the block ends; yields its address."""
    command = [sys.executable, "-m", "scripts.serve", "--model", f"model={folder}", "--port", "0", "--timeout", "3600"]
    command += ["--device", args.device, "--threads", str(args.threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        ready = process.stdout.readline() if process.stdout else ""
        url = ready.removeprefix("ready: open ").strip()
        if not url.startswith("http"):
            raise SystemExit("the server did not start")
        yield url
    finally:
        process.terminate()
        process.wait()


def through_server(url: str, args: argparse.Namespace) -> Ask:
    """Ask our server."""

    def ask(messages: list[dict]) -> tuple[str, float, float]:
        body = {"model": "model", "messages": messages, "max_tokens": args.tokens, "stream": True}
        start, first = time.perf_counter(), 0.0
        pieces: list[str] = []
        with requests.post(f"{url}v1/chat/completions", json=body, stream=True, timeout=3600) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if not line.startswith(b"data: {"):
                    continue
                for choice in json.loads(line[6:])["choices"]:
                    if choice["delta"].get("content") or choice["finish_reason"]:
                        first = first or time.perf_counter()
                        pieces.append(choice["delta"].get("content", ""))
        if not pieces:
            raise RuntimeError("the server sent no answer")
        return "".join(pieces), first - start, time.perf_counter() - start

    return ask


class _FirstTokenTimer(TextStreamer):
    """Records the time of the first token."""

    def __init__(self) -> None:
        self.calls, self.at = 0, 0.0

    def put(self, value: Tensor) -> None:
        self.calls += 1
        if self.calls == 2:  # the first call passes the prompt
            self.at = time.perf_counter()

    def end(self) -> None:
        pass


def by_generate(
    model: VisualChatForConditionalGeneration, processor: VisualChatProcessor, args: argparse.Namespace
) -> Ask:
    """Ask the model itself, one at a time."""
    one_at_a_time = threading.Lock()

    def ask(messages: list[dict]) -> tuple[str, float, float]:
        start, timer = time.perf_counter(), _FirstTokenTimer()
        with one_at_a_time, torch.inference_mode():
            converted = [message | {"content": _parts(message["content"])} for message in messages]
            inputs = processor.apply_chat_template(
                converted, add_generation_prompt=True, tokenize=True, return_dict=True
            )
            tokens = model.generate(
                **inputs.to(model.device), max_new_tokens=args.tokens, do_sample=False, streamer=timer
            )
            text = processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return text, timer.at - start, time.perf_counter() - start

    return ask


def _parts(content: str | list[dict]) -> str | list[dict]:
    """A message's parts as processors of `transformers` take them."""
    if isinstance(content, str):
        return content
    urls = [{"type": "image", "url": part["image_url"]["url"]} for part in content if part["type"] == "image_url"]
    return [*urls, *(part for part in content if part["type"] == "text")]


def random_model(folder: Path, args: argparse.Namespace) -> Path:
    """Write a model of random weights that never ends an answer by itself; returns its folder."""
    model = make_model(folder, args.attention, args)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder / "model")
    parts = (folder / "vision", folder / "tokenizer", model.config.image_tokens)
    VisualChatProcessor.from_base_models(*parts).save_pretrained(folder / "model")
    return folder / "model"


def compare(folder: Path, args: argparse.Namespace) -> None:
    """Measure both sides with the model in `folder`, and print the results."""
    model, processor = load_model(folder, args.device)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{processor_name()}, {args.threads} threads"
    size = sum(value.numel() for value in model.parameters())
    print(f"{where}; torch {torch.__version__}, transformers {transformers.__version__}, Python", end=" ")
    print(f"{platform.python_version()}; load {os.getloadavg()[0]:.1f}; {args.model or 'random weights'},", end=" ")
    print(f"{size / 1e6:.1f}M parameters, {model.config.image_tokens} tokens per image,", end=" ")
    print(f"attention {model.config.attention}; {args.clients} clients, {args.rounds} rounds,", end=" ")
    print(f"up to {args.tokens} tokens per answer\n", flush=True)
    count = args.clients * args.rounds
    rows: dict[str, list[tuple[float, float]]] = {"server": [], "generate": []}
    same = []
    for _ in range(args.repeats):
        with served(folder, args) as url:
            seconds, firsts, ours = hold_conversations(through_server(url, args), args)
        rows["server"].append((count / seconds, median(firsts)))
        seconds, firsts, theirs = hold_conversations(by_generate(model, processor, args), args)
        rows["generate"].append((count / seconds, median(firsts)))
        same.append(sum(a == b for one, two in zip(ours, theirs, strict=True) for a, b in zip(one, two, strict=True)))
    print("| | answers per second | first token after (median) |")
    print("|---|---|---|")
    for name, values in rows.items():
        print(f"| {name} | {median(v for v, _ in values):.2f} | {1000 * median(v for _, v in values):.0f} ms |")
    pairs = list(zip(rows["server"], rows["generate"], strict=True))
    faster = [one[0] / two[0] for one, two in pairs]
    sooner = [two[1] / one[1] for one, two in pairs]
    print(f"\nratio {median(faster):.1f} (repeats {', '.join(f'{value:.1f}' for value in faster)}); ", end="")
    print(f"first token {median(sooner):.1f} times sooner; {min(same)} of {count} answers identical")


def main() -> None:
    """Run the program."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    arguments.add_argument("--model", type=Path, help="an exported model; otherwise random weights")
    arguments.add_argument("--device", default="cuda" if on_gpu else "cpu")
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if on_gpu else "float32")
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments.add_argument("--width", type=int, default=512)
    arguments.add_argument("--layers", type=int, default=6)
    arguments.add_argument("--vision-width", type=int, default=384)
    arguments.add_argument("--vision-layers", type=int, default=4)
    arguments.add_argument("--attention", choices=("mmca", "causal", "dattn"), default="mmca", help="of random weights")
    arguments.add_argument("--clients", type=int, default=16)
    arguments.add_argument("--rounds", type=int, default=4)
    arguments.add_argument("--tokens", type=int, default=24, help="largest number of tokens of an answer")
    arguments.add_argument("--repeats", type=int, default=3, help="repeats of both sides")
    args = arguments.parse_args()
    args.dtype = getattr(torch, args.dtype)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.model or random_model(Path(temporary), args)
        compare(folder, args)


if __name__ == "__main__":
    main()
