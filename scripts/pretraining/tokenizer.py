"""The miniature's tokenizer: byte-level BPE over its own language, an ordinary `transformers` folder.

All 256 bytes are in the vocabulary, so any text of a user can be encoded. The merges come from the miniature's
questions and answers and the prompt template, so each common word is one token. It depends on the
settings of the synthetic world alone, not on its rows: otherwise a changed caption would change every token count.
"""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from model.template import Template
from scripts.config.miniature import MiniatureConfig
from scripts.config.pretrain import PretrainTokenizerConfig
from scripts.synthetic.language import captions, describe, questions, recall
from scripts.synthetic.randomness import RandomStream
from scripts.synthetic.scenes import draw_scene

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
IMAGE = "<image>"

# A header of the template is a unit; a word, hyphens included, takes the space before it; digits and punctuation stand
# alone.
_PRE_TOKENS = r"\n*### \w+|\:\n| ?[A-Za-z]+(?:-[A-Za-z]+)*| ?[0-9]| ?[^\sA-Za-z0-9]|\s+"
_SCENES = 600


def make_tokenizer(settings: PretrainTokenizerConfig, world: MiniatureConfig, out: Path) -> None:
    """Train the tokenizer on the language of `world` and write it to the folder `out`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PRE_TOKENS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[*SPECIAL.values(), IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(world), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=[IMAGE], **SPECIAL)
    fast.save_pretrained(out)


def _texts(world: MiniatureConfig) -> Iterator[str]:
    template = Template()
    draw = RandomStream(world.seed, "tokenizer")
    for scene in range(_SCENES):
        # About as often as in conversations: merges go to the most frequent words.
        yield template.image_header_for(1 + scene % 9)
        yield from (template.question_header, template.answer_header, template.round_end)
        pair = [draw_scene(draw, world), draw_scene(draw, world)]
        yield from captions(pair[0], draw)
        yield describe(pair[0])
        for scenes in (pair[:1], pair):
            for question in questions(scenes, draw, world):
                yield question.text
                yield question.answer
                yield recall(question.text, 1 + draw.below(3))
