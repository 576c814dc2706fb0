"""How fast training is and how much memory it takes, against a plain DeepSpeed loop in the original's manner.

    python -m benchmarks.train [--conversations 96] [--runs 5] --folder DIR

The same small model (a CLIP encoder, a Llama, the paper's projector; projector and embeddings are trained), the same
conversations over JPEGs, one rank, ZeRO 2, AdamW, fp32 on a CPU and bf16 on a GPU. Each contestant trains once over all
conversations, in a process of its own; they take turns.

    ours    `Batches` and `Engine` on a packed blend: what `python -m scripts.train` runs
    plain   a loop around `deepspeed.initialize` as the original has it, written from its description: conversations in
            random order, padded to the longest of the batch; encoder inside the engine; logits of every place, whose
            cross entropy ignores what has no label; MMCA with two T x T masks and two softmaxes; JPEGs decoded by the
            main process when the batch is due

Where the original would be slower without need (it builds its masks in a Python loop), `plain` is not. Both predict the
same tokens from the same inputs, and a check before the first turn compares the loss of the first conversations.

What counts is supervised tokens per second over all steps after the first: of the clock, and of this process's one CPU
thread, which other work on the machine does not slow down (on a GPU only the clock means something); and peak memory:
on a GPU what PyTorch has allocated, on a CPU the process's largest resident size, whole and above what it was before
the first step.
"""

import argparse
import hashlib
import io
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.common.files import canonical, read_json, write_json

ROOT = Path(__file__).resolve().parents[1]
SEQUENCE, PACK_IMAGES, MICRO = 2048, 8, 4
WORDS = "the a red blue small large cat dog house tree on under beside left right of and with there is what how".split()


# ---- the data: one set of conversations, as a blend folder


def conversation(chooser: random.Random) -> list[dict[str, Any]]:
    """A chat about one to three images in one to three rounds, short or long."""

    def text(least: int, most: int) -> str:
        return " ".join(chooser.choice(WORDS) for _ in range(chooser.randint(least, most)))

    messages: list[dict[str, Any]] = []
    images = [{"type": "image", "index": index} for index in range(chooser.choice((1, 1, 1, 2, 3)))]
    for turn in range(chooser.choice((1, 1, 2, 3))):
        question = [*(images if turn == 0 else []), {"type": "text", "text": text(4, 15) + "?"}]
        messages.append({"role": "user", "content": question})
        answer = {"type": "text", "text": text(5, 60) + "."}
        messages.append({"role": "assistant", "content": [answer]})
    return messages


def write_data(folder: Path, count: int, step_tokens: int, processor: Any) -> None:
    """Write `count` conversations, in random order, to `folder`/plain and packed to `folder`/packed."""
    from benchmarks.convert import _picture
    from scripts.blending.packing import pack

    chooser = random.Random(0)
    samples, pictures = [], []
    for place in range(count):
        messages = conversation(chooser)
        encoded = processor.encode(messages)
        shown = sum(part["type"] == "image" for part in messages[0]["content"])
        first = len(pictures)
        for number in range(first, first + shown):
            buffer = io.BytesIO()
            _picture(number, 640, 428, 18.0).save(buffer, "JPEG", quality=90)
            pictures.append(buffer.getvalue())
        counted = {"n_tokens": len(encoded), "n_labels": sum(label >= 0 for label in encoded.labels)}
        samples.append({"uids": [f"one:{place}"], "dataset": "one", "messages": messages, **counted, "first": first})
    lengths = np.array([sample["n_tokens"] for sample in samples])
    images = np.array([sum(part["type"] == "image" for part in s["messages"][0]["content"]) for s in samples])
    packed = pack(lengths, images, SEQUENCE, PACK_IMAGES)
    packs = [members.tolist() for members in np.split(packed.values, packed.starts[1:-1])]
    write_blend(folder / "plain", samples, pictures, [[place] for place in range(count)], range(count))
    write_blend(folder / "packed", samples, pictures, packs, packed.values.tolist())
    for name in ("plain", "packed"):
        manifest = read_json(folder / name / "manifest.json")
        per_step = max(1, round(manifest["units"] * step_tokens / int(lengths.sum())))
        write_json(folder / name / "manifest.json", manifest | {"global_batch": per_step})


