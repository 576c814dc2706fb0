"""How long conversations are, exactly, and where the over-long ones are cut.

Every token is accounted for from tables (`tokens/<tokens>/<dataset>.parquet` and the constants beside it), by the sum
that `model.template.TokenCounter` documents. A conversation with too many tokens or images loses whole rounds from its end,
because half an answer is a wrong answer; one that would lose what it is about is dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.blending.conversations import Conversations
from scripts.blending.corpus import Corpus
from scripts.blending.ragged import Ragged, segment_cumsum, starts_from_lengths


@dataclass(frozen=True)
class TemplateCounts:
    """Tokens of the fixed parts of a conversation; `images` holds those of the image with number 1, 2, ..."""

    prefix: int
    images: np.ndarray
    round_overhead: int
    between_rounds: int
    end: int

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> "TemplateCounts":
        """Take the constants out of a token table's manifest."""
        return cls(
            manifest["prefix"],
            np.array(manifest["image"], np.int64),
            manifest["round_overhead"],
            manifest["between_rounds"],
            manifest["end"],
        )


@dataclass(frozen=True)
class Truncated:
    """What is left of conversations after cutting.

    `kept`: numbers of those that remain, which all other columns but `rounds` follow. `pieces`: their pieces, by
    number. `rounds`: rounds that remain, for every piece of every conversation. `images`: codes of the images in their
    final order. `rounds_lost` and `pieces_lost`: what remaining conversations lost.
    """

    kept: np.ndarray
    pieces: Ragged
    rounds: Ragged
    images: Ragged
    n_tokens: np.ndarray
    n_labels: np.ndarray
    rounds_lost: np.ndarray
    pieces_lost: np.ndarray


@dataclass(frozen=True)
class _Images:
    """Images that appear, one entry per image: the shown round it appears in, its number from 0, its code."""

    round: np.ndarray
    number: np.ndarray
    code: np.ndarray


def truncate(
    corpus: Corpus, conversations: Conversations, constants: TemplateCounts, sequence: int, max_images: int
) -> Truncated:
    """Truncated conversations to `sequence` tokens and `max_images` images."""
    piece = conversations.rounds.rows
    owner = np.repeat(np.arange(len(conversations)), conversations.sizes)
    conversation = owner[piece]
    starts = starts_from_lengths(np.bincount(conversation, minlength=len(conversations)))

    labels, tokens = _round_tokens(corpus, conversations, constants, piece)
    images = _appearing(corpus, conversations, piece, conversation)
    image_cost = constants.images[np.minimum(images.number, len(constants.images) - 1)]
    tokens += np.bincount(images.round, image_cost, minlength=len(piece)).astype(np.int64)
    first = np.zeros(len(piece), bool)
    first[starts[:-1][np.diff(starts) > 0]] = True
    # Of a conversation made of several records, the first one's system text counts.
    own = corpus.prefixes[conversations.records[piece]]
    tokens += np.where(first, np.where(own > 0, own, constants.prefix), constants.between_rounds)

    total = segment_cumsum(tokens, starts)
    n_images = segment_cumsum(np.bincount(images.round, minlength=len(piece)), starts)
    # Both sums only grow, so what fits is the beginning of every conversation.
    fits = (total <= sequence) & (n_images <= max_images)
    remaining = np.bincount(conversation[fits], minlength=len(conversations))
    alive = remaining >= conversations.required
    stays = fits & alive[conversation]

    rounds_left = np.bincount(piece[stays], minlength=len(conversations.rounds))
    kept = np.flatnonzero(alive)
    pieces = np.flatnonzero(rounds_left > 0)
    n_pieces = np.bincount(owner[pieces], minlength=len(conversations))[kept]
    appears = stays[images.round]
    return Truncated(
        kept=kept,
        pieces=Ragged.from_lengths(pieces, n_pieces),
        rounds=Ragged.from_lengths(conversations.rounds.values[stays], rounds_left),
        images=Ragged.from_lengths(
            images.code[appears], np.bincount(conversation[images.round[appears]], minlength=len(conversations))[kept]
        ),
        n_tokens=total[starts[:-1][kept] + remaining[kept] - 1],
        n_labels=np.bincount(conversation[stays], labels[stays], minlength=len(conversations)).astype(np.int64)[kept],
        rounds_lost=(np.diff(starts) - remaining)[kept],
        pieces_lost=conversations.sizes[kept] - n_pieces,
    )


def _round_tokens(
    corpus: Corpus, conversations: Conversations, constants: TemplateCounts, piece: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Supervised tokens of every shown round, and all of its tokens without images and what lies between rounds."""
    rounds = corpus.round_starts[conversations.records[piece]] + conversations.rounds.values
    offsets = conversations.offsets[piece]
    question_choice = _choice(conversations.choices, piece, corpus.question_group[rounds])
    named = conversations.named[piece]
    question = np.empty(len(rounds), np.int64)
    for lengths, mask in ((corpus.questions, ~named), (corpus.named, named)):
        question[mask] = lengths.of(rounds[mask], question_choice[mask], offsets[mask])
    answer = corpus.answers.of(rounds, _choice(conversations.choices, piece, corpus.answer_group[rounds]), offsets)
    labels = answer + constants.end
    return labels, constants.round_overhead + question + labels


def _choice(choices: Ragged, piece: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The alternative that each shown round takes: its group's choice, or 0 where there is nothing to choose."""
    chosen = np.zeros(len(piece), np.int64)
    free = group >= 0
    chosen[free] = choices.values[choices.starts[piece[free]] + group[free]]
    return chosen


def _appearing(corpus: Corpus, conversations: Conversations, piece: np.ndarray, conversation: np.ndarray) -> _Images:
    """Where images appear for the first time, in the order of the conversations.

    A record's images come with the rounds it says; all with its first shown round where the order of its rounds is
    drawn. An image that an earlier piece of the conversation has shown does not appear again.
    """
    record = conversations.records[piece]
    permuted = corpus.permuted[record]
    opens = np.zeros(len(piece), bool)
    opens[conversations.rounds.starts[:-1][conversations.rounds.lengths > 0]] = True
    rounds = corpus.round_starts[record] + conversations.rounds.values
    lengths = np.where(permuted, np.where(opens, corpus.images.lengths[record], 0), corpus.shown.lengths[rounds])

    shown_in = np.repeat(np.arange(len(piece)), lengths)
    place = np.arange(len(shown_in)) - np.repeat(starts_from_lengths(lengths)[:-1], lengths)
    listed = ~permuted[shown_in]
    place[listed] = corpus.shown.values[corpus.shown.starts[:-1][rounds[shown_in[listed]]] + place[listed]]
    number = conversations.offsets[piece[shown_in]] + place
    identity = conversation[shown_in] * (int(number.max(initial=0)) + 1) + number
    new = np.sort(np.unique(identity, return_index=True)[1])
    code = corpus.images.values[corpus.images.starts[:-1][record[shown_in]] + place]
    return _Images(shown_in[new], number[new], code[new])
