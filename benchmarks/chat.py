"""Time to the first token in a long chat, against recomputing the whole prompt in every round.

    python -m benchmarks.chat

A conversation of eight rounds about eight images of 256 tokens, with a model of random weights and the widths of a
small real one. Timed is round 8, from the question to its first token, in three situations:

    shown     all eight images were shown in earlier rounds: round 8 is text
    seen      round 8 shows the eighth image, which another conversation has shown before
    new       round 8 shows the eighth image, which no conversation has shown before

each with `ChatSession`, which continues from its cache, and recomputed: encoder and decoder over all images and the
whole prompt, as the original does in every round (with this project's attention, which is faster than the original's).
Both alternate, each on a copy of the same session; the ratios are medians over the repeats.
"""

import argparse
import copy
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from benchmarks.measuring import processor as processor_name
from model.chat import ChatSession
from model.image_cache import ImageCache
from model.modeling import VisualChatForConditionalGeneration
from model.processing import VisualChatProcessor

QUESTION = "What is shown in this image, and how does it differ from the images before? Answer in one sentence."
ROUNDS, ANSWER = 8, 24  # rounds, and tokens of the answers of all but the last


def make_model(folder: Path, attention: str, args: argparse.Namespace) -> VisualChatForConditionalGeneration:
    """A model of random weights: an encoder for 224 x 224 pixels in 256 patches, and a Llama."""
    torch.manual_seed(0)
    heads = args.width // 64
    vision = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=args.vision_width,
            intermediate_size=4 * args.vision_width,
            num_hidden_layers=args.vision_layers,
            num_attention_heads=args.vision_width // 64,
            image_size=224,
            patch_size=14,
        )
    )
    tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(folder / "tokenizer"))
    language = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.width,
            intermediate_size=int(args.width * 2.75),
            num_hidden_layers=args.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=8192,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    vision.save_pretrained(folder / "vision")
    CLIPImageProcessorPil().save_pretrained(folder / "vision")
    language.save_pretrained(folder / "language")
    model = VisualChatForConditionalGeneration.from_base_models(
        folder / "vision", folder / "language", tokenizer, attention=attention, dtype=args.dtype
    )
    model.generation_config.suppress_tokens += tokenizer.all_special_ids
    return model.to(args.device).eval()


def write_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer: about as many tokens as characters, more than a trained one would make."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "</s>", "<s>", "<image>"]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(special + letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>",
        extra_special_tokens=["<image>"],
    ).save_pretrained(folder)
    return folder


def picture(seed: int) -> Image.Image:
    """A random image."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (224, 224, 3), dtype=np.uint8))


def start_session(
    model: VisualChatForConditionalGeneration, processor: VisualChatProcessor, images: int
) -> ChatSession:
    """A session after seven rounds, each with an image, the first with two if `images` is 8."""
    session = ChatSession(model, processor)
    pictures = [picture(number) for number in range(images)]
    for number in range(ROUNDS - 1):
        new = pictures[: images - ROUNDS + 2] if number == 0 else [pictures[number + images - ROUNDS + 1]]
        session.ask(QUESTION, new, max_new_tokens=ANSWER)
    return session


def to_first_token(session: ChatSession, images: list[Image.Image]) -> float:
    """Seconds from a question to its first token."""
    synchronise(session.model)
    start = time.perf_counter()
    session.ask(QUESTION, images, max_new_tokens=1)
    synchronise(session.model)
    return time.perf_counter() - start


def synchronise(model: VisualChatForConditionalGeneration) -> None:
    """Wait for the work of a GPU, so that a clock can be read."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def measure(attention: str, args: argparse.Namespace) -> Iterator[tuple[str, int, list[float], list[float]]]:
    """Yield for every situation its name, the tokens of the prompt, and seconds recomputed and by the session."""
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), attention, args)
        parts = (Path(folder) / "vision", Path(folder) / "tokenizer", model.config.image_tokens)
        processor = VisualChatProcessor.from_base_models(*parts)
    last = picture(ROUNDS)
    for situation, images in (("shown", ROUNDS), ("seen", ROUNDS - 1), ("new", ROUNDS - 1)):
        base, shown = start_session(model, processor, images), [] if situation == "shown" else [last]
        recomputed: list[float] = []
        by_session: list[float] = []
        for _ in range(args.repeats + 1):
            fresh = ChatSession(model, processor)
            fresh._restore(list(base.history), list(base.images))
            recomputed.append(to_first_token(fresh, shown))
            session = copy_session(base)
            if situation == "seen":
                session._image_cache.model_inputs([processor.preprocess_image(last)])
            by_session.append(to_first_token(session, shown))
        # The first repeat warms up.
        yield situation, len(processor.encode(fresh.history[:-1])), recomputed[1:], by_session[1:]


def copy_session(session: ChatSession) -> ChatSession:
    """A session in the same state, with separate caches."""
    other = copy.copy(session)
    other._tokens = copy.deepcopy(session._tokens)
    other._image_cache = ImageCache(session.model)
    return other


def main() -> None:
    """Run the program."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_gpu = torch.cuda.is_available()
    arguments.add_argument("--device", default="cuda" if on_gpu else "cpu")
    arguments.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16" if on_gpu else "float32")
    arguments.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments.add_argument("--width", type=int, default=1024)
    arguments.add_argument("--layers", type=int, default=8)
    arguments.add_argument("--vision-width", type=int, default=768)
    arguments.add_argument("--vision-layers", type=int, default=6)
    arguments.add_argument("--repeats", type=int, default=5, help="timed repeats")
    args = arguments.parse_args()
    args.dtype = getattr(torch, args.dtype)
    torch.set_num_threads(args.threads)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{processor_name()}, {args.threads} threads"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    print(f"{where}; {versions}; decoder {args.layers} x {args.width}, encoder {args.vision_layers} x ", end="")
    print(
        f"{args.vision_width}, {args.dtype}; time to first token in round {ROUNDS}, median of {args.repeats} repeats\n"
    )
    print("| attention | the eighth image was | prompt tokens | recomputed | session | ratio |")
    print("|---|---|---|---|---|---|")
    for attention in ("mmca", "causal"):
        for situation, tokens, recomputed, by_session in measure(attention, args):
            times = " | ".join(f"{1000 * median(values):.0f} ms" for values in (recomputed, by_session))
            ratio = median(slow / fast for slow, fast in zip(recomputed, by_session, strict=True))
            print(f"| {attention} | {situation} | {tokens} | {times} | {ratio:.1f} x |", flush=True)


if __name__ == "__main__":
    main()
