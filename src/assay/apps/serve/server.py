"""The server of predictions: what may be asked of it, by whom, and how much at a time."""

from __future__ import annotations

import asyncio
import hmac
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from assay.apps.serve.batches import Batches
from assay.apps.serve.explanations import Explainer, ExplanationJson
from assay.apps.serve.metrics import Metrics
from assay.apps.serve.openapi import document
from assay.apps.serve.requests import Limits, images_of
from assay.apps.serving import FAULT, SHARED, TooLargeError, cross_site, foreign, header_texts, limited, with_headers
from assay.arrays import Floats
from assay.errors import AssayError, ImageError
from assay.export.submission_form import CALIBRATE_FIRST
from assay.images.decode import HeldImage, size_of
from assay.labels.space import Head, LabelSpace
from assay.predictions.conformal import set_thresholds
from assay.predictions.novelty import ranks
from assay.predictions.predictor import Decoded, Predictor
from assay.progress import cores

STATIC = Path(__file__).parent / "static"
WORK = ("/predict", "/explain")
SECRET = (*WORK, "/model", "/metrics")
"""What a token is needed for, where there is one."""
PROMETHEUS = "text/plain; version=0.0.4"
USUAL = {
    "Not Found": "there is nothing at this address. GET /docs lists what there is.",
    "Method Not Allowed": "this address is not asked by that method. GET /docs lists what there is.",
}
"""What Starlette says by itself, and what the answer says."""
ENDING = "the server is being stopped. Ask another one, or again later."


@dataclass(frozen=True)
class Access:
    """Who may ask: those that know the token; without one, on an address of this machine, its own browser alone."""

    port: int
    token: str | None = None
    local: bool = True

    def refusal(self, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """Return the status and the reason for refusing a request; None where it may pass."""
        reason = foreign(headers, self.port) if self.local and self.token is None else cross_site(headers)
        if reason:
            return 403, reason
        if self.token is None or path not in SECRET:
            return None
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self.token.encode()):
            return None
        return 401, "this server asks for a token. Send it as the header `Authorization: Bearer TOKEN`."


class Output(NamedTuple):
    """Probabilities (W,) of an image, and its distance to the training images; NaN where the model keeps none."""

    probabilities: Floats
    distance: float


@dataclass(frozen=True, eq=False)
class Service:
    """A model that answers requests, within limits; `explainer` is of a model of one network."""

    name: str
    predictor: Predictor
    explainer: Explainer | None = None
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)

    @property
    def space(self) -> LabelSpace:
        return self.predictor.saved.space

    @property
    def compares(self) -> bool:
        """Whether the model keeps training images by which others are foreign."""
        uncertainty = self.predictor.saved.uncertainty
        return uncertainty is not None and len(uncertainty.examples) > 0

    def compute(self, images: Sequence[Decoded]) -> list[Output]:
        """Return probabilities and distance of each decoded image, as `assay predict` computes them.

        They go through the network by 32, 16, 8, 4, 2 and 1: torch keeps memory for each size of a batch that it met.
        """
        outputs: list[Output] = []
        while rest := len(images) - len(outputs):
            size, began = 1 << (rest.bit_length() - 1), time.perf_counter()
            part: list[Decoded | str] = list(images[len(outputs) : len(outputs) + size])
            made = self.predictor.predict([str(number) for number in range(size)], part, distances=self.compares)
            self.metrics.batch(size, time.perf_counter() - began)
            distances = np.full(size, np.nan, np.float32) if made.distances is None else made.distances
            outputs += [Output(*row) for row in zip(made.probabilities, distances, strict=True)]
        return outputs

    def require_readable(self, image: HeldImage) -> None:
        """Raise HTTPException for an image that has too many pixels, or whose size cannot be read."""
        try:
            width, height = size_of(image)
        except ImageError as error:
            raise HTTPException(422, f"{image.name}: {error}.") from error
        if width * height > self.limits.pixels:
            raise HTTPException(
                413, f"{image.name}: has {width} x {height} pixels; {self.limits.pixels:,} are the most that are read."
            )

    def decode(self, image: HeldImage) -> Decoded:
        """Return an image as the networks take it. Raises HTTPException for one that is too large or unreadable."""
        self.require_readable(image)
        decoded = self.predictor.decode(image)
        if isinstance(decoded, str):
            raise HTTPException(422, f"{image.name}: {decoded}.")
        return decoded

    def set_cuts(self, coverage: float) -> Floats:
        """Return the probability (W,) from which each class is in the set that holds the true one so often.

        Raises HTTPException where the model keeps nothing to fit it by.
        """
        uncertainty = self.predictor.saved.uncertainty
        if uncertainty is None:
            raise HTTPException(422, f"coverage: this model keeps nothing to tell by how sure it is. {CALIBRATE_FIRST}")
        cuts = (
            set_thresholds(cells, coverage, head.size, by_class=False)
            for cells, head in zip(uncertainty.cells, self.space, strict=True)
        )
        return np.concatenate(list(cuts))

    def answer(
        self, probabilities: Floats, *, top: int | None = None, set_cuts: Floats | None = None
    ) -> dict[str, dict[str, object]]:
        """Return the answer of each head: its class or tags, and its most probable classes, the first `top`.

        With `set_cuts` (W,), also the set of classes that are as probable as these.
        """
        cuts = self.predictor.saved.decision_rule.thresholds
        return {
            head.name: _head_answer(
                head, probabilities[at], cuts[at], top, set_cuts=None if set_cuts is None else set_cuts[at]
            )
            for head, at in self.space.each()
        }

    def unlike_training(self, distance: float) -> dict[str, float]:
        """Return from 0 to 1 how foreign an image is, as a field of its answer; none where the model cannot tell."""
        if not self.compares:
            return {}
        assert self.predictor.saved.uncertainty is not None
        (rank,) = ranks(np.array([distance]), self.predictor.saved.uncertainty.distances)
        return {"unlike_training": round(float(rank), 4)}

    def about(self) -> dict[str, object]:
        """Return what a client may want to know of the model."""
        return {
            "model": self.name,
            "heads": [{"name": one.name, "kind": one.kind, "classes": list(one.classes)} for one in self.space],
            "limits": self.limits.model_dump(),
            "sets": self.predictor.saved.uncertainty is not None,
            "explains": self.explainer is not None,
            "compared": self.explainer.neighbours if self.explainer else 0,
        }


