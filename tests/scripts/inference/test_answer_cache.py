"""The answer cache: nothing is computed twice, even after the file was damaged."""

import pytest

from scripts.common.fingerprint import import_closure
from scripts.inference.answer_cache import AnswerCache


def ask(cache: AnswerCache, *questions: str) -> list[str]:
    """Request each question; return those whose answers had to be computed."""
    computed = []

    def compute(question: str) -> list:
        computed.append(question)
        return [question.upper(), (1.5, 2)]

    for question in questions:
        outputs = cache.get_or_compute({"q": question}, lambda key, question=question: compute(question))
        assert outputs == [question.upper(), [1.5, 2]]
    return computed


def test_an_answer_is_computed_once(tmp_path):
    path = tmp_path / "j/final.jsonl"
    assert ask(AnswerCache(path, {"model": "a"}), "one", "two", "one") == ["one", "two"]
    assert ask(AnswerCache(path, {"model": "a"}), "two", "three") == ["three"]
    assert ask(AnswerCache(path, {"model": "b"}), "two") == ["two"]
    assert ask(AnswerCache(path, {"model": "a"}), "two") == ["two"]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_truncated_line_is_computed_again(tmp_path, cut):
    path = tmp_path / "final.jsonl"
    ask(AnswerCache(path, {}), "one", "two")
    path.write_bytes(path.read_bytes()[:-cut])
    assert ask(AnswerCache(path, {}), "one", "two", "three") == ["two", "three"]
    assert ask(AnswerCache(path, {}), "one", "two", "three") == []


def test_pruning_keeps_what_this_evaluation_requested(tmp_path):
    path = tmp_path / "final.jsonl"
    ask(AnswerCache(path, {}), "one", "two")
    cache = AnswerCache(path, {})
    ask(cache, "two", "three")
    cache.prune()
    first = path.read_bytes()
    assert ask(AnswerCache(path, {}), "two", "three") == []
    assert ask(AnswerCache(path, {}), "one") == ["one"]
    other = AnswerCache(tmp_path / "other.jsonl", {})
    ask(other, "three", "two")
    other.prune()
    assert (tmp_path / "other.jsonl").read_bytes() == first


def test_answers_do_not_depend_on_the_code_that_scores_them():
    modules = import_closure(("scripts.inference.answering",))
    assert {"model.modeling", "model.template", "scripts.inference.generation"} <= modules
    assert not any(name.startswith("scripts.evaluation") for name in modules)


def test_a_damaged_line_is_computed_again(tmp_path):
    path = tmp_path / "cache.jsonl"
    first = AnswerCache(path, {})
    assert ask(first, "one", "two") == ["one", "two"]
    lines = path.read_text().splitlines()
    other = lines[1].replace('"outputs": [', '"outputs": [0, ', 1)
    for damaged in (other, "{", lines[1].replace('"sha256"', '"other"')):
        path.write_text("\n".join([lines[0], damaged, lines[2], ""]))
        asked = ask(AnswerCache(path, {}), "one", "two")
        assert asked == ["one"]
