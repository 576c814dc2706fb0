"""Every form in which people bring rows: the conversations, the drops and the notes that must come out of it."""

import re

import pytest

from tests.forms.cases import Case, Turn, forms
from tests.forms.steps import run

FORMS = forms()
CASES = [pytest.param(case, id=f"{name}: {case.name}") for name, form in FORMS.items() for case in form.cases]


@pytest.mark.parametrize("case", CASES)
def test_a_form(case: Case, tmp_path):
    outcome = run(case, tmp_path)
    expect = case.expect
    if expect.error:
        assert [text for text in expect.error if text not in outcome.error] == [], outcome
        return
    assert outcome.error == ""
    conversations = [[_turn(turn) for turn in turns] for turns in expect.conversations]
    found = (outcome.dropped, outcome.notes, outcome.conversations)
    assert found == (expect.dropped, expect.notes, conversations), outcome.examples
    assert not expect.splits or tuple(outcome.splits) == expect.splits
    texts = "\n".join(outcome.examples)
    assert [text for text in expect.mentions if text not in texts] == [], outcome.examples
    for example in outcome.examples:
        assert len(example) <= 250 and "\n" not in example, f"not a short line: {example}"
        assert not re.search(r"[A-Za-z0-9+/]{100}", example), f"a long value that is not cut: {example}"
        assert str(tmp_path) not in example, f"a report names files below the dataset's folder: {example}"


def _turn(turn: Turn) -> dict:
    """A turn as `steps.run` gives it."""
    written = turn.model_dump(exclude_defaults=True)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in written.items()}


def test_names_of_forms_and_cases_are_unique():
    names = [form.form for form in FORMS.values()]
    assert len(set(names)) == len(names)
    for form in FORMS.values():
        cases = [case.name for case in form.cases]
        assert len(set(cases)) == len(cases), form.form
        assert all(page.startswith("https://") for page in form.documentation), form.form
