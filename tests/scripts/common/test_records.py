"""What later stages rely on: images are shown once, in their order, where the record says."""

import pytest

from scripts.common.records import ChoiceGroup, ImageRef, Record, Round, check, named_slot, shown_slot, to_batch

FIRST, SECOND, THIRD = (shown_slot(index) for index in range(3))


def record(*rounds: Round, groups: tuple[ChoiceGroup, ...] = (), system: str = "") -> Record:
    count = sum(len(round_.images) for round_ in rounds)
    return Record("r", tuple(ImageRef("own", str(index)) for index in range(count)), rounds, groups, system=system)


@pytest.mark.parametrize(
    "rounds",
    [
        [Round((f"Which, {FIRST} or {SECOND}?",), ("x",), (0, 1))],
        [Round((f"Like {SECOND}?",), ("x",), (0, 1))],
        [Round(("Which?",), ("x",), (0, 1))],
        [Round((FIRST,), ("x",), (0,)), Round((f"Is {SECOND}{THIRD} like image {named_slot(0)}?",), ("x",), (1, 2))],
        [Round((f"{FIRST}\nWhat?", "What?", f"What? {FIRST}"), ("x",), (0,), question_group=0)],
    ],
)
def test_images_in_places_of_a_question(rounds):
    groups = (ChoiceGroup("question", "pick", 3),) if rounds[0].question_group == 0 else ()
    check(record(*rounds, groups=groups))


@pytest.mark.parametrize(
    ("rounds", "problem"),
    [
        ([Round((f"{SECOND} or {FIRST}?",), ("x",), (0, 1))], "shows other images than its round"),
        ([Round((f"{FIRST} or {FIRST}?",), ("x",), (0,))], "shows other images than its round"),
        ([Round((f"Like {FIRST}?",), ("x",), (0, 1))], "shows other images than its round"),
        ([Round(("Hm?",), ("x",), (0,)), Round((f"Like {FIRST}?",), ("x",))], "shows other images than its round"),
        ([Round(("Hm?",), (f"It is {FIRST}",), (0,))], "shows an image in an answer"),
        ([Round((f"{SECOND}?",), ("x",), (0,))], "shows other images than its round"),
    ],
)
def test_other_places_are_refused(rounds, problem):
    with pytest.raises(ValueError, match=f"record 'r' {problem}"):
        check(record(*rounds))


def test_neither_a_system_text_nor_rounds_in_a_drawn_order_have_places_for_images():
    with pytest.raises(ValueError, match="has a bad system text"):
        check(record(Round(("Hm?",), ("x",), (0,)), system=f"Look: {FIRST}"))
    rounds = (Round((f"{FIRST}?",), ("x",), (0,)), Round(("And?",), ("x",)))
    check(record(*rounds))
    with pytest.raises(ValueError, match="has an order of rounds, whose images have no places"):
        check(record(*rounds, groups=(ChoiceGroup("order", "permute", 2),)))


def test_rounds_keep_whether_they_are_supervised():
    batch = to_batch([("own:1", record(Round(("a",), ("b",)), Round(("c",), ("d",), supervised=False)))], "free")
    assert [round_["supervised"] for round_ in batch["rounds"][0].as_py()] == [True, False]
