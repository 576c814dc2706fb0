"""Images of the page: scaled down, re-encoded, and never anything but an image."""

import base64
import hashlib
from io import BytesIO

import pytest
from PIL import Image

from scripts.reporting.report_images import LONGEST_SIDE, ReportImages, data_uri


def encoded(size: tuple[int, int], kind: str = "JPEG", **options) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, "red").save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(uri: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_large_images_are_scaled_down():
    uri, small = data_uri(encoded((1200, 600)))
    assert uri.startswith("data:image/jpeg;") and not small
    assert decoded(uri).size == (LONGEST_SIDE, LONGEST_SIDE // 2)


def test_small_images_keep_their_pixels():
    uri, small = data_uri(encoded((32, 20), "PNG"))
    assert uri.startswith("data:image/png;") and small
    assert decoded(uri).size == (32, 20)


def test_sideways_images_are_turned_and_lose_their_metadata():
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a secret"
    uri, _ = data_uri(encoded((400, 200), exif=exif))
    assert decoded(uri).size == (LONGEST_SIDE // 2, LONGEST_SIDE)
    assert not decoded(uri).getexif()


@pytest.mark.parametrize("data", [b"<svg onload='x()'/>", b"GIF89a<script>", b"x"])
def test_other_files_are_not_embedded(data):
    assert data_uri(data) == (None, False)


def test_only_the_image_that_the_model_saw_is_shown(tmp_path):
    data = encoded((8, 8))
    (tmp_path / "a.jpg").write_bytes(data)
    report_images = ReportImages({}, {"talk": tmp_path})
    seen = {"path": "a.jpg", "sha256": hashlib.sha256(data).hexdigest()}
    (shown,) = report_images.of_suite("talk", [seen], first=4)
    assert shown.uri and shown.number == 4
    for image in (seen | {"sha256": "0" * 64}, seen | {"path": "b.jpg"}):
        assert report_images.of_suite("talk", [image])[0].uri is None
    assert report_images.of_suite("other", [seen])[0].uri is None
    assert report_images.heldout(["0" * 64])[0].uri is None
