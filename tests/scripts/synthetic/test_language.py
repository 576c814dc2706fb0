"""Questions and answers about the world: correct, balanced, and each of exactly one kind in kinds.json."""

import re
from collections import Counter, defaultdict

import pytest

from scripts.adapters.aokvqa import REASONS
from scripts.adapters.coco_caption import PROMPTS
from scripts.adapters.minigpt4 import PROMPTS as DETAILED
from scripts.config.miniature import MiniatureConfig
from scripts.synthetic import formats
from scripts.synthetic.dialogues import suite
from scripts.synthetic.language import captions, describe, kinds, question, questions, recall
from scripts.synthetic.randomness import RandomStream
from scripts.synthetic.scenes import Object
from scripts.synthetic.world import World
from tests.scripts.synthetic.solving import solve

ALL_KINDS = ("what", "colour", "shape", "count", "where", "size", "count_colour", "exist", "compare", "which")
RICH = MiniatureConfig(images=1500, shapes=6, colours=8, sizes=2, max_objects=4, kinds=ALL_KINDS)
PLAIN = MiniatureConfig(images=1500)


@pytest.fixture(scope="module", params=[PLAIN, RICH], ids=["plain", "rich"])
def rounds_of_world(request):
    """(world, every question of every raw file as (scenes, question, answer), the image named by "image 1" first)."""
    world = World(request.param)
    by_file = {world.file_name(number): world.scene(number) for number in range(len(world))}
    rounds = []
    for writer in (formats.llava_detail, formats.llava_reasoning, formats.llava_conversation):
        for row in writer(world):
            texts = [turn["value"].replace("<image>", "").strip() for turn in row["conversations"]]
            scenes = [by_file[row["image"]]]
            rounds += [(scenes, asked, answer) for asked, answer in zip(texts[::2], texts[1::2], strict=True)]
    for row in formats.cgd_instructions(world)["data"].values():
        scenes = [by_file[f"{int(name.removeprefix('CGD_IMG_')):012d}.jpg"] for name in row["image_ids"]]
        rounds.append((scenes, row["instruction"], row["answer"]))
    return world, rounds


def test_every_answer_is_right(rounds_of_world):
    wrong = [(asked, answer) for scenes, asked, answer in rounds_of_world[1] if solve(asked, scenes) != answer]
    assert wrong == []


def test_no_answer_dominates_its_kind(rounds_of_world):
    world, rounds = rounds_of_world
    patterns = [(kind["name"], kind["pattern"]) for kind in kinds(world.settings) if kind["scored"]]
    answers = defaultdict(Counter)
    for _, asked, answer in rounds:
        for name, pattern in patterns:
            if re.search(pattern, asked):
                answers[name][answer] += 1
    asked_kinds = {name.removeprefix("named_") for name in answers}
    assert asked_kinds == set(world.settings.kinds)
    for name, counts in answers.items():
        assert counts.total() >= 100, name
        assert max(counts.values()) <= 0.6 * counts.total(), (name, counts.most_common(1))


def test_every_question_matches_exactly_one_kind(rounds_of_world):
    world, rounds = rounds_of_world
    asked = {text for _, text, _ in rounds}
    asked |= {recall(text, 2) for scenes, text, _ in rounds if len(scenes) == 1}
    asked |= {*PROMPTS, *DETAILED}
    asked |= {f"{row['question']} {reason}" for row in formats.aokvqa(world) for reason in REASONS}
    asked |= {round_[0] for dialogue in suite(world).dialogues.values() for round_ in dialogue}
    patterns = {kind["name"]: re.compile(kind["pattern"]) for kind in kinds(world.settings)}
    matches = {text: [name for name, pattern in patterns.items() if pattern.search(text)] for text in asked}
    assert {text: names for text, names in matches.items() if len(names) != 1} == {}
    assert {name for names in matches.values() for name in names} == set(patterns)


def test_kinds_say_how_many_images_decide(rounds_of_world):
    world, rounds = rounds_of_world
    rows = kinds(world.settings)
    assert len({row["name"] for row in rows}) == len(rows)
    for scenes, asked, _ in rounds:
        (row,) = [row for row in rows if re.search(row["pattern"], asked)]
        assert row["images"] == ("one" if len(scenes) == 1 else "several")
    assert {row["name"] for row in rows if not row["scored"]} == {"describe", "caption", "reason"}


def test_questions_are_asked_only_where_they_have_one_answer():
    twins = (Object(0, "circle", "red", ""), Object(3, "circle", "red", ""))
    asked = {each.kind for each in questions([twins], RandomStream(0, "x"), PLAIN)}
    assert asked == {"what", "count"}


def test_a_question_is_not_repeated():
    scene = (Object(1, "circle", "red", ""),)
    only_count = MiniatureConfig(kinds=("count",))
    first = question(scene, RandomStream(0, "x"), only_count)
    assert first and question(scene, RandomStream(0, "x"), only_count, known=[first.text]) is None


def test_questions_about_two_scenes_name_them():
    scenes = [(Object(0, "circle", "red", ""),), (Object(3, "square", "blue", ""), Object(1, "cross", "green", ""))]
    asked = questions(scenes, RandomStream(0, "x"), PLAIN)
    assert {each.kind for each in asked} == set(PLAIN.kinds)
    assert ("compare", "Which image has more objects?", "image 2") in asked
    assert ("count", "How many objects are there in image 1?", "one") in asked


def test_captions_and_descriptions_tell_every_object():
    scene = (Object(0, "circle", "red", "small"), Object(3, "square", "blue", "large"))
    texts = captions(scene, RandomStream(0, "x"))
    assert len(set(texts)) == 5
    assert all("a small red circle" in text and "a large blue square" in text for text in texts)
    assert describe(scene) == "a small red circle at the top-left and a large blue square at the bottom-right"
