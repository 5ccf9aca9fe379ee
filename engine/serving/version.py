"""The replicas of one set of weights in a pool, and who still needs them. Torch-free.

A pool serves one version at a time; another may load beside it, and one that was replaced stays until nobody needs it: no
request that was accepted for it, and nobody who holds a `Pinned` (see pool.py), such as a run that has blanks to come.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from engine.errors import GLMError
from engine.serving.member import Member
from engine.serving.protocol import Limits, Options, Step

log = logging.getLogger(__name__)

LOOK = 0.5  # seconds from one look at who needs a version to the next, if nobody tells


class Host(Protocol):
    """The pool, as a version sees it."""

    def version_ready(self, version: Version) -> None: ...
    def version_failed(self, version: Version, error: GLMError) -> None: ...
    def member_stepped(self, member: Member, step: Step) -> None: ...
    def member_died(self, member: Member) -> None: ...


class Version:
    """`members` run `model`; `limits` are those of a member that was ready, None before. `leaving`: another took its place.

    It is the members' Owner: what they tell goes on to the host.
    """

    def __init__(self, model: str | Path, options: Sequence[Options], host: Host, loading: asyncio.Lock) -> None:
        self.model = str(model)
        self.limits: Limits | None = None
        self.leaving = False
        self.requests = 0  # accepted and not ended
        self.members = [Member(index, each, self, loading) for index, each in enumerate(options)]
        self._host = host
        self._tasks: list[asyncio.Task[None]] = []
        self._news: asyncio.Future[None] | None = None
        self._missing = set(self.members)  # that were not ready yet
        self._most_missing = 0  # when `wait` is over
        self._pins: weakref.WeakSet[object] = weakref.WeakSet()
        self._freed = asyncio.Event()

    @property
    def launched(self) -> bool:
        return self._news is not None

    @property
    def ready(self) -> bool:
        """A member is ready now."""
        return any(member.state == "ready" for member in self.members)

    @property
    def broken(self) -> bool:
        """No member is there or likely to come."""
        return all(member.broken for member in self.members)

    def require_limits(self) -> Limits:
        """The limits; GLMError overloaded before the first member is ready."""
        if self.limits is None:
            raise GLMError("overloaded", "The model is not loaded yet.", retry_after_s=1.0)
        return self.limits

    def launch(self, *, whole: bool = False) -> None:
        """Begin to start the members, one after the other, in the running loop. whole: `wait` waits for all, not for one."""
        assert self._news is None, "a version is launched once"
        self._most_missing = 0 if whole else len(self.members) - 1
        self._news = asyncio.get_running_loop().create_future()
        self._tasks = [asyncio.create_task(member.live()) for member in self.members]

    async def wait(self, seconds: float) -> None:
        """Until it can be used. GLMError: that of the first start that failed; timeout."""
        assert self._news is not None
        try:
            await asyncio.wait_for(asyncio.shield(self._news), seconds)
        except TimeoutError as error:
            raise GLMError("timeout", f"The model was not loaded within {seconds:g} s.") from error

    async def stop(self) -> None:
        """End all members. May be called twice."""
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if not isinstance(result, asyncio.CancelledError):
                log.error("a replica was not looked after", exc_info=result)
        self._tasks = []
        if self._news is not None and not self._news.done():
            self._news.set_exception(GLMError("overloaded", "The server is stopping."))
            self._news.exception()
        await asyncio.gather(*(member.stop() for member in self.members))

    # Who needs it

    @property
    def needed(self) -> bool:
        return self.requests > 0 or len(self._pins) > 0

    def pin(self, holder: object) -> None:
        """`holder` needs it, as long as it lives or until `unpin`."""
        self._pins.add(holder)

    def unpin(self, holder: object) -> None:
        """May be called twice."""
        self._pins.discard(holder)
        self._freed.set()

    def ended(self) -> None:
        """One of its requests has ended."""
        self.requests -= 1
        self._freed.set()

    async def drain(self) -> None:
        """Wait until nobody needs it."""
        while self.needed:
            self._freed.clear()
            try:
                await asyncio.wait_for(self._freed.wait(), LOOK)  # who held it may just be gone
            except TimeoutError:
                continue

    # What the members tell (see member.Owner)

    def member_ready(self, member: Member) -> None:
        self.limits = member.limits
        self._missing.discard(member)
        assert self._news is not None
        if len(self._missing) <= self._most_missing and not self._news.done():
            self._news.set_result(None)
        self._host.version_ready(self)

    def member_failed(self, member: Member, error: GLMError) -> None:
        """A start failed. Nobody may wait for a model that doesn't come up."""
        assert self._news is not None
        if not self._news.done():
            self._news.set_exception(error)
            self._news.exception()  # whoever waits gets it; with nobody waiting it is in the log already
        self._host.version_failed(self, error)

    def member_died(self, member: Member) -> None:
        self._host.member_died(member)

    def member_stepped(self, member: Member, step: Step) -> None:
        self._host.member_stepped(member, step)
