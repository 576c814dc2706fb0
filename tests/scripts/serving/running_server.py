"""A real server with the tiny trained model, for tests that send requests."""

import base64
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from scripts.serve import address, listen, make_server
from scripts.serving.app import Limits, Service, create_app
from scripts.serving.connections import ConnectionLimits, ConnectionTable
from scripts.serving.engine import EngineSettings
from scripts.serving.served_model import ServedModel

DEFAULT = Limits(timeout=600)
COLOUR, COUNT = "Which colour is the first image?", "How many images are there?"


@dataclass(frozen=True)
class Server:
    """`url` ends in a slash; `connections` are those that are open."""

    url: str
    service: Service
    connections: ConnectionTable


@contextmanager
def serving(
    *models: ServedModel,
    limits: Limits = DEFAULT,
    connections: ConnectionLimits | None = None,
    key: str | None = None,
    hosts=None,
    trusted=frozenset(),
    examples=(),
    training=None,
):
    """Serve models on a free port until the block ends."""
    service = Service(models, limits, examples, training)
    sock = listen("127.0.0.1", 0)
    app = create_app(service, key, hosts, trusted)
    server = make_server(app, limits=connections, trusted=trusted)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    until = time.monotonic() + 300
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until
        time.sleep(0.02)
    try:
        yield Server(address(sock), service, server.config.http.table)
    finally:
        server.should_exit = True
        thread.join(60)


def load(folder: Path, name: str = "tiny", **settings: int) -> ServedModel:
    """A served model; `settings` are those of the engine."""
    return ServedModel.load(name, folder, "cpu", None, EngineSettings(**settings))


def png(colour: str, size: tuple[int, int] = (40, 30)) -> bytes:
    """A plain-coloured image as a file."""
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def shown(*colours: str) -> list[dict]:
    """Image parts of plain colours."""
    return [{"type": "image_url", "image_url": {"url": data_url(png(colour))}} for colour in colours]


def question(text: str, *colours: str) -> dict:
    """A user message with images and a question."""
    return {"role": "user", "content": [*shown(*colours), {"type": "text", "text": text}]}
