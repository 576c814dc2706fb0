"""The drawn world: stable under growth, and drawn as it is described."""

import io

import pytest
from PIL import Image

from scripts.config.miniature import MiniatureConfig
from scripts.synthetic.randomness import RandomStream
from scripts.synthetic.scenes import CELLS, COLOURS, SHAPES, Object, render
from scripts.synthetic.world import World

RICH = {"shapes": 6, "colours": 8, "sizes": 2, "max_objects": 4}


def test_draws_are_the_same_on_every_machine():
    draw = RandomStream(0, "purpose", 7)
    assert [draw.below(1000) for _ in range(10)] == [524, 838, 546, 699, 267, 581, 923, 559, 578, 98]


def test_streams_differ_by_seed_purpose_and_number():
    streams = [RandomStream(0, "a", 1), RandomStream(1, "a", 1), RandomStream(0, "b", 1), RandomStream(0, "a", 2)]
    assert len({tuple(stream.below(1 << 20) for _ in range(4)) for stream in streams}) == 4


def test_shuffled_keeps_all_and_times_has_the_asked_mean():
    draw = RandomStream(0, "x")
    assert sorted(draw.shuffled(range(9))) == list(range(9))
    assert sum(draw.times(1.8) for _ in range(2000)) / 2000 == pytest.approx(1.8, abs=0.05)


def test_more_images_keep_the_first_ones():
    small, large = World(MiniatureConfig(images=20)), World(MiniatureConfig(images=21))
    for number in range(20):
        assert small.scene(number) == large.scene(number)
        assert small.image(number) == large.image(number)
        assert small.file_name(number) == large.file_name(number)


def test_image_names_are_unique_and_like_cocos():
    world = World(MiniatureConfig(images=500))
    names = [world.file_name(number) for number in range(500)]
    assert len(set(names)) == 500 and names == sorted(names)
    assert all(len(name) == 16 and name.endswith(".jpg") for name in names)


@pytest.mark.parametrize("settings", [MiniatureConfig(), MiniatureConfig(**RICH)])
def test_scenes_use_the_whole_vocabulary_and_distinct_cells(settings):
    world = World(settings)
    scenes = [world.scene(number) for number in range(600)]
    things = [thing for scene in scenes for thing in scene]
    assert {thing.shape for thing in things} == set(SHAPES[: settings.shapes])
    assert {thing.colour for thing in things} == set(tuple(COLOURS)[: settings.colours])
    assert len({thing.size for thing in things}) == settings.sizes
    assert {len(scene) for scene in scenes} == set(range(1, settings.max_objects + 1))
    assert all(sorted({thing.cell for thing in scene}) == [thing.cell for thing in scene] for scene in scenes)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", ["", "small", "large"])
def test_an_object_is_drawn_in_its_cell_and_colour(shape, size):
    for cell in range(len(CELLS)):
        image = render((Object(cell, shape, "blue", size),), RandomStream(0, shape, size, cell))
        places = [(x, y) for x in range(64) for y in range(64) if _close(image.getpixel((x, y)), COLOURS["blue"])]
        assert {x // 32 + 2 * (y // 32) for x, y in places} == {cell}


def test_image_size_and_jpeg():
    image = Image.open(io.BytesIO(World(MiniatureConfig(image_size=96)).image(3)))
    assert (image.size, image.format, image.mode) == ((96, 96), "JPEG", "RGB")


def _close(pixel, colour):
    return all(abs(a - b) <= 20 for a, b in zip(pixel, colour, strict=True))
