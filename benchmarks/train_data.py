"""The data and the model of `benchmarks.train`: conversations over JPEGs as blend folders, and a small model."""

import argparse
import hashlib
import io
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scripts.common.files import canonical_json, read_json, write_json

SEQUENCE, PACK_IMAGES = 2048, 8
WORDS = (
    *("the", "a", "red", "blue", "small", "large", "cat", "dog", "house", "tree", "on", "under", "beside", "left"),
    *("right", "of", "and", "with", "there", "is", "what", "how"),
)


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
    """Write `count` conversations, in random order, to `folder`/baseline and packed to `folder`/packed."""
    from benchmarks.convert import picture
    from scripts.blending.packing import pack

    chooser = random.Random(0)
    samples: list[dict[str, Any]] = []
    pictures: list[bytes] = []
    for index in range(count):
        messages = conversation(chooser)
        encoded = processor.encode(messages)
        shown = sum(part["type"] == "image" for part in messages[0]["content"])
        first = len(pictures)
        for number in range(first, first + shown):
            buffer = io.BytesIO()
            picture(number, 640, 428, 18.0).save(buffer, "JPEG", quality=90)
            pictures.append(buffer.getvalue())
        counted = {"n_tokens": len(encoded), "n_labels": sum(label >= 0 for label in encoded.labels)}
        samples.append({"uids": [f"one:{index}"], "dataset": "one", "messages": messages, **counted, "first": first})
    lengths = np.array([sample["n_tokens"] for sample in samples])
    images = np.array([sum(part["type"] == "image" for part in s["messages"][0]["content"]) for s in samples])
    packed = pack(lengths, images, SEQUENCE, PACK_IMAGES)
    packs = [members.tolist() for members in np.split(packed.values, packed.starts[1:-1])]
    write_blend(folder / "baseline", samples, pictures, [[index] for index in range(count)], range(count))
    write_blend(folder / "packed", samples, pictures, packs, packed.values.tolist())
    for name in ("baseline", "packed"):
        manifest = read_json(folder / name / "manifest.json")
        per_step = max(1, round(manifest["units"] * step_tokens / int(lengths.sum())))
        write_json(folder / name / "manifest.json", manifest | {"global_batch": per_step})


def write_blend(
    folder: Path, samples: list, pictures: list[bytes], packs: list[list[int]], order: Sequence[int]
) -> None:
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
            members = [("json", canonical_json(sample).encode())] + [
                (f"i{n}.jpg", image) for n, image in enumerate(data)
            ]
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
    # As many tokens as in a real model, though the texts use few of them.
    text = {"vocab_size": args.vocabulary, "hidden_size": args.width, "intermediate_size": int(args.width * 2.75)}
    text |= {"num_hidden_layers": args.layers, "num_attention_heads": args.width // 64, "max_position_embeddings": 4096}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    LlamaForCausalLM(LlamaConfig(**text, **ids)).save_pretrained(folder / "language")


def load(folder: Path, attention: str = "mmca") -> tuple[Any, Any]:
    """The model, in the precision of training, and its processor."""
    from transformers import AutoTokenizer

    from model.modeling import VisualChatForConditionalGeneration
    from model.processing import VisualChatProcessor

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(1)
    bases = (folder / "vision", folder / "language", tokenizer)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    model = VisualChatForConditionalGeneration.from_base_models(*bases, attention=attention, dtype=dtype)
    return model, VisualChatProcessor.from_base_models(folder / "vision", tokenizer, model.config.image_tokens)
