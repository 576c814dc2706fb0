"""Serve trained models: a chat in the browser, and OpenAI's interface for programs.

    python -m scripts.serve --root results                      the run exported last: final and best
    python -m scripts.serve --model results/exported/mmca/final
    python -m scripts.serve --model A --model B                 two models, side by side in the page

Then open http://127.0.0.1:8000/, or point any OpenAI client at http://127.0.0.1:8000/v1. Many conversations are
answered at once, a token for each at every step; images and conversations that were seen before are not computed again.

It listens on this machine alone. For others give --host and a key, in the environment (VISUALCHAT_API_KEY) or as a
file (--api-key-file), and put a server that speaks TLS before it.
"""

import argparse
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

KEY = "VISUALCHAT_API_KEY"
MEGABYTE = 1 << 20


def main() -> None:
    args = arguments().parse_args()
    key = read_key(args.key_file)
    loopback = args.host in ("localhost", "::1") or args.host.startswith("127.")
    if not loopback and key is None:
        raise UserError(
            f"listening on {args.host} lets others in: set a key in {KEY} or --api-key-file, or leave out --host"
        )
    sock = listen(args.host, args.port)
    app = build(args, key, loopback)
    make_server(app, lambda: print(f"ready: open {address(sock)}", flush=True)).run(sockets=[sock])


def arguments() -> argparse.ArgumentParser:
    result = parser(__doc__)
    models = result.add_mutually_exclusive_group(required=True)
    what = "an exported model, or NAME=FOLDER; may be repeated"
    models.add_argument("--model", action="append", metavar="FOLDER", help=what)
    models.add_argument("--root", type=Path, metavar="FOLDER", help="results root: serve the run exported last")
    result.add_argument("--host", default="127.0.0.1", help="where to listen (default: this machine alone)")
    result.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    result.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="also answer to this name")
    result.add_argument("--api-key-file", type=Path, metavar="FILE", help="file that holds the key clients must send")
    result.add_argument("--examples", type=Path, metavar="FILE", help="dialogues to offer in the page (a suite's JSON)")
    result.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "spread"), default="auto", help="default: a GPU if any"
    )
    result.add_argument("--bits", type=int, choices=(4, 8), help="load the language model in so many bits")
    result.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    for name, default, what in (
        ("max-batch-size", 32, "conversations answered at once"),
        ("max-batch-tokens", 65536, "conversations at once times the longest, in tokens: bounds their memory"),
        ("max-queue-size", 128, "questions that may wait; more are told to come back (429)"),
        ("timeout", 120, "seconds after which a question is given up"),
        ("max-images", 32, "images in one request"),
        ("max-image-mb", 20, "size of one image"),
        ("max-body-mb", 32, "size of one request"),
        ("image-cache-mb", 512, "computed images that are kept, on the model's device"),
        ("prefix-cache-mb", 512, "conversations that are kept, on the model's device"),
        ("upload-mb", 256, "uploaded images that are kept"),
    ):
        result.add_argument(
            f"--{name}", type=_positive, default=default, metavar="N", help=f"{what} (default: {default})"
        )
    return result


def build(args: argparse.Namespace, key: str | None, loopback: bool) -> "Starlette":
    """Load the models and make the application.

    Raises:
        UserError: a model cannot be served.
    """
    import torch

    from scripts.serving.app import Limits, Service, create_app
    from scripts.serving.engine import EngineSettings
    from scripts.serving.examples import find_examples, read_examples, results_root, training_summary
    from scripts.serving.request_guard import LOOPBACK
    from scripts.serving.served_model import ServedModel

    if args.threads:
        torch.set_num_threads(args.threads)
    limits = Limits(
        timeout=args.timeout,
        images=args.max_images,
        image=args.max_image_mb * MEGABYTE,
        body=args.max_body_mb * MEGABYTE,
        uploads=args.upload_mb * MEGABYTE,
    )
    settings = EngineSettings(
        max_batch_size=args.batch,
        max_queue_size=args.queue,
        image_cache_bytes=args.image_cache_mb * MEGABYTE,
        prefix_cache_bytes=args.prefix_cache_mb * MEGABYTE,
        max_batch_tokens=args.batch_tokens,
    )
    served, about = [], {}
    folders = chosen(args)
    for name, folder in folders.items():
        print(f"loading {name} from {folder}", file=sys.stderr)
        served.append(ServedModel.load(name, folder, args.device, args.bits, settings))
        about[name] = training_summary(results_root(folder), served[-1].about["run"])
    root = results_root(next(iter(folders.values())))
    examples = read_examples(args.examples) if args.examples else find_examples(root)
    hosts = [*LOOPBACK, args.host, *args.allow_host] if loopback else args.allow_host or None
    service = Service(served, limits, examples, about)
    return create_app(service, key, hosts)


def chosen(args: argparse.Namespace) -> dict[str, Path]:
    """The folders to serve by the name under which they are served.

    Raises:
        UserError: two have the same name, or nothing was exported below the root.
    """
    from scripts.serving.served_model import newest, served_name

    folders: dict[str, Path] = {}
    for text in map(str, newest(args.root)) if args.root else args.model:
        name, sign, folder = text.partition("=")
        # A folder may have a "=" in its own name.
        name, folder = (
            (name, Path(folder)) if sign and not Path(text).exists() else (served_name(Path(text)), Path(text))
        )
        if name in folders:
            raise UserError(f"{folders[name]} and {folder} would both be called {name}; name one as NAME=FOLDER")
        folders[name] = folder
    return folders


def read_key(path: Path | None) -> str | None:
    """The key from the environment or a file, None if there is none.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    if path is None:
        return os.environ.get(KEY) or None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the key in {path} cannot be read: {error}") from None
    if not key:
        raise UserError(f"{path} holds no key")
    return key


def listen(host: str, port: int) -> socket.socket:
    """A socket, bound before a model is loaded, so that a port in use is said at once.

    Raises:
        UserError: the address cannot be had.
    """
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port}: {error}; choose another --port") from None
    return sock


def make_server(app: "Starlette", on_ready: Callable[[], None] = lambda: None) -> "uvicorn.Server":
    """The HTTP server of an application; it calls `on_ready` once it listens."""
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_ready()

    # Clients keep a connection for some seconds; a server that closed it first could cut off a request on its way.
    return Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5, timeout_keep_alive=60, ws="none")
    )


def address(sock: socket.socket) -> str:
    """The address of a page served at `sock`."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


if __name__ == "__main__":
    run_program(main)
