"""One place in a pool: starts a replica, and starts it again whenever it dies, with back-off. Torch-free."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Protocol

from engine.errors import GLMError
from engine.serving.protocol import Limits, LoadFailed, Options, Ready, Step
from engine.serving.replica import Death, Replica

log = logging.getLogger(__name__)

FIRST_BACK_OFF = 0.1  # seconds before a dead replica's first new start
LONGEST_BACK_OFF = 30.0
STEADY = 60.0  # a replica that lived this long starts over with the first back-off


class Owner(Protocol):
    """Who hears of a member's fate, always in the event loop."""

    def member_ready(self, member: Member) -> None: ...
    def member_stepped(self, member: Member, step: Step) -> None: ...
    def member_died(self, member: Member) -> None: ...
    def member_failed(self, member: Member, error: GLMError) -> None: ...


class Member:
    """`state`: "starting", "ready", "waiting" (for its next start) or "stopped"; `reason`: why it isn't ready, a sentence.

    `broken`: its last start failed, so nobody should count on it. `limits`: of the replica that is or was last ready.
    """

    def __init__(self, index: int, options: Options, owner: Owner, loading: asyncio.Lock) -> None:
        self.index = index
        self.state = "starting"
        self.reason: str | None = None
        self.broken = False
        self.starts = 0
        self.limits: Limits | None = None
        self._options, self._owner, self._loading = options, owner, loading
        self._replica: Replica | None = None
        self._news: asyncio.Queue[Ready | LoadFailed | Death] = asyncio.Queue()
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Of rank 0."""
        return self._replica.pid if self._replica else None

    @property
    def pids(self) -> list[int]:
        """Of every rank."""
        return self._replica.pids if self._replica else []

    def send(self, message: Any) -> None:
        """To the replica; into the void if it is dead, which is news of its own."""
        if self._replica is not None:
            self._replica.send(message)

    async def live(self) -> None:
        """Keep a replica alive until cancelled."""
        back_off = FIRST_BACK_OFF
        while True:
            async with (
                self._loading
            ):  # one model at a time: together they might not fit the host's memory while loading
                news = await self._start()
            if isinstance(news, Ready):
                since = time.monotonic()
                log.info("replica %d: ready, %s on %s", self.index, news.limits.model, news.limits.device)
                self.limits, self.state, self.reason, self.broken = news.limits, "ready", None, False
                self._owner.member_ready(self)
                await self._news.get()  # its death, which `_died` has told of
                if time.monotonic() - since > STEADY:
                    back_off = FIRST_BACK_OFF
                log.error("replica %d: %s It is started again in %.1f s.", self.index, self.reason, back_off)
            else:
                self.state, self.reason, self.broken = "waiting", news.error.message, True
                log.error("replica %d can't be started: %s", self.index, self.reason.partition("\n")[0])
                self._owner.member_failed(self, news.error)
            await asyncio.sleep(back_off)
            back_off = min(2 * back_off, LONGEST_BACK_OFF)

    async def stop(self) -> None:
        """After `live` was cancelled: end the replica."""
        self._stopping = True
        if self._replica is not None:
            await self._replica.close()
        self.state, self._replica = "stopped", None

    async def _start(self) -> Ready | LoadFailed:
        self.state, self.starts = "starting", self.starts + 1
        try:
            self._replica = Replica(self._options, self._heard, self._died)
        except OSError as error:
            return LoadFailed(GLMError("internal", f"A worker process can't be started ({error.strerror})."))
        log.info("replica %d: worker %d is starting", self.index, self._replica.pid)
        news = await self._news.get()
        if isinstance(news, Death):
            assert self.reason is not None
            return LoadFailed(GLMError("bad_model", self.reason))
        if isinstance(news, LoadFailed):
            while not isinstance(await self._news.get(), Death):  # other ranks may fail for the same reason
                pass
        return news

    def _heard(self, message: object) -> None:
        if isinstance(message, Step):
            self._owner.member_stepped(self, message)
        else:
            assert isinstance(message, (Ready, LoadFailed))
            self._news.put_nowait(message)

    def _died(self, death: Death) -> None:
        """All that it sent has been heard."""
        who = f"worker process of rank {death.rank}" if self._options.tensor_parallel > 1 else "worker process"
        how = f"signal {-death.code}" if death.code < 0 else f"exit code {death.code}"
        self._replica, self.state, self.reason = None, "waiting", f"The {who} ended with {how}."
        self._news.put_nowait(death)
        if not self._stopping:
            self._owner.member_died(self)
