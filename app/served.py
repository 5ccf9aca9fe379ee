"""The weights that serve, as the web process needs them: their pool, their config, their tokenizer.

    served = models.now()            # Problem not_ready before the first model has loaded
    generate.fill(served.pool, served.tokenizer, …)

Who holds a Served keeps its weights loaded, so that a run that was accepted for one version is made by it to its end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from app.errors import Problem
from engine.glm.config import Config, resolve_model
from engine.glm.tokenizer import Tokenizer
from engine.serving.pinned import Pinned
from engine.serving.pool import Pool
from engine.serving.protocol import Limits


@dataclass(frozen=True, slots=True)
class Served:
    """One version of the model, with replicas that were ready."""

    pool: Pinned
    config: Config
    tokenizer: Tokenizer

    @property
    def limits(self) -> Limits:
        return self.pool.require_limits()


class Models:
    """The models that `pool` serves or is going to serve. Each is read once."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._known: dict[str, tuple[Config, Tokenizer]] = {}

    async def read(self, model: str) -> None:
        """Read config and tokenizer of a folder, before it is put into service. Raises GLMError."""
        folder = resolve_model(model)
        config = Config.load(folder)
        self._known[model] = config, await asyncio.to_thread(Tokenizer.load, folder)

    @property
    def config(self) -> Config | None:
        """Of the model that serves or loads; None before it was read."""
        known = self._known.get(self._pool.model)
        return known and known[0]

    @property
    def tokenizer(self) -> Tokenizer | None:
        """As `config`."""
        known = self._known.get(self._pool.model)
        return known and known[1]

    def now(self) -> Served:
        """What serves at this moment. Raises Problem `not_ready`; GLMError overloaded while other weights take its place."""
        pinned = self._pool.pinned()
        known = self._known.get(pinned.model)
        if known is None or pinned.limits is None:
            raise Problem("not_ready", retry_after_s=2.0)
        return Served(pinned, *known)
