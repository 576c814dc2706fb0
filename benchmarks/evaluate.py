"""The time of an evaluation suite in batches with cached images, against one question at a time without a cache.

    python -m benchmarks.evaluate

A suite like those of robustness: a few sets of four images, each with many questions, answered with a model of random
weights and the widths of a small real one. Three modes alternate, and the ratios are medians over the repeats:

    recomputed   one question at a time, encoder and image rows computed for each, as the original does
    cached       one question at a time; an image is computed when it first appears
    batched      the same with sixteen questions at a time

A fourth reads the answers from the answer cache: the cost of resuming an evaluation that was stopped at its end.
"""

import argparse
import io
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
import transformers

from benchmarks.chat import QUESTION, make_model, picture
from benchmarks.measuring import processor as processor_name
from model.processing import VisualChatProcessor
from scripts.common.files import bytes_sha256
from scripts.config.evaluate import EvaluationConfig
from scripts.inference.answer_cache import AnswerCache
from scripts.inference.answering import ModelRunner, Prompt

IMAGES, ANSWER, BATCH = 4, 16, 16


def suite(sets: int, questions: int) -> list[Prompt]:
    """Prompts of four images each, which are the same for all prompts of a set."""
    prompts = []
    for number in range(sets):
        data = []
        for image in range(IMAGES):
            buffer = io.BytesIO()
            picture(IMAGES * number + image).save(buffer, "PNG")
            data.append(buffer.getvalue())
        shown = [{"type": "image", "index": index} for index in range(IMAGES)]
        for question in range(questions):
            content = [*shown, {"type": "text", "text": f"{QUESTION} ({question})"}]
            hashes = [bytes_sha256(each) for each in data]
            prompts.append(Prompt("x", [{"role": "user", "content": content}], hashes, partial(list, data)))
    return prompts


def seconds(runner: ModelRunner, prompts: list[Prompt], batch: int, recompute: bool) -> float:
    """Seconds to answer all prompts, beginning with an empty image cache; with `recompute`, empty for each prompt."""
    runner.settings = runner.settings.model_copy(update={"batch_size": batch})
    runner._states.clear()
    start = time.perf_counter()
    for each in [[prompt] for prompt in prompts] if recompute else [prompts]:
        runner.generate(each, "answers")
        if recompute:
            runner._states.clear()
    return time.perf_counter() - start


def main() -> None:
    """Run the program."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments.add_argument("--width", type=int, default=512)
    arguments.add_argument("--layers", type=int, default=8)
    arguments.add_argument("--vision-width", type=int, default=768)
    arguments.add_argument("--vision-layers", type=int, default=6)
    arguments.add_argument("--sets", type=int, default=2)
    arguments.add_argument("--questions", type=int, default=16, help="per set")
    arguments.add_argument("--repeats", type=int, default=3)
    args = arguments.parse_args()
    args.device, args.dtype = "cpu", torch.float32
    prompts = suite(args.sets, args.questions)
    print(f"{processor_name()}, {args.threads} threads; torch {torch.__version__}, ", end="")
    print(f"transformers {transformers.__version__}; {len(prompts)} questions about {IMAGES} images of 256 tokens\n")
    print("| attention | recomputed | cached | batched | batched, against recomputed | resumed |")
    print("|---|---|---|---|---|---|")
    for attention in ("mmca", "causal"):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            model = make_model(root, attention, args)
            model.save_pretrained(root / "model")
            parts = (root / "vision", root / "tokenizer", model.config.image_tokens)
            VisualChatProcessor.from_base_models(*parts).save_pretrained(root / "model")
            runner = ModelRunner(
                root / "model", EvaluationConfig(max_new_tokens=ANSWER, threads=args.threads, device="cpu")
            )
            modes = {"recomputed": (1, True), "cached": (1, False), "batched": (BATCH, False)}
            times: dict[str, list[float]] = {name: [] for name in modes}
            for _ in range(args.repeats):
                for name, (batch, recompute) in modes.items():
                    times[name].append(seconds(runner, prompts, batch, recompute))
            runner.answer_cache = AnswerCache(root / "answers.jsonl", {})
            seconds(runner, prompts, BATCH, False)
            resumed = seconds(runner, prompts, BATCH, False)
        ratio = median(slow / fast for slow, fast in zip(times["recomputed"], times["batched"], strict=True))
        row = " | ".join(f"{median(values):.1f} s" for values in times.values())
        print(f"| {attention} | {row} | {ratio:.1f} x | {resumed:.2f} s |", flush=True)


if __name__ == "__main__":
    main()
