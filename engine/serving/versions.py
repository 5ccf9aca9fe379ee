"""Which weights a pool serves: one version at a time, others that load beside it or leave. Torch-free.

    versions.switch("runs/ours/model")      # see Pool.switch, which documents it

A version that was replaced stays until nobody needs it (see version.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.errors import GLMError
from engine.serving.options import loading_seconds
from engine.serving.protocol import Limits, Options
from engine.serving.version import Host, Version

log = logging.getLogger(__name__)

Plan = Callable[[str | Path], Sequence[Options]]  # the options of each replica of a model; or GLMError


class Versions:
    """The versions of a pool, `current` first in `all`. start_timeout: as Pool's.

    `between`: the old version drains or is gone, and the new one isn't there yet.
    """

    def __init__(self, model: str | Path, plan: Plan, host: Host, start_timeout: float | None) -> None:
        self._plan, self._host, self._start_timeout = plan, host, start_timeout
        self._loading = asyncio.Lock()  # one replica at a time
        self.current = self._version(model)
        self.all = [self.current]
        self.between = False
        self._leaving: set[asyncio.Task[None]] = set()
        self._switching = False
        self._stopped = False

    def choose(self, model: str | Path) -> None:
        """See Pool.choose."""
        assert self._stopped or not self.current.launched
        self.current = self._version(model)
        self.all, self._stopped = [self.current], False

    async def start(self) -> None:
        """See Pool.start."""
        if not self.current.launched:
            self.current.launch()
        await self.current.wait(self._seconds(self.current))

    async def switch(self, model: str | Path, drain: bool) -> Limits:
        """See Pool.switch."""
        if self._switching or self._stopped:
            raise GLMError("overloaded", "Other weights are being put into service just now.", retry_after_s=5.0)
        self._switching = True
        try:
            new, old = self._version(model), self.current
            if drain:
                self.between = True
                await old.drain()
                await self._remove(old)
            self.all.append(new)
            new.launch(whole=True)
            try:
                await new.wait(self._seconds(new))
            except BaseException:
                await self._remove(new)
                if drain and not self._stopped:
                    await self._load_again(old)
                raise
            self._serve(new)
            if not drain:
                self._leave(old)
            assert new.limits is not None
            return new.limits
        finally:
            self._switching = self.between = False

    async def settled(self) -> None:
        """See Pool.settled."""
        while self._leaving:
            await asyncio.wait(set(self._leaving))

    async def stop(self) -> None:
        """End all replicas of all versions."""
        self._stopped = True
        leaving = set(self._leaving)
        for task in leaving:
            task.cancel()
        if leaving:
            await asyncio.wait(leaving)
        await asyncio.gather(*(version.stop() for version in list(self.all)))

    def _version(self, model: str | Path) -> Version:
        return Version(model, self._plan(model), self._host, self._loading)

    def _seconds(self, version: Version) -> float:
        return self._start_timeout or loading_seconds(version.model)

    def _serve(self, version: Version) -> None:
        self.current = version
        self.all.sort(key=lambda each: each is not version)
        log.info("%s is in service", version.model)

    def _leave(self, version: Version) -> None:
        version.leaving = True

        async def leave() -> None:
            await version.drain()
            await self._remove(version)

        task = asyncio.create_task(leave())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def _remove(self, version: Version) -> None:
        await version.stop()
        if version in self.all:
            self.all.remove(version)
        log.info("%s is out of service", version.model)

    async def _load_again(self, old: Version) -> None:
        again = self._version(old.model)
        again.limits = old.limits
        self.all.append(again)
        self._serve(again)
        again.launch()
        try:
            await again.wait(self._seconds(again))
        except GLMError as error:  # it is tried again and again, as after any death
            log.error("%s can't be loaded again: %s", old.model, error.message)
