"""The journal: what was answered is not asked again, whatever happened to the file."""

import pytest

from scripts.common.fingerprint import _closure
from scripts.inference.answer_cache import AnswerCache


def ask(journal: AnswerCache, *questions: str) -> list[str]:
    """Ask each question; return those that had to be answered."""
    worked = []

    def work(question: str) -> list:
        worked.append(question)
        return [question.upper(), (1.5, 2)]

    for question in questions:
        assert journal.get_or_compute({"q": question}, lambda key, question=question: work(question)) == [
            question.upper(),
            [1.5, 2],
        ]
    return worked


def test_a_question_is_asked_once(tmp_path):
    path = tmp_path / "j/final.jsonl"
    assert ask(AnswerCache(path, {"model": "a"}), "one", "two", "one") == ["one", "two"]
    assert ask(AnswerCache(path, {"model": "a"}), "two", "three") == ["three"]
    assert ask(AnswerCache(path, {"model": "b"}), "two") == ["two"]
    assert ask(AnswerCache(path, {"model": "a"}), "two") == ["two"]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_a_kill_cut_off_is_answered_again(tmp_path, cut):
    path = tmp_path / "final.jsonl"
    ask(AnswerCache(path, {}), "one", "two")
    path.write_bytes(path.read_bytes()[:-cut])
    assert ask(AnswerCache(path, {}), "one", "two", "three") == ["two", "three"]
    assert ask(AnswerCache(path, {}), "one", "two", "three") == []


def test_pruning_keeps_what_was_asked_this_time(tmp_path):
    path = tmp_path / "final.jsonl"
    ask(AnswerCache(path, {}), "one", "two")
    journal = AnswerCache(path, {})
    ask(journal, "two", "three")
    journal.prune()
    first = path.read_bytes()
    assert ask(AnswerCache(path, {}), "two", "three") == []
    assert ask(AnswerCache(path, {}), "one") == ["one"]
    other = AnswerCache(tmp_path / "other.jsonl", {})
    ask(other, "three", "two")
    other.prune()
    assert (tmp_path / "other.jsonl").read_bytes() == first


def test_how_answers_are_judged_is_no_part_of_what_they_depend_on():
    deciding = _closure(("scripts.inference.answering",))
    assert {"model.modeling", "model.template", "scripts.inference.generation"} <= deciding
    assert not deciding & {f"scripts.evaluation.{name}" for name in ("scoring", "suites", "metrics", "tasks", "vqa")}
