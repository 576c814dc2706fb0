"""Tiny models with random weights, as ordinary folders made without a download, for every test that needs a model.

`make_bases` writes what a real run takes from a hub: a vision encoder with its image processor, a language model, and a
byte-level tokenizer. `make_model` joins them into a VisualChat folder. An image is 32 x 32 pixels and 16 tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

CORPUS = (
    "### Question:\nWhat is on the left?\n\n### Answer:\nA red circle.\n\n",
    "### Image 1:\n\n\n### Image 2:\n\n\nWhich image has more objects? The second image. How many? Two. yes no",
)
IMAGE_SIZE, PATCH_SIZE = 32, 8
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2


def user(text: str, *images: int) -> dict:
    """Return a user message with images and a question."""
    parts = [{"type": "image", "index": index} for index in images]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def make_tokenizer(folder: Path, texts: Iterable[str] = CORPUS, bos: bool = True, vocab_size: int = 320) -> Path:
    """Write a byte-level BPE tokenizer with `<pad>`, `</s>`, `<image>` and, with `bos`, `<s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<image>"] + ["<s>"] * bos
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        bos_token="<s>" if bos else None,
        extra_special_tokens=["<image>"],
    ).save_pretrained(folder)
    return Path(folder)


def make_bases(
    folder: Path,
    seed: int = 0,
    texts: Iterable[str] = CORPUS,
    bos: bool = True,
    kv_heads: int = 2,
    layers: int = 2,
    large_weights: bool = False,
) -> dict[str, Path]:
    """Write the folders of a tiny vision encoder, language model and tokenizer; return them by kind.

    The keys are 'vision', 'language' and 'tokenizer'. The weights depend on nothing but `seed`. With the
    initialisation of `transformers` so small a decoder repeats one token whatever its prompt; with `large_weights` its
    answers depend on the prompt.
    """
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        CLIPVisionModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    folders = {kind: Path(folder) / kind for kind in ("vision", "language", "tokenizer")}
    make_tokenizer(folders["tokenizer"], texts, bos)
    tokenizer = AutoTokenizer.from_pretrained(folders["tokenizer"])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=IMAGE_SIZE,
                patch_size=PATCH_SIZE,
            )
        )
        language = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=layers,
                num_attention_heads=2,
                num_key_value_heads=kv_heads,
                max_position_embeddings=1024,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        if large_weights:
            for name, value in language.named_parameters():
                value.data *= 12 if name.endswith("_proj.weight") else 1
    vision.save_pretrained(folders["vision"])
    CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    ).save_pretrained(folders["vision"])
    language.save_pretrained(folders["language"])
    tokenizer.save_pretrained(folders["language"])
    return folders


def make_model(folder: Path, attention: str = "mmca", seed: int = 0, **options) -> Path:
    """Write a tiny VisualChat folder (weights, configuration, processor) to `folder`/model and return it.

    `options` are those of `VisualChatForConditionalGeneration.from_base_models`, and `bos`, `kv_heads`, `layers`,
    `texts` and `large_weights` of `make_bases`.
    """
    import torch
    from transformers import AutoTokenizer

    from model.modeling import VisualChatForConditionalGeneration
    from model.processing import VisualChatProcessor

    base_options = {
        key: options.pop(key) for key in ("bos", "kv_heads", "layers", "texts", "large_weights") if key in options
    }
    bases = make_bases(Path(folder) / "bases", seed, **base_options)
    tokenizer = AutoTokenizer.from_pretrained(bases["tokenizer"])
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        model = VisualChatForConditionalGeneration.from_base_models(
            bases["vision"], bases["language"], tokenizer, attention=attention, **options
        )
    processor = VisualChatProcessor.from_base_models(
        bases["vision"], tokenizer, model.config.image_tokens, model.config.template
    )
    target = Path(folder) / "model"
    model.save_pretrained(target)
    processor.save_pretrained(target)
    return target
