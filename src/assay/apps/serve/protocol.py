"""HTTP as uvicorn reads it, but what is no request, or half of one, is refused with a message in JSON."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

SLOWEST = 10.0  # seconds in which the head of a request must be there
LINGER = 3.0  # seconds for which a client that was refused may go on sending, so that it comes to read why
INVALID = "this is no request of HTTP/1.1, or its headers have more than 64 kB."
CUT_OFF = "the request was cut off: it ended before its headers or its body did."
SLOW = f"the headers of the request took longer than {SLOWEST:g} seconds."


class JsonProtocol(H11Protocol):
    """A connection."""

    _slow: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        self._watch()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer a client that sends no more: it may wait for its answer, or have been cut off."""
        state = self.conn.their_state
        if self._refused:
            return None
        if state is h11.SEND_BODY or (state is h11.IDLE and self.conn.trailing_data[0]):
            self.refuse(400, CUT_OFF)
            return True
        if self.cycle is None or self.cycle.response_complete:
            return None
        self.cycle.keep_alive = False
        return True

    def send_400_response(self, msg: str) -> None:
        self.refuse(400, INVALID)

    def refuse(self, status: int, text: str) -> None:
        """Send a message and close, once the client has stopped sending or after a while."""
        self._refused = True
        self._unwatch()
        self._unset_keepalive_if_required()
        if self.cycle is not None:
            self.cycle.disconnected = True  # whoever reads the body learns that there is no more
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": text}).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            events = (
                h11.Response(status_code=status, headers=headers, reason=HTTPStatus(status).phrase.encode()),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER, self.transport.close)

    def _watch(self) -> None:
        """Begin to wait for the rest of a head, or stop where it is there."""
        if self._refused or self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._slow is None and self.timeout_keep_alive_task is None:
            self._slow = self.loop.call_later(SLOWEST, self.refuse, 408, SLOW)

    def _unwatch(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None
