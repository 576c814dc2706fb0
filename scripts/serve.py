"""Serve trained models: a chat page for the browser, and an OpenAI-compatible API.

    python -m scripts.serve --root results                      the run exported last: final and best
    python -m scripts.serve --model results/exported/mmca/final
    python -m scripts.serve --model A --model B                 two models, side by side in the page

Then open http://127.0.0.1:8000/, or point any OpenAI client at http://127.0.0.1:8000/v1. Requests are answered with
continuous batching; images and conversations are cached, so that later rounds compute only what is new.

The server listens on this machine only. For other machines give --host and an API key, in the environment
(VISUALCHAT_API_KEY) or in a file (--api-key-file), and put a reverse proxy with TLS in front of it.
"""

import argparse
import asyncio
import ipaddress
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.common.cli import parser
from scripts.common.errors import UserError, run_program

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette

    from scripts.serving.connections import ConnectionLimits

KEY_VARIABLE = "VISUALCHAT_API_KEY"
MEGABYTE = 1 << 20


def main() -> None:
    """Run the program."""
    args = arguments().parse_args()
    from scripts.serving.log_lines import bound_logs

    key = read_key(args.api_key_file)
    loopback = args.host in ("localhost", "::1") or args.host.startswith("127.")
    if not loopback and key is None:
        raise UserError(
            f"--host {args.host} makes the server reachable for others: set an API key in {KEY_VARIABLE} or "
            "--api-key-file, or leave out --host"
        )
    proxies = trusted_proxies(args)
    sock = listen(args.host, args.port)
    app = build(args, key, loopback)
    bound_logs()
    server = make_server(
        app, lambda: print(f"ready: open {address(sock)}", flush=True), connection_limits(args), proxies
    )
    server.run(sockets=[sock])


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    result = parser(__doc__)
    models = result.add_mutually_exclusive_group(required=True)
    help_model = "an exported model, or NAME=FOLDER; repeatable"
    models.add_argument("--model", action="append", metavar="FOLDER", help=help_model)
    models.add_argument("--root", type=Path, metavar="FOLDER", help="results root: serve the run exported last")
    result.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    result.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free port")
    result.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="also accept this host name")
    result.add_argument(
        "--trust-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="address of a proxy whose X-Forwarded-For names the client",
    )
    result.add_argument(
        "--api-key-file", type=Path, metavar="FILE", help="file with the API key that clients must send"
    )
    result.add_argument("--examples", type=Path, metavar="FILE", help="example dialogues of the page (a suite's JSON)")
    help_device = "default: the first GPU if any; spread: over all GPUs"
    result.add_argument("--device", choices=("auto", "cpu", "cuda", "spread"), default="auto", help=help_device)
    result.add_argument("--bits", type=int, choices=(4, 8), help="quantise the language model to so many bits")
    result.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: PyTorch's choice)")
    for name, default, text in (
        ("max-batch-size", 32, "requests that are answered at the same time"),
        ("max-batch-tokens", 65536, "requests in the batch times tokens of the longest: bounds the memory"),
        ("max-queue-size", 128, "requests that wait; more are refused with status 429"),
        ("timeout", 120, "seconds until a request times out"),
        ("head-timeout", 15, "seconds in which the head of a request must arrive"),
        ("body-timeout", 30, "seconds in which a body must arrive, beside one for every 32 kB"),
        ("write-timeout", 60, "seconds for which a client may read nothing of its answer"),
        ("idle-timeout", 60, "seconds after which an unused connection is closed"),
        ("max-connections", 800, "connections of all clients"),
        ("max-client-connections", 200, "connections of one client"),
        ("max-text-characters", 500_000, "characters in the texts of one request"),
        ("max-images", 32, "images in one request"),
        ("max-image-mb", 20, "size of one image"),
        ("max-body-mb", 32, "size of one request"),
        ("image-cache-mb", 512, "cache of computed images, on the model's device"),
        ("prefix-cache-mb", 512, "cache of conversations, on the model's device"),
        ("upload-mb", 256, "cache of uploaded images"),
    ):
        result.add_argument(
            f"--{name}", type=_positive, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    return result


def build(args: argparse.Namespace, key: str | None, loopback: bool) -> "Starlette":
    """Load the models and make the application.

    Raises:
        UserError: a model cannot be loaded, or the examples cannot be read.
    """
    import torch

    from scripts.serving.app import Limits, Service, create_app
    from scripts.serving.engine import EngineSettings
    from scripts.serving.examples import find_examples, read_examples, results_root, training_summary
    from scripts.serving.request_guard import LOOPBACK, BodyLimits
    from scripts.serving.served_model import ServedModel

    if args.threads:
        torch.set_num_threads(args.threads)
    limits = Limits(
        timeout=args.timeout,
        max_images=args.max_images,
        max_image_bytes=args.max_image_mb * MEGABYTE,
        max_text_characters=args.max_text_characters,
        bodies=BodyLimits(max_bytes=args.max_body_mb * MEGABYTE, timeout=args.body_timeout),
        upload_cache_bytes=args.upload_mb * MEGABYTE,
    )
    settings = EngineSettings(
        max_batch_size=args.max_batch_size,
        max_queue_size=args.max_queue_size,
        image_cache_bytes=args.image_cache_mb * MEGABYTE,
        prefix_cache_bytes=args.prefix_cache_mb * MEGABYTE,
        max_batch_tokens=args.max_batch_tokens,
    )
    served: list[ServedModel] = []
    training: dict[str, dict[str, Any]] = {}
    folders = model_folders(args)
    for name, folder in folders.items():
        print(f"loading {name} from {folder}", file=sys.stderr)
        served.append(ServedModel.load(name, folder, args.device, args.bits, settings))
        training[name] = training_summary(results_root(folder), served[-1].about["run"])
    root = results_root(next(iter(folders.values())))
    examples = read_examples(args.examples) if args.examples else find_examples(root)
    hosts = [*LOOPBACK, args.host, *args.allow_host] if loopback else args.allow_host or None
    service = Service(served, limits, examples, training)
    return create_app(service, key, hosts, trusted_proxies(args))


def connection_limits(args: argparse.Namespace) -> "ConnectionLimits":
    """The limits of connections; their number is what the limit of open files allows."""
    from scripts.serving.connections import ConnectionLimits, fitting_connections

    return ConnectionLimits(
        head_timeout=args.head_timeout,
        idle_timeout=args.idle_timeout,
        write_timeout=args.write_timeout,
        max_connections=fitting_connections(args.max_connections),
        max_client_connections=args.max_client_connections,
    )


def trusted_proxies(args: argparse.Namespace) -> frozenset[str]:
    """The clients that are proxies, in the form of `client_of_address`.

    Raises:
        UserError: one is not an IP address.
    """
    from scripts.serving.clients import client_of_address

    for text in args.trust_proxy:
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise UserError(f"--trust-proxy {text}: give the IP address of the proxy") from None
    return frozenset(map(client_of_address, args.trust_proxy))


def model_folders(args: argparse.Namespace) -> dict[str, Path]:
    """The folders of the models to serve, by the name that requests use.

    Raises:
        UserError: two models have the same name, or nothing was exported below the root.
    """
    from scripts.serving.served_model import newest_export, served_name

    folders: dict[str, Path] = {}
    for text in map(str, newest_export(args.root)) if args.root else args.model:
        name, sign, folder = text.partition("=")
        path = Path(folder)
        if not sign or Path(text).exists():  # a folder may have a "=" in its own name
            name, path = served_name(Path(text)), Path(text)
        if name in folders:
            raise UserError(f"{folders[name]} and {path} have the same name {name}; name one of them as NAME=FOLDER")
        folders[name] = path
    return folders


def read_key(path: Path | None) -> str | None:
    """The API key from a file or the environment, `None` if there is none.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    if path is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the API key in {path} cannot be read: {error}") from None
    if not key:
        raise UserError(f"{path} is empty; it must hold an API key")
    return key


def listen(host: str, port: int) -> socket.socket:
    """Bind a socket. Done before models are loaded, so that a port in use is reported immediately.

    Raises:
        UserError: the address is not available.
    """
    try:
        family, kind, _, _, socket_address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(socket_address)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot listen on {host}:{port}: {error}; choose another --port") from None
    return sock


def make_server(
    app: "Starlette",
    on_ready: Callable[[], None] = lambda: None,
    limits: "ConnectionLimits | None" = None,
    trusted: frozenset[str] = frozenset(),
) -> "uvicorn.Server":
    """The HTTP server of an application; it calls `on_ready` when it accepts connections.

    `trusted` are the proxies of `trusted_proxies`.
    """
    import uvicorn

    from scripts.serving.connections import BACKLOG, ConnectionLimits, bounded_protocol, quiet_accept

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            quiet_accept(asyncio.get_running_loop())
            await super().startup(sockets)
            if self.started:
                on_ready()

    limits = limits or ConnectionLimits()
    # By default longer than clients keep idle connections: a server that closes one first may lose a request that is
    # being sent.
    config = uvicorn.Config(
        app,
        http=bounded_protocol(limits, trusted),
        loop="asyncio",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=int(limits.idle_timeout),
        backlog=BACKLOG,
        proxy_headers=False,
        ws="none",
    )
    return Server(config)


def address(sock: socket.socket) -> str:
    """The URL of the page served at `sock`."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return int(text)


if __name__ == "__main__":
    run_program(main)
