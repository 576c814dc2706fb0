"""The processor: pixels equal to the image processor's own, odd image modes, batches, folders."""

from __future__ import annotations

import base64
import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from model.pixels import MAX_SIDE, to_rgb
from model.processing import VisualChatProcessor
from model.template import EncodedConversation, Template
from model.vision import VisionTower
from tests.tiny_models import user

RNG = np.random.default_rng(0)


def photo(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(32, 32), (90, 41), (41, 90), (8, 8), (1, 50)])
def test_normalised_bytes_equal_the_image_processor_s_floats(model, processor, size):
    image = photo(*size)
    ours = processor.preprocess_image(image)
    assert ours.dtype == np.uint8 and ours.shape == (3, 32, 32)
    theirs = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    normalised = model.vision_tower.normalise(torch.from_numpy(ours)[None])
    torch.testing.assert_close(normalised, theirs, rtol=0, atol=1e-6)
    assert model.vision_tower.normalise(theirs) is theirs
    with torch.no_grad():
        bytes_in, floats_in = model.vision_tower(torch.from_numpy(ours)[None]), model.vision_tower(theirs)
    torch.testing.assert_close(bytes_in, floats_in, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F"])
def test_every_mode_becomes_rgb(processor, mode):
    source = photo(40, 30)
    if mode in ("PA", "LAB", "HSV"):
        image = Image.new(mode, (40, 30))
    elif mode in ("I", "F"):
        image = source.convert("L").convert(mode)
    else:
        image = source.convert(mode)
    assert to_rgb(image).mode == "RGB"
    assert processor.preprocess_image(image).shape == (3, 32, 32)


def test_grey_levels_survive_16_bits():
    grey = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
    deep = grey.astype(np.uint16) * 256 + 77
    for image in (Image.fromarray(deep), Image.fromarray(deep.astype(np.int32))):
        assert np.array_equal(np.asarray(to_rgb(image))[..., 0], grey)
    shallow = Image.fromarray(grey.astype(np.int32))
    assert np.array_equal(np.asarray(to_rgb(shallow))[..., 1], grey)


def test_a_palette_keeps_its_colours():
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 10, 20])
    assert np.asarray(to_rgb(image))[0, 0].tolist() == [250, 10, 20]


def test_a_photo_lying_on_its_side_is_put_upright(processor):
    upright = photo(60, 40)
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6  # to be turned by 270 degrees counter-clockwise
    assert np.array_equal(np.asarray(to_rgb(lying)), np.asarray(upright))
    assert np.array_equal(processor.preprocess_image(lying), processor.preprocess_image(upright))


def test_every_way_to_pass_an_image_gives_the_same_pixels(processor, tmp_path):
    icon = Image.new("RGBA", (30, 20), (0, 0, 0, 0))
    icon.save(tmp_path / "icon.png")
    data = base64.b64encode((tmp_path / "icon.png").read_bytes()).decode()
    expected = processor.preprocess_image(Image.new("RGB", (30, 20), "white"))
    for image in (icon, str(tmp_path / "icon.png"), data, f"data:image/png;base64,{data}"):
        assert np.array_equal(processor("What is <image>?", [image])["pixel_values"][0], expected)
    for wrong, error in (("no such file.png", ValueError), ("bm8gaW1hZ2U=", ValueError), (7, TypeError)):
        with pytest.raises(error, match=r"base64"):
            processor("What is <image>?", [wrong])


def test_an_image_that_would_cost_too_much_is_refused_before_it_is_decoded(processor, tmp_path):
    Image.new("1", (MAX_SIDE + 1, 2)).save(tmp_path / "narrow.png")
    data = base64.b64encode((tmp_path / "narrow.png").read_bytes()).decode()
    for image in (str(tmp_path / "narrow.png"), data):
        with pytest.raises(ValueError, match=f"an image of {MAX_SIDE + 1} x 2 pixels is too large"):
            processor("What is <image>?", [image])


