"""The crop alone is equal to the crop of the whole enlarged image, bit for bit, and needs no more memory than it."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, SiglipImageProcessorPil

from model import cropping
from model.cropping import cropped_pixels, enlarged_size, processed_pixels

SIZES = [(32, 32), (90, 41), (41, 90), (8, 8), (1, 50), (50, 1), (2, 300), (300, 2), (31, 32), (640, 223), (199, 201)]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


def whole(processor, image: Image.Image) -> np.ndarray:
    """The pixels of the image processor itself."""
    return np.asarray(processor(image, do_rescale=False, do_normalize=False)["pixel_values"][0], np.uint8)


@pytest.mark.parametrize("resample", [Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize(("edge", "crop"), [(224, 224), (256, 224), (40, 64), (33, 31)])
def test_the_crop_alone_is_the_crop_of_the_whole(resample, edge, crop):
    options = {"size": {"shortest_edge": edge}, "crop_size": {"height": crop, "width": crop}, "resample": resample}
    compared = 0
    for kind in (CLIPImageProcessorPil, BitImageProcessorPil):
        processor = kind(**options)
        for size in SIZES:
            image = noise(*size)
            if enlarged := enlarged_size(processor, image):
                compared += 1
                assert np.array_equal(cropped_pixels(processor, image, *enlarged), whole(processor, image)), size
    assert compared >= 8


def test_an_ordinary_image_goes_through_the_image_processor(monkeypatch):
    monkeypatch.setattr(cropping, "cropped_pixels", None)
    for processor in (CLIPImageProcessorPil(), SiglipImageProcessorPil()):
        for size in [(640, 480), (480, 640), (50, 60), (1000, 37)]:
            assert np.array_equal(processed_pixels(processor, noise(*size)), whole(processor, noise(*size)))


def test_a_long_image_is_cropped_before_it_is_enlarged():
    image = Image.new("RGB", (60_000, 2), "red")
    image.paste("blue", (29_999, 0, 30_001, 2))
    pixels = processed_pixels(CLIPImageProcessorPil(), image)
    assert pixels.shape == (3, 224, 224) and pixels[:, 100, 112].tolist() == [0, 0, 255]


def test_the_memory_for_a_long_image_is_bounded():
    """Enlarged as a whole, each of these would take more than 4 GB."""
    program = """
import resource
from PIL import Image
from transformers import CLIPImageProcessorPil
from model.cropping import processed_pixels
processor = CLIPImageProcessorPil()
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
for size in ((60_000, 2), (2, 60_000), (65_535, 1), (1, 65_535)):
    print(processed_pixels(processor, Image.new("RGB", size)).shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:4] == ["(3, 224, 224)"] * 4, done.stderr[-2000:]


def test_an_image_processor_of_another_kind_refuses_what_it_would_enlarge_without_bound():
    class Other(CLIPImageProcessorPil):
        def resize(self, *_, **__):
            raise AssertionError("the whole image must not be enlarged")

    for processor in (Other(), CLIPImageProcessorPil(resample=Image.Resampling.NEAREST)):
        with pytest.raises(ValueError, match="60000 x 2 pixels is too long for"):
            processed_pixels(processor, Image.new("RGB", (60_000, 2)))


def test_only_an_enlargement_of_the_shortest_edge_counts():
    image = Image.new("RGB", (50, 20))
    size = {"shortest_edge": 224, "longest_edge": 300}
    assert enlarged_size(SimpleNamespace(size={"shortest_edge": 224}, do_resize=True), image) == (224, 560)
    for settings in ({"size": size}, {"size": {"height": 9, "width": 9}}, {"size": None}, {"do_resize": False}):
        processor = SimpleNamespace(**({"size": {"shortest_edge": 224}, "do_resize": True} | settings))
        assert enlarged_size(processor, image) is None
