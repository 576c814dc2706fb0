"""Resizing and cropping by an image processor, in bounded memory.

The image processors of CLIP and DINOv2 resize the shortest edge of an image and then cut out the centre: an image of
60,000 x 2 pixels would be enlarged to 6,720,000 x 224 pixels, of which 224 x 224 are used. Where an enlargement is too
large, only the crop is computed here, with Pillow's own arithmetic, so that the pixels are those that Pillow would
make. All other images go through the image processor.

Pillow enlarges in two passes, first along the rows, then along the columns. An output pixel is a sum of source pixels,
with weights that depend on its position and the two lengths only and are rounded to 22 bits; the sum is rounded to 8
bits (`libImaging/Resample.c`). So any part of the output can be computed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend

from .pixels import to_rgb

MAX_ENLARGED = 1 << 24
"""Largest number of pixels to which an image processor may enlarge an image: they take about 200 MB."""
_BITS = 22


def processed_pixels(image_processor: Any, image: Image.Image) -> np.ndarray:
    """An image of any mode as input of the encoder: uint8 (3, height, width), resized and cropped.

    Raises:
        ValueError: the image is so long that resizing would take too much memory, and the image processor is of a kind
            of which the crop cannot be computed alone.
    """
    rgb = to_rgb(image)
    if (size := enlarged_size(image_processor, rgb)) and size[0] * size[1] > MAX_ENLARGED:
        return cropped_pixels(image_processor, rgb, *size)
    batch = image_processor(rgb, do_rescale=False, do_normalize=False)
    return np.asarray(batch["pixel_values"][0], dtype=np.uint8)


def enlarged_size(image_processor: Any, image: Image.Image) -> tuple[int, int] | None:
    """Height and width to which an image processor enlarges an image before it crops; None if it does not."""
    size = image_processor.size or {}
    edge = size.get("shortest_edge") if image_processor.do_resize else None
    short, long = sorted(image.size)
    if not edge or size.get("longest_edge") or edge <= short:
        return None
    # As `transformers` rounds it: down, after a division of floats.
    long = int(edge * long / short)
    return (long, edge) if image.width <= image.height else (edge, long)


def cropped_pixels(image_processor: Any, rgb: Image.Image, height: int, width: int) -> np.ndarray:
    """The crop of an RGB image enlarged to `height` x `width`, without the rest of it: uint8 (3, height, width).

    Raises:
        ValueError: see `processed_pixels`.
    """
    filter_ = _FILTERS.get(image_processor.resample)
    methods = (type(image_processor)._preprocess, type(image_processor).resize, type(image_processor).center_crop)
    known = methods == (PilBackend._preprocess, PilBackend.resize, PilBackend.center_crop)
    if not (known and image_processor.do_center_crop and filter_ is not None):
        raise ValueError(
            f"an image of {rgb.width} x {rgb.height} pixels is too long for {type(image_processor).__name__}, which "
            "would enlarge it as a whole: leave it out, or cut it"
        )
    crop = image_processor.crop_size
    rows, columns = _window(height, crop["height"]), _window(width, crop["width"])
    down, across = _weights(rgb.height, height, rows, filter_), _weights(rgb.width, width, columns, filter_)
    # Only the part of the source that the crop shows.
    box = (across.first, down.first, across.end, down.end)
    pixels = np.asarray(rgb.crop(box))
    pixels = _resample(pixels.swapaxes(0, 1), across).swapaxes(0, 1)
    # What lies outside of an image smaller than its crop is black, as the image processor makes it.
    out = np.zeros((crop["height"], crop["width"], 3), np.uint8)
    shown = np.s_[rows.margin : rows.margin + rows.outputs, columns.margin : columns.margin + columns.outputs]
    out[shown] = _resample(pixels, down)
    return np.ascontiguousarray(out.transpose(2, 0, 1))


class _Window(NamedTuple):
    """The part of one axis of a resized image that a crop shows: `outputs` pixels from `first`, behind a `margin`."""

    first: int
    outputs: int
    margin: int


def _window(length: int, crop: int) -> _Window:
    if length >= crop:
        return _Window((length - crop) // 2, crop, 0)
    return _Window(0, length, math.ceil((crop - length) / 2))


class _Weights(NamedTuple):
    """Weights (outputs, taps) of the source pixels from `first + starts` (outputs,) on; the last is before `end`."""

    weights: np.ndarray
    starts: np.ndarray
    first: int
    end: int


def _weights(source: int, target: int, window: _Window, filter_: _Filter) -> _Weights:
    """The integer weights with which Pillow enlarges `source` pixels to `target`, for the outputs of a window."""
    centers = (np.arange(window.first, window.first + window.outputs) + 0.5) * (source / target)
    starts = np.maximum((centers - filter_.support + 0.5).astype(np.int64), 0)
    ends = np.minimum((centers + filter_.support + 0.5).astype(np.int64), source)
    positions = starts[:, None] + np.arange((ends - starts).max())
    weights = np.where(positions < ends[:, None], filter_.weight(positions - centers[:, None] + 0.5), 0.0)
    # One after the other, as in Pillow: the last bit of a sum depends on its order.
    total = np.add.accumulate(weights, axis=1)[:, -1:]
    weights = weights / np.where(total == 0, 1, total)
    rounded = np.trunc(weights * (1 << _BITS) + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)
    first = int(starts.min())
    return _Weights(rounded, starts - first, first, int(ends.max()))


def _resample(pixels: np.ndarray, axis: _Weights) -> np.ndarray:
    """Enlarge the first axis of `pixels`, uint8 (length, n, 3): uint8 (outputs, n, 3)."""
    sums = np.full((len(axis.starts), *pixels.shape[1:]), 1 << (_BITS - 1), np.int64)
    for tap, weight in enumerate(axis.weights.T):
        # A tap behind the end has the weight 0.
        sums += weight[:, None, None] * pixels[np.minimum(axis.starts + tap, len(pixels) - 1)]
    return (sums >> _BITS).clip(0, 255).astype(np.uint8)


class _Filter(NamedTuple):
    """A filter of Pillow: weights of distances (n,), in source pixels, up to `support`."""

    support: float
    weight: Callable[[np.ndarray], np.ndarray]


def _box(x: np.ndarray) -> np.ndarray:
    return ((x > -0.5) & (x <= 0.5)).astype(np.float64)


def _bilinear(x: np.ndarray) -> np.ndarray:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _bicubic(x: np.ndarray) -> np.ndarray:
    # Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -0.5.
    a, x = -0.5, np.abs(x)
    near, far = ((a + 2.0) * x - (a + 3.0)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _lanczos(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -3.0) & (x < 3.0), np.sinc(x) * np.sinc(x / 3), 0.0)


_FILTERS = {
    Image.Resampling.BOX: _Filter(0.5, _box),
    Image.Resampling.BILINEAR: _Filter(1.0, _bilinear),
    Image.Resampling.BICUBIC: _Filter(2.0, _bicubic),
    Image.Resampling.LANCZOS: _Filter(3.0, _lanczos),
}
