"""The prefix cache: lookup by tokens and pixels, newest first, bounded memory."""

from dataclasses import dataclass

import pytest

from model.template import EncodedConversation
from scripts.serving.jobs import Job, SamplingParams
from scripts.serving.prefix_cache import PrefixCache

IMAGE = 7


@dataclass
class Kept:
    """Stands in for a `ConversationBatch`, of which the prefix cache only uses the size."""

    tokens: int

    @property
    def lengths(self):
        return [self.tokens]

    @property
    def nbytes(self):
        return 100 * self.tokens


def job(*parts: int | str, output_ids=()) -> Job:
    """A number is so many text tokens, a string an image of four tokens."""
    encoded, hashes, last = EncodedConversation(), [], 100
    for part in parts:
        if isinstance(part, str):
            encoded.extend([IMAGE] * 4, 2, False)
            hashes.append(part.encode())
        else:
            encoded.extend(list(range(last, last + part)), 1, False)
            last += part
    return Job(encoded, [], hashes, SamplingParams(), 0.0, print, output_ids=list(output_ids))


def keep(prefixes: PrefixCache, one: Job) -> Kept:
    kept = Kept(len(one.encoded) + len(one.output_ids) - 1)  # the last output token was not computed
    prefixes.keep(one, kept)
    return kept


@pytest.fixture
def prefixes():
    return PrefixCache(100_000, 4)


def test_the_longest_common_prefix_is_found(prefixes):
    first = keep(prefixes, job(10, "a", 20, output_ids=[1, 2, 3]))
    assert prefixes.longest(job(10, "a", 20, 5)) == (first, 34)
    again = job(10, "a", 20)
    again.encoded.extend([1, 2, 9], 1, False)
    assert prefixes.longest(again) == (first, 36), "answers are part of the prefix"
    assert prefixes.longest(job(10, "a", 20)) == (first, 33), "the last token is always computed"
    assert prefixes.longest(job(10, "b", 20)) == (None, 0)


def test_another_image_ends_the_common_prefix(prefixes):
    first = keep(prefixes, job(20, "a", 20, "b", 20, output_ids=[1]))
    assert prefixes.longest(job(20, "a", 20, "c", 20)) == (first, 44)
    assert prefixes.longest(job(20, "c", 20, "b", 20)) == (first, 20)


def test_a_continued_conversation_replaces_its_earlier_entry(prefixes):
    keep(prefixes, job(20, "a", 20, output_ids=[1]))
    longer = keep(prefixes, job(20, "a", 20, 30, output_ids=[1]))
    assert len(prefixes) == 1 and prefixes.longest(job(20, "a", 20, 5)) == (longer, 48)
    keep(prefixes, job(20, "b", 20, output_ids=[1]))
    assert len(prefixes) == 2


def test_the_memory_is_bounded_and_leaves_nothing_behind():
    prefixes = PrefixCache(12_000, 4)
    for name in "abcdef":
        keep(prefixes, job(20, name, 20, output_ids=[1]))
        assert prefixes.nbytes <= 12_000
    assert len(prefixes) == 2 and prefixes.longest(job(20, "f", 30))[1] == 44
    assert prefixes.longest(job(20, "a", 30))[1] == 20, "only the common prefix of the first is left"
    prefixes.clear()
    assert not prefixes._by_block and prefixes.nbytes == 0


def test_a_long_conversation_evicts_several_and_one_that_is_too_long_none():
    prefixes = PrefixCache(24_000, 4)
    for name in "abc":
        keep(prefixes, job(20, name, 20, output_ids=[1]))
    assert len(prefixes) == 3
    long = keep(prefixes, job(200, output_ids=[1]))
    assert len(prefixes) == 1 and prefixes.longest(job(20, "a", 30)) == (long, 20)
    keep(prefixes, job("b", 1000, output_ids=[1]))
    assert len(prefixes) == 1 and prefixes.longest(job(20, "a", 30)) == (long, 20)
