"""How long conversations are, exactly, and where the over-long ones are truncated.

Lengths are sums of counts (`tokens/<tokens>/<dataset>.parquet` and the manifest beside it), as
`model.token_counter.TokenCounter` documents. A conversation with too many tokens or images loses whole rounds from its
end, because half an answer is a wrong answer; one that would lose a round that it must show, or that keeps no round to
train on, is dropped.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from scripts.blending.conversations import Conversations
from scripts.blending.corpus import Corpus
from scripts.blending.ragged import Ragged, segment_cumsum, starts_from_lengths


@dataclass(frozen=True)
class TemplateCounts:
    """Tokens of the fixed parts of a conversation; `images` holds those of the image with number 1, 2, ...

    `last_round` is how many more tokens the last round has than others.
    """

    prefix: int
    images: np.ndarray
    round_overhead: int
    between_rounds: int
    end: int
    last_round: int = 0

    @classmethod
    def from_manifest(cls, manifest: Mapping[str, Any]) -> "TemplateCounts":
        """The counts in a token table's manifest."""
        return cls(
            manifest["prefix"],
            np.array(manifest["image"], np.int64),
            manifest["round_overhead"],
            manifest["between_rounds"],
            manifest["end"],
            manifest.get("last_round", 0),
        )


REASONS = ("", "too_many_images", "too_many_tokens", "no_supervised_round")
KEPT, TOO_MANY_IMAGES, TOO_MANY_TOKENS, NO_SUPERVISED_ROUND = range(len(REASONS))


class Dropped(NamedTuple):
    """Conversations that are dropped, all columns (n,): their numbers, and why, as an index into `REASONS`.

    `n_tokens`, `n_images`: what each has with the last round that it must show.
    """

    conversations: np.ndarray
    reasons: np.ndarray
    n_tokens: np.ndarray
    n_images: np.ndarray


@dataclass(frozen=True)
class Truncated:
    """What is left of conversations after truncation.

    `kept` (n,): numbers of the conversations that remain; the other columns have one entry for each of these, except
    `rounds`. `pieces`: numbers of their pieces. `rounds`: rounds that remain, for every piece of every conversation.
    `images`: codes of the images in their final order. `n_tokens`, `n_labels`: all and supervised tokens.
    `rounds_lost`, `pieces_lost`: what remaining conversations lost. `dropped`: those that do not remain.
    """

    kept: np.ndarray
    pieces: Ragged
    rounds: Ragged
    images: Ragged
    n_tokens: np.ndarray
    n_labels: np.ndarray
    rounds_lost: np.ndarray
    pieces_lost: np.ndarray
    dropped: Dropped


@dataclass(frozen=True)
class _Images:
    """Images that appear, one entry per image: the shown round it appears in, its number from 0, its code."""

    round: np.ndarray
    number: np.ndarray
    code: np.ndarray


class _RoundTokens(NamedTuple):
    """Tokens of every shown round (n,): supervised ones, and all without images and what lies between rounds.

    `supervised`: whether its answer is trained on.
    """

    labels: np.ndarray
    text: np.ndarray
    supervised: np.ndarray


def truncate(
    corpus: Corpus, conversations: Conversations, template: TemplateCounts, sequence: int, max_images: int
) -> Truncated:
    """Truncate conversations to `sequence` tokens and `max_images` images."""
    piece = conversations.rounds.rows
    owner = np.repeat(np.arange(len(conversations)), conversations.sizes)
    conversation = owner[piece]
    starts = starts_from_lengths(np.bincount(conversation, minlength=len(conversations)))

    first = np.zeros(len(piece), bool)
    first[starts[:-1][np.diff(starts) > 0]] = True
    by_round = _round_tokens(corpus, conversations, template, piece, first)
    images = _first_appearances(corpus, conversations, piece, conversation)
    image_tokens = template.images[np.minimum(images.number, len(template.images) - 1)]
    tokens = by_round.text + np.bincount(images.round, image_tokens, minlength=len(piece)).astype(np.int64)
    # A conversation made of several records has the system text of the first one.
    prefix = corpus.prefixes[conversations.records[piece]]
    prefix = np.where(prefix > 0, prefix, template.prefix)
    tokens += np.where(first, prefix, template.between_rounds)

    total = segment_cumsum(tokens, starts) + template.last_round
    n_images = segment_cumsum(np.bincount(images.round, minlength=len(piece)), starts)
    # Both sums only grow, so what fits is the beginning of every conversation.
    fits = (total <= sequence) & (n_images <= max_images)
    remaining = np.bincount(conversation[fits], minlength=len(conversations))
    supervised = np.bincount(conversation[fits & by_round.supervised], minlength=len(conversations)) > 0
    last_required = starts[:-1] + conversations.required - 1
    reasons = np.where(supervised, KEPT, NO_SUPERVISED_ROUND)
    short = remaining < conversations.required
    reasons[short] = np.where(n_images[last_required[short]] > max_images, TOO_MANY_IMAGES, TOO_MANY_TOKENS)
    survives = reasons == KEPT
    lost = np.flatnonzero(~survives)
    stays = fits & survives[conversation]

    rounds_left = np.bincount(piece[stays], minlength=len(conversations.rounds))
    kept = np.flatnonzero(survives)
    pieces = np.flatnonzero(rounds_left > 0)
    n_pieces = np.bincount(owner[pieces], minlength=len(conversations))[kept]
    appears = stays[images.round]
    n_images_left = np.bincount(conversation[images.round[appears]], minlength=len(conversations))[kept]
    n_labels = np.bincount(conversation[stays], by_round.labels[stays], minlength=len(conversations))
    return Truncated(
        kept=kept,
        pieces=Ragged.from_lengths(pieces, n_pieces),
        rounds=Ragged.from_lengths(conversations.rounds.values[stays], rounds_left),
        images=Ragged.from_lengths(images.code[appears], n_images_left),
        n_tokens=total[starts[:-1][kept] + remaining[kept] - 1],
        n_labels=n_labels.astype(np.int64)[kept],
        rounds_lost=(np.diff(starts) - remaining)[kept],
        pieces_lost=conversations.sizes[kept] - n_pieces,
        dropped=Dropped(lost, reasons[lost], total[last_required[lost]], n_images[last_required[lost]]),
    )


