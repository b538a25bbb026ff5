"""The server of a review: what the page asks for, and who may ask."""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import threading
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from assay.apps.review.decisions import Decision, Kind
from assay.apps.review.session import ReviewSession
from assay.apps.serving import (
    FAULT,
    SHARED,
    TooLargeError,
    foreign,
    header_texts,
    limited,
    listen,
    run_until_stopped,
    with_headers,
)
from assay.errors import AssayError, RunError, SpaceError

STATIC = Path(__file__).parent / "static"
LARGEST_BODY = 2_000_000  # bytes
TOO_LARGE = f"a request may have {LARGEST_BODY:,} bytes. Send fewer decisions at a time."
SIDES = (16, 512)  # of a thumbnail, in pixels
HEARTBEAT = 15.0  # seconds of silence after which a window hears that the server is there


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _OneDecision(_Strict):
    row: int
    head: str
    tag: str | None = None
    action: Kind
    new: str | None = None


class _Decide(_Strict):
    decisions: list[_OneDecision] = Field(min_length=1)


class _Rows(_Strict):
    rows: list[int]


class _Audit(_Strict):
    n: int = Field(default=100, ge=1, le=1_000_000)


def serve(session: ReviewSession, *, port: int, started: Callable[[str], None]) -> None:
    """Answer requests on 127.0.0.1 until Ctrl-C or SIGTERM; `started` is called with the address to open.

    Port 0 is any free one. Raises PlanError where the port is taken.
    """
    with listen("127.0.0.1", port) as listening:
        port, token, closing = listening.getsockname()[1], secrets.token_urlsafe(16), threading.Event()
        app = create_app(session, token=token, port=port, closing=closing)
        run_until_stopped(app, listening, closing=closing, started=lambda: started(f"http://127.0.0.1:{port}/{token}/"))


def create_app(session: ReviewSession, *, token: str, port: int, closing: threading.Event) -> ASGIApp:
    """Return the application; windows stop listening once `closing` is set."""
    api = _Api(session, closing)
    routes = [
        Route("/api/state", _answer(api.state)),
        Route("/api/queue", _answer(api.queue)),
        Route("/api/rows", _answer(api.rows), methods=["POST"]),
        Route("/api/image/{row:int}", _answer(api.details)),
        Route("/api/decide", _answer(api.decide), methods=["POST"]),
        Route("/api/undo", _answer(api.undo), methods=["POST"]),
        Route("/api/redo", _answer(api.redo), methods=["POST"]),
        Route("/api/random_audit", _answer(api.random_audit), methods=["POST"]),
        Route("/api/events", api.events),
        Route("/api/map", _answer(api.map)),
        Route("/api/classes", _answer(api.classes)),
        Route("/api/train", _answer(api.training), methods=["GET", "POST"]),
        Route("/gradcam/{row:int}", _answer(api.gradcam)),
        Route("/thumb/{row:int}", _answer(api.thumbnail)),
        Route("/image/{row:int}", _answer(api.image)),
        Mount("/", StaticFiles(directory=STATIC, html=True, packages=[SHARED])),
    ]
    inside = Starlette(routes=[Mount(f"/{token}", routes=routes)], exception_handlers={HTTPException: _missing})
    return Guard(inside, token=token, port=port)