def test_an_image_at_a_url_keeps_its_transparency_for_white(processor, tmp_path):
    Image.new("RGBA", (30, 20), (0, 0, 0, 0)).save(tmp_path / "icon.png")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        pixels = processor("What is <image>?", [f"http://127.0.0.1:{server.server_port}/icon.png"])["pixel_values"][0]
        server.shutdown()
    assert np.array_equal(pixels, processor.preprocess_image(Image.new("RGB", (30, 20), "white")))


def test_a_batch(processor):
    pictures = [np.full((3, 32, 32), value, np.uint8) for value in (10, 20, 30)]
    first = processor.encode([user("a", 2, 0), {"role": "assistant", "content": "b"}])
    second = processor.encode([user("c")])
    third = processor.encode([user("d", 1)])
    for side, start in (("right", 0), ("left", len(first) - len(second))):
        batch = processor.collate([(first, pictures), (second, []), (third, pictures)], side)
        assert batch["pixel_values"][:, 0, 0, 0].tolist() == [30, 10, 20]
        assert batch["pixel_values"].dtype == torch.uint8
        inside = slice(start, start + len(second))
        assert batch["input_ids"][1, inside].tolist() == second.input_ids
        assert batch["modality"][1, inside].tolist() == second.modality
        assert batch["labels"][0].tolist() == first.labels
        outside = torch.ones(len(first), dtype=torch.bool)
        outside[inside] = False
        assert (batch["modality"][1, outside] == 0).all() and (batch["labels"][1, outside] == -100).all()
        assert (batch["input_ids"][1, outside] == processor.tokenizer.pad_token_id).all()
        assert torch.equal(batch["attention_mask"], (batch["modality"] > 0).long())
    assert "pixel_values" not in processor.collate([(second, [])])
    assert processor.collate([(EncodedConversation([5], [-100], [1], []), [])])["input_ids"].tolist() == [[5]]


def test_call_with_messages_and_with_text(processor):
    images = [photo(50, 40), photo(40, 50)]
    by_text = processor("Compare <image> and <image>", images)
    by_messages = processor([user("Compare image 1 and image 2", 0, 1)], images)
    for name in ("input_ids", "modality", "pixel_values", "attention_mask"):
        assert torch.equal(by_text[name], by_messages[name])
    assert np.array_equal(by_text["pixel_values"][1], processor.preprocess_image(images[1]))

    several = processor(["One <image>", [user("Two")]], [images[:1], []])
    assert several["input_ids"].shape[0] == 2 and several["modality"][1, 0] == 0
    assert processor(["One", "Two?"])["input_ids"].shape[0] == 2
    with pytest.raises(ValueError, match="1 times '<image>', but 2 images"):
        processor("a <image>", images)
    with pytest.raises(ValueError, match=r"shows images \[2\], but 2 were given"):
        processor([user("a", 2)], images)


def test_folder_keeps_template_and_tokens(folder, processor, tmp_path):
    template = Template(system="Be brief.", image_header="[{number}] ")
    made = VisualChatProcessor(processor.image_processor, processor.tokenizer, 16, template)
    made.save_pretrained(tmp_path)
    loaded = VisualChatProcessor.from_pretrained(tmp_path)
    assert loaded.template == template and loaded.image_tokens == 16
    messages = [user("<image></s>?", 0), {"role": "assistant", "content": "yes"}]
    assert loaded.encode(messages) == made.encode(messages)
    assert np.array_equal(loaded.preprocess_image(image := photo(70, 44)), made.preprocess_image(image))
    automatic = AutoProcessor.from_pretrained(folder)
    assert type(automatic) is VisualChatProcessor and automatic.template == processor.template


def test_an_image_processor_with_another_scale_is_refused(processor):
    from copy import deepcopy

    odd = deepcopy(processor.image_processor)
    odd.rescale_factor = 1 / 127.5
    with pytest.raises(ValueError, match="not by 1/255"):
        VisualChatProcessor(odd, processor.tokenizer, 16)


def test_normalisation_is_the_formula(model):
    tower: VisionTower = model.vision_tower
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(x / 255 - m) / s for x, m, s in zip((0, 128, 255), tower.mean, tower.std, strict=True)]
    torch.testing.assert_close(tower.normalise(pixels).flatten(), torch.tensor(expected))