def _round_tokens(
    corpus: Corpus, conversations: Conversations, template: TemplateCounts, piece: np.ndarray, first: np.ndarray
) -> _RoundTokens:
    """Count the tokens of every shown round.

    `piece` (rounds,) is the piece that it belongs to, and `first` (rounds,) whether its conversation begins with it.
    """
    rounds = corpus.round_starts[conversations.records[piece]] + conversations.rounds.values
    offsets = conversations.offsets[piece]
    question_choice = _choice(conversations.choices, piece, corpus.question_group[rounds])
    named = conversations.named[piece]
    question = np.empty(len(rounds), np.int64)
    for counts, mask in ((corpus.questions, ~named), (corpus.named, named)):
        question[mask] = counts.of(rounds[mask], question_choice[mask], offsets[mask])
    if corpus.first is not None:
        special = first & (np.diff(corpus.first.alternatives)[rounds] > 0)
        question[special] = corpus.first.of(rounds[special], question_choice[special], offsets[special])
    answer = corpus.answers.of(rounds, _choice(conversations.choices, piece, corpus.answer_group[rounds]), offsets)
    closed = answer + template.end
    supervised = corpus.supervised[rounds]
    return _RoundTokens(np.where(supervised, closed, 0), template.round_overhead + question + closed, supervised)


def _choice(choices: Ragged, piece: np.ndarray, group: np.ndarray) -> np.ndarray:
    """The alternative that each shown round takes: its group's choice, or 0 where there is nothing to choose."""
    chosen = np.zeros(len(piece), np.int64)
    has_group = group >= 0
    chosen[has_group] = choices.values[choices.starts[piece[has_group]] + group[has_group]]
    return chosen


def _first_appearances(
    corpus: Corpus, conversations: Conversations, piece: np.ndarray, conversation: np.ndarray
) -> _Images:
    """Where images appear for the first time, in the order of the conversations.

    `piece` and `conversation` (rounds,) say what each shown round belongs to. A record's images come with the rounds
    that the record names; where the order of its rounds is drawn, all come with the first round shown. An image that
    an earlier piece of the conversation has shown does not appear again.
    """
    record = conversations.records[piece]
    permuted = corpus.permuted[record]
    opens = np.zeros(len(piece), bool)
    opens[conversations.rounds.starts[:-1][conversations.rounds.lengths > 0]] = True
    rounds = corpus.round_starts[record] + conversations.rounds.values
    lengths = np.where(permuted, np.where(opens, corpus.images.lengths[record], 0), corpus.shown.lengths[rounds])

    shown_in = np.repeat(np.arange(len(piece)), lengths)
    index = np.arange(len(shown_in)) - np.repeat(starts_from_lengths(lengths)[:-1], lengths)
    listed = ~permuted[shown_in]
    index[listed] = corpus.shown.values[corpus.shown.starts[:-1][rounds[shown_in[listed]]] + index[listed]]
    number = conversations.offsets[piece[shown_in]] + index
    identity = conversation[shown_in] * (int(number.max(initial=0)) + 1) + number
    new = np.sort(np.unique(identity, return_index=True)[1])
    code = corpus.images.values[corpus.images.starts[:-1][record[shown_in]] + index]
    return _Images(shown_in[new], number[new], code[new])
