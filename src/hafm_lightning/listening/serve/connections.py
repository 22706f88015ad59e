"""Connections that do not wait without end: uvicorn has a limit for idle connections, but none for slow ones.

Without these limits, a few hundred connections that send half a request, or do not read the answer, keep everybody out.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol


class ImpatientProtocol(H11Protocol):
    """Closes a connection whose request does not arrive, or whose answer is not read, in time."""

    headers_s = 10.0
    """From the connection, or from the first byte of a later request, to the end of its headers."""
    answer_s = 120.0
    """From there to the end of the answer: a sound of 10 s over 40 kbit/s."""
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._within(self.headers_s)

    def data_received(self, data: bytes) -> None:
        """Wait for the answer where a request has come, else for the rest of its headers."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._within(self.answer_s)
        elif self._deadline is None:
            self._within(self.headers_s)

    def on_response_complete(self) -> None:
        """Wait until the answer has left: uvicorn counts it as complete while it still waits in a buffer."""
        before = self.cycle
        super().on_response_complete()
        if self.cycle is not before or self.transport.get_write_buffer_size():  # a request that came early began
            self._within(self.answer_s)
        else:  # idle: uvicorn closes it
            self._without_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._without_deadline()
        super().connection_lost(exc)

    def _within(self, seconds: float) -> None:
        self._without_deadline()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _without_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
