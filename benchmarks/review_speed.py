"""How fast the page of a review answers: a key to its effect on screen, and the first screen, in Chromium.

    python -m benchmarks.review_speed [--work DIR] [--only NAME ...]

A synthetic table of 10,000 and of 1,000,000 images, labels that a model contradicts, thumbnails drawn on request.
"""

import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from assay.apps.review.server import create_app
from assay.apps.review.session import ReviewSession


@contextmanager
def serving(session: ReviewSession) -> Iterator[str]:
    """Answer requests in a thread for the block, at the address that it yields."""
    closing, token = threading.Event(), secrets.token_urlsafe(8)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        app = create_app(session, token=token, port=port, closing=closing)
        config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}/{token}/"
        finally:
            closing.set()
            server.should_exit = True
            thread.join(5)