async def _missing(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return JSONResponse({"error": "there is nothing at this address."}, status)


# Who may ask.


class Guard:
    """Lets requests of this machine's browser through that know the token, and no others."""

    def __init__(self, app: ASGIApp, *, token: str, port: int) -> None:
        self.app, self.token, self.port = app, token.encode(), port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # a web socket is refused
        refusal = self._refusal(scope, header_texts(scope))
        send = with_headers(send, fixed="/api/" not in scope["path"])
        if refusal is not None:
            await JSONResponse({"error": refusal[1]}, refusal[0])(scope, receive, send)
            return
        await self.app(scope, limited(receive, LARGEST_BODY), send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Return the status and the reason for refusing a request; None where it may pass."""
        if reason := foreign(headers, self.port):
            return 403, reason
        first = scope["path"].split("/", 2)[1] if scope["path"].startswith("/") else ""
        if not hmac.compare_digest(first.encode(), self.token):
            return 404, "there is nothing at this address. Open the one that `assay review` printed."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            return 413, TOO_LARGE
        return None


STATUS: dict[type[Exception], int] = {
    TooLargeError: 413,
    SpaceError: 507,
    RunError: 409,
    AssayError: 422,
    ValueError: 422,
}
"""The first that fits an error; of ValueErrors those of a body that is not what it should be."""


# What they may ask.


def _answer(work: Callable[[Request, Any], Response]) -> Callable[[Request], Any]:
    """Return an endpoint that does blocking work in a thread, and turns what the user can mend into a status."""

    async def endpoint(request: Request) -> Response:
        try:
            body = await request.body() if request.method == "POST" else b""
            return await run_in_threadpool(work, request, body)
        except Exception as error:
            status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
            if status == 500:
                traceback.print_exc()
            text = {413: TOO_LARGE, 500: FAULT}.get(status, str(error))
            return JSONResponse({"error": text}, status)

    return endpoint


class _Api:
    """The answers, from the session."""

    def __init__(self, session: ReviewSession, closing: threading.Event) -> None:
        self.session, self.closing = session, closing

    def state(self, request: Request, body: bytes) -> Response:
        self.session.refresh()
        return JSONResponse(self.session.state())

    def queue(self, request: Request, body: bytes) -> Response:
        rows, version = self.session.queue(request.query_params.get("id", ""), request.query_params.get("group", ""))
        content = np.ascontiguousarray(rows, dtype="<i4").tobytes()
        return Response(content, media_type="application/octet-stream", headers={"X-Assay-Version": str(version)})

    def rows(self, request: Request, body: bytes) -> Response:
        return JSONResponse(self.session.rows(_Rows.model_validate_json(body).rows))

    def details(self, request: Request, body: bytes) -> Response:
        return JSONResponse(self.session.details(request.path_params["row"]))

    def decide(self, request: Request, body: bytes) -> Response:
        given = _Decide.model_validate_json(body).decisions
        version, stored = self.session.decide(
            [Decision(one.row, one.head, one.tag, one.action, one.new) for one in given]
        )
        return JSONResponse({"version": version, "stored": len(stored.edits)})

    def undo(self, request: Request, body: bytes) -> Response:
        version, stored = self.session.undo()
        return JSONResponse({"version": version, "rows": list(stored.rows)})

    def redo(self, request: Request, body: bytes) -> Response:
        version, stored = self.session.redo()
        return JSONResponse({"version": version, "rows": list(stored.rows)})

    def random_audit(self, request: Request, body: bytes) -> Response:
        wanted = _Audit.model_validate_json(body or b"{}")
        return JSONResponse({"version": self.session.draw_audit(wanted.n)})

    def map(self, request: Request, body: bytes) -> Response:
        content = np.ascontiguousarray(self.session.map(), dtype="<f4").tobytes()
        return Response(content, media_type="application/octet-stream")

    def classes(self, request: Request, body: bytes) -> Response:
        values = self.session.classes(int(request.query_params.get("head", "0")))
        content = np.ascontiguousarray(values, dtype="<i4").tobytes()
        return Response(content, media_type="application/octet-stream")

    def training(self, request: Request, body: bytes) -> Response:
        """Begin to train where that is posted; say where it stands."""
        trainer = self.session.trainer
        if trainer is None:
            raise RunError("There is nothing to train here.")
        if request.method == "POST":
            trainer.start()
        return JSONResponse({**trainer.to_json(), "command": self.session.command})

    def gradcam(self, request: Request, body: bytes) -> Response:
        row, drawn = self._row(request), self.session.gradcam
        if drawn is None:
            raise RunError("There is no model yet whose reasons could be drawn.")
        head, name = request.query_params.get("head", ""), request.query_params.get("class", "")
        return Response(drawn.draw(self.session.images.path(row), head=head, name=name), media_type="image/png")

    def thumbnail(self, request: Request, body: bytes) -> Response:
        side = min(max(int(request.query_params.get("size", "128")), SIDES[0]), SIDES[1])
        return self._image(*self.session.images.thumbnail(self._row(request), side))

    def image(self, request: Request, body: bytes) -> Response:
        return self._image(*self.session.images.whole(self._row(request)))

    def _row(self, request: Request) -> int:
        row = int(request.path_params["row"])
        self.session.require(row)
        return row

    def _image(self, content: bytes, whole: bool) -> Response:
        caching = "private, max-age=86400, immutable" if whole else "no-store"
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": caching})

    async def events(self, request: Request) -> Response:
        """Tell a window of every version, once a fifth of a second at most."""

        async def stream() -> AsyncIterator[str]:
            sent, silence = -1, 0.0
            while not self.closing.is_set():
                if self.session.version != sent:
                    sent, silence = self.session.version, 0.0
                    progress = await run_in_threadpool(self.session.progress)
                    yield f"data: {json.dumps({'version': sent, 'progress': progress})}\n\n"
                elif silence > HEARTBEAT:
                    silence = 0.0
                    yield ": \n\n"
                await asyncio.sleep(0.2)
                silence += 0.2

        return StreamingResponse(stream(), media_type="text/event-stream")