def _head_answer(
    head: Head, probabilities: Floats, cuts: Floats, top: int | None, *, set_cuts: Floats | None
) -> dict[str, object]:
    order = np.argsort(-probabilities, kind="stable").tolist()
    predicted = head.classes_of(head.decide(probabilities[None], cuts[None])[0])
    names = [head.classes[code] for code in order if code in predicted]
    answer: dict[str, object] = {
        "label": names[0] if head.multiclass else names,
        "probabilities": {head.classes[code]: float(probabilities[code]) for code in order[:top]},
    }
    if set_cuts is not None:
        answer["set"] = [head.classes[code] for code in order if probabilities[code] >= set_cuts[code]]
    return answer


class Server:
    """The application; `batches` and `pool` are threads, which `close` ends."""

    def __init__(self, service: Service, access: Access, closing: threading.Event) -> None:
        """Begin to accept requests, until `closing` is set."""
        self.service, self.access, self.closing = service, access, closing
        self.batches: Batches[Decoded, Output] = Batches(service.compute)
        self.pool = ThreadPoolExecutor(cores() + 1)
        routes = [
            Route("/predict", self._predict, methods=["POST"]),
            Route("/explain", self._explain, methods=["POST"]),
            Route("/model", lambda _: JSONResponse(service.about())),
            Route("/healthz", lambda _: JSONResponse({"status": "ok"})),
            Route("/readyz", self._ready),
            Route("/metrics", lambda _: PlainTextResponse(service.metrics.text(), media_type=PROMETHEUS)),
            Route("/openapi.json", lambda _: JSONResponse(document(token=access.token is not None))),
            Route("/docs", lambda _: FileResponse(STATIC / "docs.html")),
            Mount("/", StaticFiles(directory=STATIC, html=True, packages=[SHARED])),
        ]
        self._inside = Starlette(routes=routes, exception_handlers={HTTPException: _refused, Exception: _failed})

    @property
    def idle(self) -> bool:
        return self.service.metrics.running == 0

    def close(self) -> None:
        self.batches.close()
        self.pool.shutdown()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it; count it."""
        if scope["type"] != "http":
            return  # a web socket is refused
        began, metrics, path, status = time.monotonic(), self.service.metrics, scope["path"], 500

        async def counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await sending(message)

        sending = with_headers(send, fixed=path not in (*SECRET, "/readyz"))
        headers, working = header_texts(scope), path in WORK
        refusal = self._refusal(path, headers)
        metrics.run(working)
        try:
            if refusal is not None:
                if headers.get("expect", "") == "" and refusal[0] == 413:
                    await _drain(receive, 4 * self.service.limits.bytes)
                await _error(*refusal)(scope, receive, counted)
            else:
                await self._inside(scope, limited(receive, self.service.limits.bytes), counted)
        finally:
            metrics.run(-working)
            metrics.request(path, status, time.monotonic() - began)

    def _refusal(self, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
        if (refusal := self.access.refusal(path, headers)) or path not in WORK:
            return refusal
        limits = self.service.limits
        if self.closing.is_set():
            return 503, ENDING
        if self.service.metrics.running >= limits.requests:
            return 503, f"{limits.requests} requests are being answered, as many as may be. Ask again in a second."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limits.bytes:
            return 413, self._too_large
        if headers.get("content-encoding", "identity") != "identity":
            return 415, "a compressed body is not read. Send it as it is."
        return None

    @property
    def _too_large(self) -> str:
        return f"a request may have {self.service.limits.bytes:,} bytes. Send fewer or smaller images at a time."

    async def _ready(self, request: Request) -> Response:
        if self.closing.is_set() or not self.batches.alive:
            return _error(503, ENDING)
        return JSONResponse({"status": "ready"})

    async def _predict(self, request: Request) -> Response:
        top, coverage = _number(request.query_params.get("top")), _share(request.query_params.get("coverage"))
        set_cuts = None if coverage is None else self.service.set_cuts(coverage)
        images = await self._images(request, self.service.limits.images)
        async with self._in_time():
            loop = asyncio.get_running_loop()
            work = (loop.run_in_executor(self.pool, self.service.decode, image) for image in images)
            decoded = await asyncio.gather(*work)
            rows = await asyncio.gather(*(asyncio.wrap_future(self.batches.submit(one)) for one in decoded))
        answers = [
            {
                "image": image.name,
                "heads": self.service.answer(row.probabilities, top=top, set_cuts=set_cuts),
                **self.service.unlike_training(row.distance),
            }
            for image, row in zip(images, rows, strict=True)
        ]
        return JSONResponse({"model": self.service.name, "predictions": answers})

    async def _explain(self, request: Request) -> Response:
        explainer = self.service.explainer
        if explainer is None:
            raise HTTPException(
                404, "this model is of several networks, and each looks at an image in a way of its own."
            )
        (image,) = await self._images(request, 1)

        def work() -> ExplanationJson:
            self.service.require_readable(image)
            return explainer.explain(image, request.query_params.getlist("class"))

        async with self._in_time():
            try:
                made = await asyncio.get_running_loop().run_in_executor(self.pool, work)
            except AssayError as error:
                raise HTTPException(422, str(error)) from error
        return JSONResponse({"image": image.name, **made})

    async def _images(self, request: Request, most: int) -> list[HeldImage]:
        """Return the images of a request, one at least. Raises HTTPException."""
        try:
            async with asyncio.timeout(self.service.limits.seconds):
                body = await request.body()
        except TooLargeError as error:
            raise HTTPException(413, self._too_large) from error
        except TimeoutError as error:
            raise HTTPException(
                408, f"the request took longer than {self.service.limits.seconds:g} seconds."
            ) from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the client has left.") from error
        kind = request.headers.get("content-type", "")
        return await asyncio.get_running_loop().run_in_executor(self.pool, images_of, kind, body, most)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        seconds = self.service.limits.seconds
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise HTTPException(503, f"the answer took longer than {seconds:g} seconds. Ask again later.") from error


async def _drain(receive: Receive, most: int) -> None:
    """Take in a body that is refused, as far as it is not endless: who still sends does not read why."""
    until, message = time.monotonic() + 5, await receive()
    while message.get("more_body") and most > 0 and time.monotonic() < until:
        most -= len(message["body"])
        message = await receive()


def _number(text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0):
        raise HTTPException(422, "top: is no whole number above 0.")
    return None if text is None else int(text)


def _share(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise HTTPException(422, "coverage: is no number between 0 and 1, such as 0.9.")
    return share


def _error(status: int, text: str) -> JSONResponse:
    extra = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}.get(status)
    return JSONResponse({"error": text}, status, extra)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = _error(error.status_code, USUAL.get(error.detail, error.detail))
    response.headers.update(error.headers or {})
    return response


async def _failed(request: Request, error: Exception) -> Response:
    return _error(500, FAULT)