def write_blend(folder: Path, samples: list, pictures: list[bytes], packs: list[list[int]], order) -> None:
    """Write a blend folder whose units are `packs`, with the conversations in `order`."""
    from scripts.blend_manifest import UNITS
    from scripts.media.tarshard import ShardWriter, shard_name

    folder.mkdir(parents=True)
    with ShardWriter(folder / shard_name("train", 0, 1)) as shard:
        for position, number in enumerate(order):
            sample = dict(samples[number]) | {"position": position}
            first = sample.pop("first")
            shown = sum(part["type"] == "image" for part in sample["messages"][0]["content"])
            data = pictures[first : first + shown]
            hashes = [hashlib.sha256(image).hexdigest() for image in data]
            sample["images"] = [{"source": "one", "key": f"{h[:9]}", "sha256": h} for h in hashes]
            members = [("json", canonical(sample).encode())] + [(f"i{n}.jpg", image) for n, image in enumerate(data)]
            shard.add(f"e000-{position:09d}", members)
    np.cumsum([0, *map(len, packs)]).astype("<u8").tofile(folder / UNITS)
    units = len(packs)
    listed = {"name": shard.path.name, "bytes": shard.bytes, "conversations": len(samples), "units": units}
    facts = {"plan": "", "units": units, "conversations": len(samples), "datasets": {"one": {}}, "shards": [listed]}
    write_json(folder / "manifest.json", facts | {"images": "embedded"})


def write_model(folder: Path, args: argparse.Namespace) -> None:
    """Write the folders of the encoder, the language model and the tokenizer."""
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    from benchmarks.chat import write_tokenizer

    torch.manual_seed(0)
    vision = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**vision, image_size=224, patch_size=14)).save_pretrained(folder / "vision")
    CLIPImageProcessorPil().save_pretrained(folder / "vision")
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(folder / "tokenizer"))
    # As many tokens as a real model has, though the texts use few of them.
    text = {"vocab_size": args.vocabulary, "hidden_size": args.width, "intermediate_size": int(args.width * 2.75)}
    text |= {"num_hidden_layers": args.layers, "num_attention_heads": args.width // 64, "max_position_embeddings": 4096}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    LlamaForCausalLM(LlamaConfig(**text, **ids)).save_pretrained(folder / "language")


def load(folder: Path) -> tuple[Any, Any]:
    """The model, in the format that is trained in, and its processor."""
    from transformers import AutoTokenizer

    from model.modeling import VisualChatForConditionalGeneration
    from model.processing import VisualChatProcessor

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(1)
    bases = (folder / "vision", folder / "language", tokenizer)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = VisualChatForConditionalGeneration.from_bases(*bases, dtype=dtype)
    return model, VisualChatProcessor.from_bases(folder / "vision", tokenizer, model.config.image_tokens)


# ---- the contestants: each yields None when it is ready, then what each step was like


def settings() -> Any:
    """What both train, and how."""
    from scripts.sections.run import Run

    precision = "bf16" if torch.cuda.is_available() else "fp32"
    return Run(model="m", blend="b", ranks=1, zero=2, micro_batch=1, schedule="constant", precision=precision)


def ours(folder: Path) -> Iterator[dict[str, float] | None]:
    """What `scripts.train` runs: packs, and the engine."""
    from scripts.training.batches import Batches
    from scripts.training.engine import Engine
    from scripts.training.loader import BlendReader
    from scripts.training.trainable import prepare

    run = settings()
    reader = BlendReader(folder / "packed", folder)
    model, processor = load(folder)
    batches = Batches([reader], processor, global_batch=reader.global_batch, micro_batch=run.micro_batch)
    prepare(model, run)
    engine = Engine(model, run, datasets=["one"], accumulation=batches.accumulation, steps=batches.steps)
    feed = batches.load(0, 0)
    yield None
    for step in range(batches.steps):
        begin, cpu = time.perf_counter(), time.process_time()
        result = engine.step(step, [next(feed) for _ in range(batches.accumulation)])
        yield taken(begin, cpu, result.measured.supervised, result.measured.loss)


def plain(folder: Path) -> Iterator[dict[str, float] | None]:
    """The loop of the original's manner."""
    import deepspeed

    from scripts.training.deepspeed_config import deepspeed_config
    from scripts.training.loader import BlendReader

    run = settings().model_copy(update={"micro_batch": MICRO})
    reader = BlendReader(folder / "plain", folder)
    model, processor = load(folder)
    model = PlainModel(model, folder)
    model.requires_grad_(False)
    for part in (model.projector, model.language.get_input_embeddings()):
        part.requires_grad_(True)
    trained = [value for value in model.parameters() if value.requires_grad]
    micros = max(1, reader.global_batch // MICRO)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=torch.optim.AdamW(trained, run.learning_rate, run.betas, weight_decay=0.0),
        model_parameters=trained,
        config=deepspeed_config(run, micros, sum(value.numel() for value in trained), torch.cuda.is_available()),
    )
    place = 0
    yield None
    while place < len(reader):
        begin, cpu, labels, losses = time.perf_counter(), time.process_time(), 0, 0.0
        for _ in range(micros):
            rows = range(place, min(place + MICRO, len(reader)))
            place = rows.stop
            if not rows:
                break
            inputs = {name: value.to(engine.device) for name, value in padded(reader, processor, rows).items()}
            loss = engine(**inputs)
            engine.backward(loss)
            engine.step()
            count = int((inputs["labels"] >= 0).sum())
            labels, losses = labels + count, losses + float(loss) * count
        yield taken(begin, cpu, labels, losses / labels)


def taken(begin: float, cpu: float, labels: int, loss: float) -> dict[str, float]:
    """What a step was like that began at `begin` of the clock and `cpu` of the process's time."""
    spent = {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}
    return spent | {"labels": labels, "loss": loss}


def padded(reader: Any, processor: Any, rows: range) -> dict[str, Tensor]:
    """Read, decode and pad some conversations, here and now."""
    from scripts.media.opening import open_image

    encoded = []
    for position in rows:
        sample = reader[position]
        images = []
        for data in sample.images:
            with open_image(data) as picture:
                images.append(processor.image(picture))
        encoded.append((processor.encode(sample.messages), images))
    return processor.collate(encoded, padding_side="right")


class PlainModel(nn.Module):
    """Encoder, projector and decoder in one module, which returns the mean cross entropy of a padded batch."""

    def __init__(self, model: Any, folder: Path):
        """`model` gives encoder and projector; the language model is read again, with the library's own layers."""
        from transformers import AttentionInterface, LlamaForCausalLM

        super().__init__()
        AttentionInterface.register("dense_mmca", dense_mmca)
        self.tower, self.projector = model.vision_tower, model.projector
        self.language = LlamaForCausalLM.from_pretrained(
            folder / "language", attn_implementation="dense_mmca", dtype=model.dtype
        )

    def forward(self, input_ids: Tensor, modality: Tensor, labels: Tensor, pixel_values: Tensor, **_: Tensor) -> Tensor:
        embeds = self.language.get_input_embeddings()(input_ids)
        features = self.projector(self.tower(pixel_values))
        embeds = embeds.masked_scatter((modality == 2)[..., None], features.to(embeds.dtype))
        text, image = dense_masks(modality, embeds.dtype)
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        logits = self.language(
            inputs_embeds=embeds,
            attention_mask=torch.zeros(1, 1, 1, 1, device=embeds.device),
            position_ids=positions,
            use_cache=False,
            text_mask=text,
            image_mask=image,
        ).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)


