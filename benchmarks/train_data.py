"""The data and the model of `benchmarks.train`: conversations over JPEGs as blend folders, a model of a given shape.

The folder holds no weights: `load` draws them on the device, the same ones each time, so that a model of billions of
parameters costs neither disk nor minutes.
"""

import hashlib
import io
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from scripts.common.files import canonical_json, file_sha256, read_json, write_json

IMAGE_SIDE, IMAGE_TOKENS = 224, 256
WORDS = (
    *("the", "a", "red", "blue", "small", "large", "cat", "dog", "house", "tree", "on", "under", "beside", "left"),
    *("right", "of", "and", "with", "there", "is", "what", "how"),
)


@dataclass(frozen=True)
class Shape:
    """The sizes of the model. `inner`: width of the decoder's feed-forward layers; 0: 2.75 times its own."""

    width: int = 256
    layers: int = 4
    heads: int = 0
    inner: int = 0
    vocabulary: int = 32000
    vision_width: int = 128
    vision_layers: int = 2


class Lengths(NamedTuple):
    """Tokens of the longest conversation, and supervised tokens of all."""

    longest: int
    labels: int


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


def write_data(folder: Path, count: int, step_tokens: int, processor: Any, sequence: int = 2048) -> Lengths:
    """Write `count` conversations: in random order to `folder`/baseline, in packs of `sequence` to `folder`/packed."""
    from scripts.blending.packing import pack

    chooser = random.Random(0)
    samples: list[dict[str, Any]] = []
    pictures: list[bytes] = []
    for index in range(count):
        messages = conversation(chooser)
        encoded = processor.encode(messages)
        shown = sum(part["type"] == "image" for part in messages[0]["content"])
        first = len(pictures)
        pictures += [photograph(number) for number in range(first, first + shown)]
        counted = {"n_tokens": len(encoded), "n_labels": sum(label >= 0 for label in encoded.labels)}
        samples.append({"uids": [f"one:{index}"], "dataset": "one", "messages": messages, **counted, "first": first})
    lengths = np.array([sample["n_tokens"] for sample in samples])
    images = np.array([sum(part["type"] == "image" for part in s["messages"][0]["content"]) for s in samples])
    packed = pack(lengths, images, sequence, sequence // IMAGE_TOKENS)
    packs = [members.tolist() for members in np.split(packed.values, packed.starts[1:-1])]
    write_blend(folder / "baseline", samples, pictures, [[index] for index in range(count)], range(count))
    write_blend(folder / "packed", samples, pictures, packs, packed.values.tolist())
    for name in ("baseline", "packed"):
        manifest = read_json(folder / name / "manifest.json")
        per_step = max(1, round(manifest["units"] * step_tokens / int(lengths.sum())))
        write_json(folder / name / "manifest.json", manifest | {"global_batch": per_step})
    return Lengths(int(lengths.max()), sum(sample["n_labels"] for sample in samples))


def photograph(number: int, width: int = 640, height: int = 428) -> bytes:
    """A JPEG of smooth colours under noise, which compresses about as well as a photograph."""
    draw = np.random.default_rng(number)
    coarse = Image.fromarray(draw.integers(0, 256, (7, 9, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    pixels = smooth + draw.normal(0, 18.0, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_blend(
    folder: Path, samples: list, pictures: list[bytes], packs: list[list[int]], order: Sequence[int]
) -> None:
    """Write a blend folder whose units are `packs`, with the conversations in `order`."""
    from scripts.inference.blend_reader import COUNTS, COUNTS_NAME, UNITS
    from scripts.media.tarshard import ShardWriter, shard_name

    folder.mkdir(parents=True)
    checksums = []
    with ShardWriter(folder / shard_name("train", 0, 1)) as shard:
        for position, number in enumerate(order):
            sample = dict(samples[number]) | {"position": position}
            first = sample.pop("first")
            shown = sum(part["type"] == "image" for part in sample["messages"][0]["content"])
            data = pictures[first : first + shown]
            hashes = [hashlib.sha256(image).hexdigest() for image in data]
            sample["images"] = [{"source": "one", "key": f"{h[:9]}", "sha256": h} for h in hashes]
            text = canonical_json(sample).encode()
            checksums.append(zlib.crc32(text))
            shard.add(f"e000-{position:09d}", [("json", text)] + [(f"i{n}.jpg", image) for n, image in enumerate(data)])
    np.cumsum([0, *map(len, packs)]).astype("<u8").tofile(folder / UNITS)
    counts = [
        (0, samples[number]["n_tokens"], samples[number]["n_labels"], checksum)
        for number, checksum in zip(order, checksums, strict=True)
    ]
    np.save(folder / COUNTS_NAME, np.array(counts, COUNTS))
    units = len(packs)
    listed = {"name": shard.path.name, "bytes": shard.bytes, "conversations": len(samples), "units": units}
    listed["index_sha256"] = shard.index_sha256
    facts = {"plan": "", "units": units, "conversations": len(samples), "datasets": {"one": {}}, "shards": [listed]}
    files = {name: file_sha256(folder / name) for name in (COUNTS_NAME, UNITS)}
    write_json(folder / "manifest.json", facts | {"images": "embedded", "files": files})


def write_model(folder: Path, shape: Shape) -> None:
    """Write the configurations of the encoder and the language model, and the tokenizer."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig

    from benchmarks.chat import write_tokenizer

    vision = {"hidden_size": shape.vision_width, "intermediate_size": 4 * shape.vision_width}
    vision |= {"num_hidden_layers": shape.vision_layers, "num_attention_heads": max(1, shape.vision_width // 64)}
    CLIPVisionConfig(**vision, image_size=IMAGE_SIDE, patch_size=14).save_pretrained(folder / "vision")
    CLIPImageProcessorPil().save_pretrained(folder / "vision")
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(folder / "tokenizer"))
    # As many tokens as in a real model, though the texts use few of them.
    text = {"vocab_size": shape.vocabulary, "hidden_size": shape.width, "max_position_embeddings": 8192}
    text |= {"num_hidden_layers": shape.layers, "num_attention_heads": shape.heads or max(1, shape.width // 64)}
    text |= {"intermediate_size": shape.inner or int(shape.width * 2.75)}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    LlamaConfig(**text, **ids).save_pretrained(folder / "language")


def load_processor(folder: Path) -> Any:
    """The processor of the model."""
    from model.processing import VisualChatProcessor

    return VisualChatProcessor.from_base_models(folder / "vision", folder / "tokenizer", IMAGE_TOKENS)


def load_parts(folder: Path, layers: int | None = None) -> tuple[Any, Any, torch.device]:
    """The encoder and the language model with random weights, always the same, and the device where they lie.

    They have the precision of training. `layers` replaces the number of the language model's.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, CLIPVisionConfig, CLIPVisionModel

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    text = AutoConfig.from_pretrained(folder / "language")
    text.num_hidden_layers = layers or text.num_hidden_layers
    with torch.device(device):
        torch.manual_seed(0)
        encoder = CLIPVisionModel._from_config(CLIPVisionConfig.from_pretrained(folder / "vision"), dtype=dtype)
        return encoder, AutoModelForCausalLM.from_config(text, dtype=dtype), device


def load(folder: Path, attention: str = "mmca", layers: int | None = None) -> tuple[Any, Any]:
    """The model, in the precision of training, and its processor; `layers` replaces the number of the decoder's."""
    from transformers import AutoTokenizer

    from model.base_models import joined_config
    from model.modeling import VisualChatForConditionalGeneration

    encoder, language, device = load_parts(folder, layers)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    with torch.device(device):  # it runs the encoder once
        config = joined_config(folder / "vision", encoder, language, tokenizer, None, {"attention": attention})
    config.image_tokens = IMAGE_TOKENS
    torch.manual_seed(1)
    model = VisualChatForConditionalGeneration(config, encoder, language).eval()
    model.projector.to(language.dtype)
    return model.to(device), load_processor(folder)
