"""Every form in which a row may give an image becomes a name, bytes or an address, or is refused in one short line."""

import base64
import io
import random
from urllib.parse import quote

import pytest
from PIL import Image

from scripts.adapters.base import RowError
from scripts.adapters.own.image_values import ImageAddress, ImageBytes, ImageName, has_image, image_value


def encoded(format_="PNG", size=(9, 7)):
    buffer = io.BytesIO()
    Image.frombytes("RGB", size, random.Random(1).randbytes(3 * size[0] * size[1])).save(buffer, format_)
    return buffer.getvalue()


PNG, JPEG = encoded(), encoded("JPEG", (90, 70))
TEXT = base64.b64encode(PNG).decode()
URL_SAFE = base64.urlsafe_b64encode(JPEG).decode()
DATA_URL = f"data:image/png;base64,{TEXT}"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("cat.jpg", "cat.jpg"),
        ("./a//b\\c.png", "./a//b\\c.png"),
        ("file:///data/cat.jpg", "/data/cat.jpg"),
        ("file://localhost/data/cat.jpg", "/data/cat.jpg"),
        ("file://cat.jpg", "cat.jpg"),
        ("FILE://cat.jpg", "cat.jpg"),
        ("a b%20c.jpg", "a b%20c.jpg"),
        ({"path": "cat.jpg", "bytes": None}, "cat.jpg"),
        ({"bytes": b"", "path": "cat.jpg"}, "cat.jpg"),
        ({"url": "cat.jpg"}, "cat.jpg"),
        ({"image": "cat.jpg"}, "cat.jpg"),
        ({"image_url": {"url": "file://cat.jpg", "detail": "low"}}, "cat.jpg"),
        ({"file_name": "cat.jpg", "url": "https://example.org/cat.jpg"}, "cat.jpg"),
        ("/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAgGBgcGBQgHBwcJCQgKDBQN/photo", None),
        ("a" * 400 + "/cat", None),
    ],
)
def test_names(value, name):
    assert image_value(value) == ImageName(value if name is None else name)


@pytest.mark.parametrize(
    ("value", "data", "name"),
    [
        (PNG, PNG, ""),
        (bytearray(PNG), PNG, ""),
        (memoryview(PNG), PNG, ""),
        (list(PNG), PNG, ""),
        (TEXT, PNG, ""),
        (TEXT.rstrip("="), PNG, ""),
        ("\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76)), PNG, ""),
        (base64.b64encode(JPEG).decode(), JPEG, ""),
        (URL_SAFE, JPEG, ""),
        (DATA_URL, PNG, ""),
        (f" DATA:image/jpeg;BASE64,{TEXT}", PNG, ""),
        (f"data:image/png;charset=utf-8;base64,{quote(TEXT, safe='')}", PNG, ""),
        (f"data:image/png,{quote(PNG)}", PNG, ""),
        (f"data:;base64,{TEXT}", PNG, ""),
        (f"data:application/octet-stream;base64,{TEXT}", PNG, ""),
        ({"bytes": PNG, "path": "cat.jpg"}, PNG, "cat.jpg"),
        ({"path": "cat.jpg", "bytes": TEXT}, PNG, "cat.jpg"),
        ({"url": DATA_URL}, PNG, ""),
        ({"image_url": {"url": DATA_URL}}, PNG, ""),
        ({"type": "input_image", "image_url": DATA_URL}, PNG, ""),
        ({"base64": TEXT}, PNG, ""),
        ({"b64_json": TEXT, "url": "https://example.org/cat.jpg"}, PNG, "https://example.org/cat.jpg"),
        ({"source": {"type": "base64", "media_type": "image/png", "data": TEXT}}, PNG, ""),
        ({"inline_data": {"mime_type": "image/png", "data": TEXT}}, PNG, ""),
        ({"image": {"bytes": PNG, "path": None}}, PNG, ""),
        ({"type": "Buffer", "data": list(PNG)}, PNG, ""),
        ({"bytes": {"type": "Buffer", "data": list(PNG)}}, PNG, ""),
    ],
)
def test_bytes_in_every_form(value, data, name):
    assert image_value(value) == ImageBytes(data, name)


@pytest.mark.parametrize("scheme", ["http", "https", "s3", "gs", "hf", "HTTPS", "ftp"])
def test_addresses(scheme):
    url = f"{scheme}://example.org/a/cat.jpg"
    for value in (url, {"url": url}, {"image_url": {"url": url}}, {"image": url}, {"type": "url", "source": url}):
        assert image_value(value) == ImageAddress(url)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_the_smallest_base64_of_every_format_is_an_image(kind):
    data = encoded(kind, (1, 1))
    assert image_value(base64.b64encode(data).decode()) == ImageBytes(data)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "None is not an image"),
        ("", "name .* is empty"),
        ("  ", "name .* is empty"),
        (b"", "zero bytes"),
        (5, "5 is not an image"),
        (True, "True is not"),
        ([], "of type list"),
        (["cat.jpg"], "of type list"),
        ([300] * 100, "of type list"),
        ({}, r"members \(none\)"),
        ({"width": 5, "height": 6}, "members width, height"),
        ({"bytes": 5}, "'bytes' of an image is 5"),
        ({"bytes": "not base64"}, "not valid base64"),
        ({"bytes": "ünï"}, "not base64"),
        ("a\0b.jpg", "neither a path nor base64"),
        ("data:text/plain;base64,aGVsbG8=", "type text/plain"),
        ("data:,hello", "not an image"),
        ("data:image/svg+xml;base64,PHN2Zz4=", "SVG"),
        ("data:image/png;base64,", "zero bytes"),
        (f"data:image/png;base64,{TEXT[:-3]}*", "not valid base64"),
        (f"data:video/mp4;base64,{TEXT}", "type video/mp4"),
        (f"{TEXT * 20}*", "neither a path nor base64"),
        (base64.b64encode(b"%PDF-1.4" * 1000).decode(), "something that is not an image"),
        ({"image": {"image": {"image": {"image": {"image": "a.jpg"}}}}}, "is not an image"),
    ],
)
def test_what_is_no_image_is_refused_in_one_short_line(value, message):
    with pytest.raises(RowError, match=message) as caught:
        image_value(value)
    assert caught.value.reason == "bad_image"
    assert len(caught.value.detail) < 200 and "\n" not in caught.value.detail and TEXT[:80] not in caught.value.detail


@pytest.mark.parametrize(
    "value", [None, "", " ", b"", [], {}, {"bytes": None, "path": None}, {"image_url": {"url": ""}}]
)
def test_empty_values_have_no_image(value):
    assert not has_image(value)


@pytest.mark.parametrize("value", ["a.jpg", PNG, {"bytes": PNG}, {"image_url": {"url": "a"}}, 0, ["a.jpg"]])
def test_other_values_have_one(value):
    assert has_image(value)
