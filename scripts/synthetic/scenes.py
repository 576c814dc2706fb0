"""Scenes of the miniature and how they are rendered.

A scene has a few objects, each in its own quarter of a light square. Shapes and colours differ clearly, so that a tiny
encoder can distinguish them; position, radius, tint and background vary, so that it cannot memorize pixels.
"""

import io
import math
from typing import NamedTuple

from PIL import Image, ImageDraw

from scripts.config.miniature import MiniatureConfig
from scripts.synthetic.randomness import RandomStream

CELLS = ("top-left", "top-right", "bottom-left", "bottom-right")
SHAPES = ("circle", "square", "triangle", "cross", "star", "diamond")
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 160, 50),
    "blue": (40, 70, 225),
    "yellow": (240, 210, 20),
    "purple": (150, 40, 190),
    "black": (20, 20, 20),
    "cyan": (30, 205, 215),
    "pink": (255, 130, 185),
}
SIZES = ("small", "large")

_UNIT = 64
"""Positions and radii are in pixels of an image of 64 x 64."""
_CELL = _UNIT / 2
_RADII = {"": (9.0, 12.0), "small": (6.0, 7.5), "large": (11.0, 13.0)}
_MAX_JITTER = 3.0
_TINT = 12
_OVERSAMPLING = 4


class Object(NamedTuple):
    """One object: its quarter (0-3 in reading order), shape, colour, and size ("" if there is only one size)."""

    cell: int
    shape: str
    colour: str
    size: str


Scene = tuple[Object, ...]
"""The objects of an image, in reading order."""


def draw_scene(draw: RandomStream, settings: MiniatureConfig) -> Scene:
    """A random scene of one to `max_objects` objects; their number and all properties are uniformly distributed."""
    cells = sorted(draw.shuffled(range(len(CELLS)))[: 1 + draw.below(settings.max_objects)])
    sizes = SIZES if settings.sizes == 2 else ("",)
    shapes, colours = SHAPES[: settings.shapes], tuple(COLOURS)[: settings.colours]
    return tuple(Object(cell, draw.pick(shapes), draw.pick(colours), draw.pick(sizes)) for cell in cells)


def render(scene: Scene, draw: RandomStream, image_size: int = _UNIT) -> Image.Image:
    """Render `scene` as a square RGB image; `draw` gives the variations.

    Args:
        scene: to render.
        draw: random position, radius, tint and background.
        image_size: side of the image in pixels.
    """
    scale = image_size * _OVERSAMPLING / _UNIT
    grey = 225 + draw.below(21)
    image = Image.new("RGB", (image_size * _OVERSAMPLING,) * 2, (grey,) * 3)
    canvas = ImageDraw.Draw(image)
    for thing in scene:
        radius = draw.between(*_RADII[thing.size])
        jitter = min(_MAX_JITTER, (_CELL - 1) / 2 - radius)
        x = (thing.cell % 2 + 0.5) * _CELL + draw.between(-jitter, jitter)
        y = (thing.cell // 2 + 0.5) * _CELL + draw.between(-jitter, jitter)
        tint = [min(255, max(0, value + draw.below(2 * _TINT + 1) - _TINT)) for value in COLOURS[thing.colour]]
        _paint(canvas, thing.shape, x * scale, y * scale, radius * scale, tuple(tint))
    return image.resize((image_size, image_size), Image.Resampling.BOX)


def _paint(canvas: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, colour: tuple[int, ...]) -> None:
    def box(half_width: float, half_height: float) -> None:
        canvas.rectangle([x - half_width, y - half_height, x + half_width, y + half_height], fill=colour)

    if shape == "circle":
        canvas.ellipse([x - r, y - r, x + r, y + r], fill=colour)
    elif shape == "square":
        box(0.88 * r, 0.88 * r)
    elif shape == "cross":
        box(0.33 * r, r)
        box(r, 0.33 * r)
    elif shape == "triangle":
        canvas.polygon([(x, y - r), (x + r, y + 0.85 * r), (x - r, y + 0.85 * r)], fill=colour)
    elif shape == "diamond":
        canvas.polygon([(x, y - r), (x + 0.75 * r, y), (x, y + r), (x - 0.75 * r, y)], fill=colour)
    else:
        tips = [(r if tip % 2 == 0 else 0.42 * r, tip * math.pi / 5) for tip in range(10)]
        canvas.polygon([(x + d * math.sin(angle), y - d * math.cos(angle)) for d, angle in tips], fill=colour)


def jpeg(image: Image.Image) -> bytes:
    """The image as JPEG: quality 95 without chroma subsampling, which keeps small shapes sharp."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()
