"""The miniature's language model: a small Llama that answers questions about scenes that a text describes.

It is pretrained as real ones are, on text alone: conversations in the prompt template in which every image is replaced
by a line that lists what is in each quarter, followed by the questions of the miniature. So it has the words, the form
of answers and the ability to look something up before it gets images; training on these then has to teach it only to
read images instead of lines.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from model.template import IGNORE_INDEX, Template, encode
from scripts.common.verified_folder import check_folder
from scripts.config.miniature import MiniatureConfig
from scripts.config.pretrain import PretrainLanguageConfig
from scripts.pretraining.train_loop import fit
from scripts.synthetic.language import name, pair_question, question
from scripts.synthetic.randomness import RandomStream
from scripts.synthetic.scenes import CELLS, Scene, draw_scene

_PAIRS = 0.6


def make_language(
    settings: PretrainLanguageConfig, world: MiniatureConfig, tokenizer_folder: Path, out: Path
) -> dict[str, float]:
    """Pretrain the language model and write it to the folder `out`.

    Returns the mean loss per answer token of the last 50 steps.
    """
    torch.manual_seed(settings.seed)
    check_folder(tokenizer_folder)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    decoder = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            intermediate_size=2 * settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            max_position_embeddings=settings.positions,
            rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
            initializer_range=settings.initial_scale,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    losses: list[float] = []

    def loss(step: int) -> Tensor:
        rows = [
            encode(_conversation(RandomStream(settings.seed, "reading", step, row), world), tokenizer, Template(), 0)
            for row in range(settings.batch)
        ]
        length = max(map(len, rows))
        ids = torch.tensor([row.input_ids + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
        labels = torch.tensor([row.labels + [IGNORE_INDEX] * (length - len(row)) for row in rows])
        # Padding lies to the right, where causal attention never looks: no mask is needed.
        hidden = decoder.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        answers = labels[:, 1:] != IGNORE_INDEX
        value = F.cross_entropy(decoder.lm_head(hidden[answers]), labels[:, 1:][answers])
        losses.append(value.item())
        return value

    fit(decoder.parameters(), loss, settings.steps, settings.learning_rate, "language model")
    decoder.save_pretrained(out)
    tokenizer.save_pretrained(out)
    last = losses[-50:]
    return {"loss": round(sum(last) / len(last), 4) if last else 0.0}


def _conversation(draw: RandomStream, world: MiniatureConfig) -> list[dict[str, str]]:
    """Two questions about one scene or about two, which a text before the first question describes."""
    scenes = [draw_scene(draw, world) for _ in range(2 if draw.unit() < _PAIRS else 1)]
    description = "\n".join(f"Image {number}: {_describe(scene)}" for number, scene in enumerate(scenes, start=1))
    messages: list[dict[str, str]] = []
    asked: list[str] = []
    for _ in range(2):
        if len(scenes) == 2:
            drawn = pair_question((scenes[0], scenes[1]), draw, world, asked)
        else:
            drawn = question(scenes[0], draw, world, known=asked)
        if drawn is None:
            break
        asked.append(drawn.text)
        text = drawn.text if messages else f"{description}\n{drawn.text}"
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": drawn.answer}]
    return messages


def _describe(scene: Scene) -> str:
    names = {thing.cell: name(thing) for thing in scene}
    return ", ".join(f"{cell} {names.get(index, 'nothing')}" for index, cell in enumerate(CELLS))
