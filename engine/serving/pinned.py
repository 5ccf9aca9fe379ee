"""A pool with the weights that serve at one moment: for whoever has several requests that belong together. Torch-free.

    pinned = pool.pinned()
    stream = pinned.stream(request)      # of these weights, whatever is put into service later

As long as somebody holds it, or until `release`, its weights stay loaded. It has what of a pool a run or an estimate needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.serving.pace import Pace
from engine.serving.protocol import Limits, Request
from engine.serving.stream import Stream
from engine.serving.version import Version

if TYPE_CHECKING:
    from engine.serving.pool import Cancellable, Pool


class Pinned:
    """Made by Pool.pinned."""

    def __init__(self, pool: Pool, version: Version) -> None:
        self._pool, self._version = pool, version
        version.pin(self)

    def release(self) -> None:
        """The weights may leave; nothing more is asked of it. May be called twice."""
        self._version.unpin(self)

    def pinned(self) -> Pinned:
        """Another hold of the same weights."""
        return Pinned(self._pool, self._version)

    @property
    def model(self) -> str:
        """The folder of these weights, or "embedded"."""
        return self._version.model

    @property
    def limits(self) -> Limits | None:
        return self._version.limits

    def require_limits(self) -> Limits:
        """As Pool's."""
        return self._version.require_limits()

    @property
    def pace(self) -> Pace:
        return self._pool.pace

    @property
    def waiting(self) -> int:
        return self._pool.waiting

    def wait_seconds(self, rows: int) -> float | None:
        """As Pool's."""
        return self._pool.wait_seconds(rows)

    def stream(self, request: Request, *, first: bool = False) -> Stream:
        """As Pool's."""
        return self._pool.accept(self._version, request, first)

    def cancel_request(self, request_id: str) -> bool:
        """As Pool's."""
        return self._pool.cancel_request(request_id)

    def register(self, run: Cancellable) -> None:
        """As Pool's."""
        self._pool.register(run)

    def forget(self, run: Cancellable) -> None:
        """As Pool's."""
        self._pool.forget(run)
