"""Images at addresses in rows are downloaded once, checked, and then found by the rows as they are."""

import io
import json

import pytest
from PIL import Image

from scripts import download_images
from scripts.adapters.image_lookup import ImageLookup
from scripts.adapters.own.image_search import OwnImages
from scripts.adapters.own.image_values import ImageAddress
from scripts.adapters.source_images import SourceImages
from scripts.common.errors import UserError
from scripts.fetching import image_download
from scripts.media.hashed_names import downloaded_stem
from tests.scripts.fetching.server import Server, page, status


def encoded(kind="PNG", colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def server():
    with Server() as running:
        yield running


def rows_file(tmp_path, *images):
    rows = [
        {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}], "images": [image]}
        for image in images
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["download_images", *map(str, arguments), "--retries", "1"])
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    download_images.main()


def test_every_address_is_downloaded_once_and_found_afterwards(tmp_path, monkeypatch, server, capsys):
    server.routes = {"/a.jpg": status(200, encoded("JPEG")), "/b": [status(503), status(200, encoded("PNG"))]}
    urls = [f"{server.url}/a.jpg", f"{server.url}/b?size=large&x=1"]
    rows = rows_file(tmp_path, urls[0], {"url": urls[1]}, urls[0], "here.jpg")
    run(monkeypatch, rows, "--out", tmp_path / "web")
    names = [f"{downloaded_stem(urls[0])}.jpg", f"{downloaded_stem(urls[1])}.png"]
    assert sorted(path.name for path in (tmp_path / "web").iterdir()) == sorted(names)
    assert (tmp_path / "web" / names[0]).read_bytes() == encoded("JPEG") and len(server.requests) == 3

    listed = SourceImages(*[_column(f"web/{name}" for name in names), None, _column(()), _column(())])
    images = OwnImages(ImageLookup({"own": listed}), "own", {"./": ""}, tmp_path)
    assert [images.find(ImageAddress(url)).key for url in urls] == [f"web/{name}" for name in names]

    run(monkeypatch, tmp_path, "--out", tmp_path / "web")
    assert len(server.requests) == 3 and "2 images are there already" in capsys.readouterr().out


def _column(texts):
    import pyarrow as pa

    return pa.chunked_array([pa.array(list(texts), pa.string())])


def test_what_fails_is_listed_and_tried_again(tmp_path, monkeypatch, server):
    server.routes = {
        "/good.png": status(200, encoded()),
        "/page.png": page("Sorry"),
        "/cut.png": status(200, encoded("JPEG")[:-200]),
        "/again.png": [status(404), status(200, encoded())],
    }
    names = ("good", "page", "cut", "again", "lost")
    rows = rows_file(tmp_path, *(f"{server.url}/{name}.png" for name in names))
    with pytest.raises(UserError, match=r"4 of 5 images were not downloaded: .*failed\.txt"):
        run(monkeypatch, rows, "--out", tmp_path / "web")
    failed = dict(line.split("\t") for line in (tmp_path / "web/failed.txt").read_text().splitlines())
    assert "not_an_image" in failed[f"{server.url}/page.png"] and "truncated" in failed[f"{server.url}/cut.png"]
    assert "404" in failed[f"{server.url}/lost.png"]
    server.routes["/page.png"] = server.routes["/cut.png"] = server.routes["/lost.png"] = status(200, encoded())
    run(monkeypatch, rows, "--out", tmp_path / "web")
    assert len(list((tmp_path / "web").iterdir())) == 5 and not (tmp_path / "web/failed.txt").exists()


def test_an_image_has_a_bound(tmp_path, monkeypatch, server):
    monkeypatch.setattr(image_download, "MAX_BYTES", 50)
    server.routes = {"/large.png": status(200, encoded())}
    with pytest.raises(UserError, match="too_large: more than 50 bytes"):
        run(monkeypatch, rows_file(tmp_path, f"{server.url}/large.png"), "--out", tmp_path / "web")
    assert sorted(path.name for path in (tmp_path / "web").iterdir()) == ["failed.txt"]


@pytest.mark.parametrize(
    ("images", "message"), [(["a.jpg"], "no image by an http"), (["s3://bucket/a.jpg"], "only s3://bucket/a.jpg")]
)
def test_without_addresses_there_is_nothing_to_download(tmp_path, monkeypatch, images, message):
    with pytest.raises(UserError, match=message):
        run(monkeypatch, rows_file(tmp_path, *images), "--out", tmp_path / "web")
