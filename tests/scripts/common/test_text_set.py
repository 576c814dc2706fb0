"""A set of texts in few bytes: the same answers as Python's."""

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from scripts.common.text_set import TextSet


@given(st.lists(st.text(alphabet=st.characters() | st.just("\udcff"), max_size=3)))
def test_it_answers_as_a_set_does(texts):
    ours, known = TextSet(), set()
    for text in texts:
        assert (text in ours) == (text in known)
        assert ours.add(text) == (text not in known)
        known.add(text)
        assert len(ours) == len(known)


def test_many_texts_are_found_again_and_take_few_bytes():
    tracemalloc.start()
    ours = TextSet()
    assert all(ours.add(f"text {number}") for number in range(100_000))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not any(ours.add(f"text {number}") for number in range(100_000)) and "text" not in ours
    assert size < 40 * 100_000
