"""otter_mimicit_cgd: related rounds become one record, whatever the order of the file and however wrong the
relations."""

import json
import random
from itertools import permutations

import pytest

from tests.scripts.adapters.raw_folders import run

FILE = "MIMIC-IT/CGD_instructions.json"
PAIR = ("000000000785", "000000197388")
SWAPPED = PAIR[::-1]
OTHER = ("000000040083", "000000196141")


def ins(number):
    return f"CGD_INS_{number:06d}"


def row(number, related=(), images=PAIR, **changes):
    base = {"instruction": f"Question {number}?", "answer": f"Answer {number}."}
    base |= {"image_ids": [f"CGD_IMG_{image}" for image in images], "rel_ins_ids": [ins(other) for other in related]}
    return ins(number), base | changes


def convert(tmp_path, *rows):
    return run("otter_mimicit_cgd", tmp_path, {FILE: {"meta": {}, "data": dict(rows)}})


def members(records):
    return [[round_.question[0] for round_ in record.rounds] for record in records]


def test_related_rounds_are_one_record_whose_order_is_free(tmp_path):
    records, dropped, notes = convert(tmp_path, row(0, [1]), row(1, [0]), row(2, images=OTHER))
    assert (dropped, notes) == ([], [])
    assert [record.id for record in records] == [ins(0), ins(2)]
    assert records[0].groups == (("order", "permute", 2),) and records[0].raw_rows == 2
    assert [round_.images for round_ in records[0].rounds] == [(0, 1), ()]
    assert [image.key for image in records[0].images] == [f"coco/train2017/{number}.jpg" for number in PAIR]
    assert records[1].groups == () and members(records)[1] == ["Question 2?"]


def test_the_order_of_the_file_does_not_matter(tmp_path):
    rows = [row(0, [1]), row(1), row(2, [1, 3]), row(3, [3])]
    results = []
    for number, order in enumerate(permutations(rows)):
        records, _, notes = convert(tmp_path / str(number), *order)
        results.append((records, sorted(notes)))
    assert all(result == results[0] for result in results)
    assert members(results[0][0]) == [[f"Question {number}?" for number in range(4)]]


def test_wrong_relations_are_counted_and_lose_nothing(tmp_path):
    rows = [row(0, [0, 1, 9, 2, 3]), row(1), row(2, [0], images=OTHER), row(3, [0], images=SWAPPED)]
    rows += [row(4, [5]), row(5, answer="")]
    records, dropped, notes = convert(tmp_path, *rows)
    assert members(records) == [["Question 0?", "Question 1?"], ["Question 2?"], ["Question 3?"], ["Question 4?"]]
    assert [item.reason for item in dropped] == ["empty_text"]
    found = sorted((note.reason, note.example) for note in notes)
    assert found == [
        ("one_sided_reference", f"{ins(0)} names {ins(1)}"),
        ("reference_to_dropped_row", f"{ins(4)} names {ins(5)}"),
        ("reference_to_nothing", f"{ins(0)} names {ins(9)}"),
        ("reference_to_other_images", f"{ins(0)} names {ins(2)}"),
        ("reference_to_other_images", f"{ins(0)} names {ins(3)}"),
        ("reference_to_other_images", f"{ins(2)} names {ins(0)}"),
        ("reference_to_other_images", f"{ins(3)} names {ins(0)}"),
        ("self_reference", ins(0)),
    ]


def test_ids_of_any_padding_name_the_same_image(tmp_path):
    records, dropped, _ = convert(tmp_path, row(0, images=("0000000000000785", "197388")), row(1, [0]))
    assert dropped == [] and len(records) == 1 and records[0].images[0].key == "coco/train2017/000000000785.jpg"


def test_a_very_long_group_is_cut(tmp_path):
    records, _, notes = convert(tmp_path, *(row(number, [(number + 1) % 45]) for number in range(45)))
    assert [len(record.rounds) for record in records] == [20, 20, 5]
    assert [record.id for record in records] == [ins(0), ins(20), ins(40)]
    assert "long_group" in {note.reason for note in notes}


def test_groups_match_a_plain_search(tmp_path):
    chooser = random.Random(3)
    pairs = [PAIR, SWAPPED, OTHER]
    images = [chooser.choice(pairs) for _ in range(60)]
    related = [[chooser.randrange(60) for _ in range(chooser.choice((0, 0, 1, 1, 2)))] for _ in range(60)]
    records, _, _ = convert(tmp_path, *(row(n, related[n], images[n]) for n in range(60)))
    alike = {n: [m for m in range(60) if images[n] == images[m]] for n in range(60)}
    links = {n: {m for m in alike[n] if m in related[n] or n in related[m]} for n in range(60)}
    expected, left = set(), set(range(60))
    while left:
        group, edge = set(), {min(left)}
        while edge:
            group |= edge
            edge = set().union(*(links[n] for n in edge)) - group
        expected.add(frozenset(f"Question {n}?" for n in group))
        left -= group
    assert {frozenset(group) for group in members(records)} == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": ("000000000785", "000000000001")}, "missing_image"),
        ({"images": ("000000000785",)}, "bad_row"),
        ({"images": ("000000000785", "000000000785")}, "bad_row"),
        ({"images": ("000000000785", "x")}, "bad_row"),
        ({"image_ids": [785, 197388]}, "bad_row"),
        ({"rel_ins_ids": None}, "bad_row"),
        ({"rel_ins_ids": [1]}, "bad_row"),
        ({"instruction": " "}, "empty_text"),
        ({"answer": "<|image:1|>"}, "reserved_text"),
    ],
)
def test_bad_rows(tmp_path, changes, reason):
    records, dropped, _ = convert(tmp_path, row(0, **changes), row(1))
    assert members(records) == [["Question 1?"]]
    assert [item.reason for item in dropped] == [reason] and ins(0) in dropped[0].example


def test_a_key_that_occurs_twice_is_two_rows(tmp_path):
    rows = [row(0), row(0, answer="Another."), row(1, [0])]
    body = ",".join(f"{json.dumps(id_)}:{json.dumps(value)}" for id_, value in rows)
    records, dropped, _ = run("otter_mimicit_cgd", tmp_path, {FILE: f'{{"meta":{{}},"data":{{{body}}}}}'})
    assert dropped == [] and sum(record.raw_rows for record in records) == 3