def dense_masks(modality: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What is added to the scores of the two branches, (B, 1, T, T): 0 where a token looks, very little elsewhere.

    Text looks at all earlier text, and at all earlier images; an image token looks at itself, as text.
    """
    length = modality.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=modality.device).tril()
    rows, columns = modality[:, :, None] == 1, modality[:, None, :]
    itself = torch.eye(length, dtype=torch.bool, device=modality.device)
    looks = (causal & rows & (columns == 1) | itself & ~rows, causal & rows & (columns == 2))
    low = torch.finfo(dtype).min
    return tuple(torch.zeros_like(look, dtype=dtype).masked_fill(~look, low)[:, None] for look in looks)


def dense_mmca(module, query, key, value, attention_mask, scaling=None, text_mask=None, image_mask=None, **_):
    """softmax(QK masked to text) V + softmax(QK masked to images) V, each over all T x T scores."""
    scores = query @ key.transpose(2, 3) * scaling
    text = torch.softmax(scores + text_mask, -1) @ value
    # Where no image lies before, the branch adds nothing.
    some = (image_mask == 0).any(-1, keepdim=True)
    image = torch.softmax(scores + image_mask, -1) @ value * some
    return (text + image).transpose(1, 2).contiguous(), None


# ---- the race


def contestant(name: str, folder: Path) -> None:
    """Run one contestant in this process and print what it was like as JSON."""
    from scripts.training.worker import start_distributed

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    start_distributed()
    feed = {"ours": ours, "plain": plain}[name](folder)
    next(feed)
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else resident()
    steps = list(feed)
    timed = steps[1:]
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    labels = sum(step["labels"] for step in timed)
    facts = {
        f"per_{of}": labels / sum(step[key] for step in timed) for of, key in (("second", "seconds"), ("cpu", "cpu"))
    }
    facts |= {"memory": memory, "added": memory - before, "steps": len(steps)}
    facts |= {"first_loss": steps[0]["loss"], "last_loss": steps[-1]["loss"]}
    print(json.dumps(facts | {"labels": sum(step["labels"] for step in steps)}))


def resident() -> int:
    """Bytes of the machine's memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def race(folder: Path, runs: int) -> dict[str, list[dict[str, float]]]:
    """Let the contestants take turns."""
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    found: dict[str, list[dict[str, float]]] = {"ours": [], "plain": []}
    for turn in range(runs):
        for name, results in found.items():
            port = {"MASTER_PORT": str(29600 + 2 * turn + (name == "plain"))}
            threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", "benchmarks.train", "--contestant", name, "--folder", str(folder)]
            done = subprocess.run(command, env=os.environ | variables | port | threads, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{name}: {results[-1]}", file=sys.stderr)
    return found


def check_losses(folder: Path) -> None:
    """Refuse to compare contestants that do not compute the same: the loss of the first conversations must agree."""
    from model.template import IGNORE
    from scripts.training.loader import BlendReader

    reader = BlendReader(folder / "plain", folder)
    model, processor = load(folder)
    inputs = padded(reader, processor, range(2))
    with torch.no_grad():
        losses, _ = model.token_losses(**inputs)
        expected = losses.mean()
        found = PlainModel(model, folder)(**inputs)
    assert losses.numel() == int((inputs["labels"][:, 1:] != IGNORE).sum())
    if abs(float(expected - found)) > (0.05 if torch.cuda.is_available() else 1e-4):
        raise RuntimeError(f"the contestants disagree about a loss: {expected} and {found}")


def main() -> None:
    """Run the benchmark and print its table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--conversations", type=int, default=96)
    arguments.add_argument("--step-tokens", type=int, default=8192, help="tokens of a step, about")
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--width", type=int, default=256)
    arguments.add_argument("--layers", type=int, default=4)
    arguments.add_argument("--vocabulary", type=int, default=32000)
    arguments.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to work")
    arguments.add_argument("--contestant", choices=["ours", "plain"], help=argparse.SUPPRESS)
    args = arguments.parse_args()
    if args.contestant:
        contestant(args.contestant, args.folder)
        return
    with tempfile.TemporaryDirectory(prefix="train-", dir=args.folder) as scratch:
        folder = Path(scratch)
        write_model(folder, args)
        write_data(folder, args.conversations, args.step_tokens, load(folder)[1])
        check_losses(folder)
        found = race(folder, args.runs)
    table(found, args)


def table(found: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> None:
    """Print medians, and ratios as medians over the turns."""
    import deepspeed
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU ({platform.machine()})"
    versions = f"torch {torch.__version__}, deepspeed {deepspeed.__version__}, transformers {transformers.__version__}"
    print(
        f"{device}, {versions}, load {os.getloadavg()[0]:.1f}, {args.runs} runs of {args.conversations} conversations"
    )
    print(
        "| | supervised tokens/s | per CPU second | peak memory | of it training | steps |\n|---|---|---|---|---|---|"
    )
    for name, runs in found.items():
        middle = SimpleNamespace(**{key: median(run[key] for run in runs) for key in runs[0]})
        gib = (middle.memory / 2**30, middle.added / 2**30)
        rates = f"{middle.per_second:,.1f} | {middle.per_cpu:,.1f}"
        print(f"| {name} | {rates} | {gib[0]:.2f} GiB | {gib[1]:.2f} GiB | {middle.steps:.0f} |")
    pairs = list(zip(found["ours"], found["plain"], strict=True))
    keys = {"speed": "per_second", "per CPU second": "per_cpu", "peak memory": "memory", "of it training": "added"}
    for what, key in keys.items():
        ratios = [our[key] / their[key] for our, their in pairs]
        print(f"{what}: ours / plain = {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
