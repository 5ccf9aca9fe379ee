"""The events of one accepted request on their way from the pool to its one consumer."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import GLMError
from engine.serving.protocol import Cancelled, Finished, Limits, Request, Search, Token

if TYPE_CHECKING:
    from engine.serving.member import Member
    from engine.serving.version import Version


@dataclass(frozen=True, slots=True)
class Queued:
    """position: requests that start before this one; eta_s: measured estimate, None before anything was measured."""

    position: int
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt is being read, by a replica with these limits."""

    limits: Limits


PoolEvent = Queued | Started | Token | Search | Finished | Cancelled


class Stream:
    """An asynchronous iterator over Queued*, Started, Token* or (with beams) Search*, then Finished or Cancelled. An error is
    raised once, instead.

    Nothing is cancelled by leaving the iteration: that is `Pool.cancel`.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.ended = False  # the last event is there, though perhaps not read yet
        # When, by time.monotonic(), whatever the consumer's pace: given to a replica, first text, end.
        self.given_at: float | None = None
        self.first_text_at: float | None = None
        self.ended_at: float | None = None
        self._events: deque[PoolEvent | GLMError] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> PoolEvent:
        while not self._events:
            if self.ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        event = self._events.popleft()
        if isinstance(event, GLMError):
            raise event
        return event

    def put(self, event: PoolEvent) -> None:
        """For the pool."""
        assert not self.ended
        if isinstance(event, Queued) and self._events and isinstance(self._events[-1], Queued):
            self._events.pop()  # an old position is no news
        elif isinstance(event, Search) and self._events and isinstance(self._events[-1], Search):
            self._events.pop()
        if isinstance(event, (Token, Search)) and self.first_text_at is None:
            self.first_text_at = time.monotonic()
        self._append(event)

    def end(self, event: Finished | Cancelled | GLMError) -> None:
        """For the pool: the last event."""
        assert not self.ended
        self.ended = True
        self.ended_at = time.monotonic()
        self._append(event)

    def _append(self, event: PoolEvent | GLMError) -> None:
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


@dataclass(slots=True, eq=False)
class Flight:
    """What the pool knows of a request that was accepted and has not ended."""

    request: Request
    stream: Stream
    version: Version
    member: Member | None = None  # None: it waits
    runs: int = 0
    told_started: bool = False
    told_text: bool = False
    told_position: int = -1
    cancelled: bool = False
