"""What the Hugging Face hub and Google Drive answer, as far as a download goes."""

import json
import re

import requests
from requests.adapters import HTTPAdapter

from scripts.common.files import bytes_sha256
from tests.scripts.fetching.server import File, Server, page, status

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hub(server: Server, repository: str, files: dict[str, bytes], token: str = "", revision: str = "") -> None:
    """Let `server` be a hub with one data set; where `token` is given, its files need it."""
    siblings = [
        {
            "rfilename": name,
            "size": len(data),
            "blobId": "0" * 40,
            "lfs": {"size": len(data), "sha256": bytes_sha256(data), "pointerSize": 130} if _is_large(name) else None,
        }
        for name, data in files.items()
    ]
    card = {"id": repository, "sha": COMMIT, "gated": bool(token) and "manual", "siblings": siblings}
    asked = f"/revision/{revision}" if revision else ""
    server.routes[f"/api/datasets/{repository}{asked}"] = status(
        200, json.dumps(card).encode(), Content_Type="application/json"
    )
    for name, data in files.items():
        file = File(data, etag=f'"{bytes_sha256(data)}"')
        route = f"/datasets/{repository}/resolve/{COMMIT}/{name}"
        server.routes[route] = _guarded(file, token) if token else file


def _is_large(name: str) -> bool:
    return not name.endswith(".md")


def _guarded(file: File, token: str):
    def answer(handler) -> None:
        given = handler.headers.get("Authorization", "")
        if given == f"Bearer {token}":
            file(handler)
        else:
            status(403 if given else 401, b"Access to this is restricted.", X_Error_Code="GatedRepo")(handler)

    return answer


def through_loopback(server: Server, monkeypatch) -> None:
    """Send every request of `requests` that is meant for Google to `server`, with the path it has there."""
    real = HTTPAdapter.send

    def send(adapter, request, *arguments, **options):
        request.url = re.sub(r"https://[a-z.]+\.google(usercontent)?\.com", server.url, request.url)
        return real(adapter, request, *arguments, **options)

    monkeypatch.setattr(HTTPAdapter, "send", send)
    assert requests.Session().adapters["https://"].send.__func__ is send


def drive_file(data: bytes, name: str = "file.zip") -> File:
    """A file as Drive gives it."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return File(data, modified="Tue, 14 Nov 2023 22:13:20 GMT", headers=headers)


def drive_question(file_id: str, uuid: str = "12-34"):
    """The page that asks whether one wants a file that was not scanned for viruses."""
    fields = {"id": file_id, "export": "download", "confirm": "t", "uuid": uuid}
    inputs = "".join(f'<input type="hidden" name="{name}" value="{value}">' for name, value in fields.items())
    return page(
        "<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>"
        '<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
        f'<input type="submit" value="Download anyway"/>{inputs}</form></body></html>'
    )


def drive_refusal(reason: str):
    """The page that says why there is no file."""
    return page(
        "<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>"
        f'<p class="uc-error-caption">Sorry</p>\n<p class="uc-error-subcaption">{reason}</p></body></html>'
    )


def drive_folder(files: dict[str, str]):
    """The listing of a folder; files by name with their ids."""
    links = "".join(
        f'<a href="https://drive.google.com/file/d/{file_id}/view"><div>{name}</div></a>'
        for name, file_id in files.items()
    )
    return page(f"<html><head><title>OCR-VQA</title></head><body>{links}</body></html>")
