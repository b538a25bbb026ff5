"""What every server of this program has: a socket, headers that protect its pages, a limit of bytes, and its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from assay.errors import PlanError
from assay.progress import kept_handler

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
LOCAL = ("127.0.0.1", "localhost")
SHARED = ("assay.apps", "static")
"""The package and the folder in it of what the pages of all servers have: colours, letters, elements."""
FAULT = "this is a fault of the program; the terminal has the lines on it."


class TooLargeError(Exception):
    """A body without a stated length that is too large."""


@contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket that listens; port 0 is any free one. Raises PlanError where the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            where = f"--port {port}" if host in LOCAL else f"--host {host} --port {port}"
            advice = "Name another port, or 0 for any free one" + ("." if host in LOCAL else ", or another address.")
            raise PlanError(f"{where}: cannot be used ({error.strerror}). {advice}") from error
        listening.listen(128)
        yield listening


def run_until_stopped(
    app: ASGIApp,
    listening: socket.socket,
    *,
    closing: threading.Event,
    started: Callable[[], None],
    ended: Callable[[], bool] = lambda: True,
    http: type[asyncio.Protocol] | Literal["auto"] = "auto",
) -> None:
    """Answer requests until Ctrl-C, SIGTERM or another thread sets `closing`, and then until `ended` returns true.

    `started` is called once the signals are heeded. For the main thread alone.
    """
    config = uvicorn.Config(
        app, http=http, log_level="error", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    # In a thread of its own, where uvicorn leaves the signals alone: this one waits for them.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    with set_by_signals(closing):
        try:
            thread.start()
            started()
            while not closing.wait(0.5) and thread.is_alive():
                pass
            while thread.is_alive() and not ended():
                time.sleep(0.02)
        finally:
            closing.set()
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # what is half computed is cut off: no fault
            server.should_exit = True
            thread.join(10)


@contextmanager
def set_by_signals(closing: threading.Event) -> Iterator[None]:
    """Have Ctrl-C and SIGTERM set an event during the block, and nothing else."""
    with kept_handler(signal.SIGINT), kept_handler(signal.SIGTERM):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: closing.set())
        yield


def limited(receive: Receive, most: int) -> Receive:
    """Return a channel that raises TooLargeError once a body has more bytes than this."""
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > most:
            raise TooLargeError
        return message

    return counted


def with_headers(send: Send, *, fixed: bool) -> Send:
    """Return a channel that adds `HEADERS`, and that an answer is not to be kept unless it is `fixed`."""

    async def added(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            headers = HEADERS | ({} if fixed else {"Cache-Control": "no-store"})
            further = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            message = {**message, "headers": [*message["headers"], *(h for h in further if h[0] not in given)]}
        await send(message)

    return added


def header_texts(scope: Scope) -> dict[str, str]:
    """Return the headers of a request as texts, by their names in small letters."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def foreign(headers: Mapping[str, str], port: int) -> str | None:
    """Return why a request does not come from this machine's browser and a page of this server; None where it does.

    A page of another site can reach 127.0.0.1 too, by a name that it lets point there (DNS rebinding): so the host and
    the origin that the browser names must be this server's.
    """
    hosts = [f"{host}:{port}" for host in LOCAL]
    if headers.get("host", "") not in hosts:
        return "this server answers to 127.0.0.1 alone."
    if headers.get("origin", f"http://{hosts[0]}") not in [f"http://{host}" for host in hosts]:
        return "a page of another origin may not ask."
    return cross_site(headers)


def cross_site(headers: Mapping[str, str]) -> str | None:
    """Return why a request that a browser makes for a page of another site is refused; None for any other."""
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return None
    return "a page of another site may not ask."
