"""Which model version serves: at the start of the server, and when an administrator puts another one into service.

What `--model` names is the base. A version that was trained from its weights and put into service takes its place, after a restart
too, until somebody goes back. If it can't be served any more, the base is, and the log and the training page say why.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import Problem, problem
from app.settings import Settings
from engine.errors import GLMError
from engine.glm.config import resolve_model, weights_hash
from storage import Database, Record, StorageError
from storage.models import ModelVersion

if TYPE_CHECKING:
    from app.service import Service
    from engine.serving.pool import Pool

logger = logging.getLogger(__name__)


async def choose_model(settings: Settings, pool: Pool, database: Database) -> str | None:
    """Before the pool is launched: let it serve the version that was put into service, if there is one; why not, if it doesn't.

    Brings the database up to date. Without a database the pool is left as it is: whoever needs the record says so.
    """
    try:
        await database.migrate()
        record = Record(database)
        version = await record.deployed()
        lineage = await record.ancestors(version.id) if version is not None else []
        model, reason = await asyncio.to_thread(_choose, settings.model, lineage)
        if model != pool.model:
            pool.choose(model)
        return reason
    except StorageError as error:
        logger.warning("which version is in service can't be read: %s", error.message)
        return None
    except GLMError as error:
        logger.error("the version in service can't be served as this server is set up: %s", error.message)
        return error.message


def _choose(base: str, lineage: list[ModelVersion]) -> tuple[str, str | None]:
    if not lineage or lineage[0].folder is None:
        return base, None
    try:
        wanted = folder_of(lineage[0], base)
        if lineage[-1].weights_hash == _hash_of(base):
            return wanted, None
        reason = "it was not trained from the weights that --model names"
    except (Problem, GLMError) as error:
        reason = str(error)
    logger.error("%s was in service, but %s serves now: %s", lineage[0].name, base, reason)
    return base, f"{lineage[0].name}: {reason}"


def folder_of(version: ModelVersion, base: str) -> str:
    """What a pool is to load for a version: its own folder, or `base` if it has these weights.

    Raises Problem `model_not_found`, `bad_model` if the folder isn't there or holds other weights. Reads all weights.
    """
    model = base if version.folder is None else version.folder
    try:
        found = _hash_of(model)
    except GLMError as error:
        raise Problem(error.kind, error.message) from error
    if found != version.weights_hash:
        if version.folder is None:
            raise Problem("model_not_found", f"The weights of {version.name} are not those that --model names.")
        raise Problem("bad_model", f"{model} holds other weights than those of {version.name}.")
    return model


def _hash_of(model: str) -> str:
    return weights_hash(resolve_model(model))


@dataclass(slots=True)
class Switch:
    """The last change of what serves. `state`: loading, done, failed; then `problem` says why."""

    version: int
    name: str
    drain: bool
    state: str = "loading"
    problem: dict[str, Any] | None = None


class Deployments:
    """For one server process. `reason`: why the version that was put into service doesn't serve, None if it does."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.reason: str | None = None
        self.switch: Switch | None = None
        self._task: asyncio.Task[None] | None = None

    async def model_of(self, version: ModelVersion) -> str:
        """`folder_of`, beside the event loop."""
        return await asyncio.to_thread(folder_of, version, self._service.settings.model)

    async def current(self) -> int | None:
        """The number of the version that serves now; None before the model has loaded, or between two."""
        if self._service.state != "ready":
            return None
        try:
            served = self._service.models.now()
        except GLMError:
            return None
        return await self._service.model_version(served)

    async def begin(self, version: ModelVersion, *, drain: bool, by: str, by_id: str | None) -> Switch:
        """Put a version into service, in the background: see `switch`. Raises Problem: `conflict` while another one is being put
        into service, or if this one serves already; those of `folder_of`."""
        if self._task is not None and not self._task.done():
            raise Problem("conflict", "Another version is being put into service just now.")
        if await self.current() == version.id:
            raise Problem("conflict", "This version is in service already.")
        model = await self.model_of(version)
        self.switch = Switch(version.id, version.name, drain)
        self._task = asyncio.create_task(self._switch(self.switch, model, by, by_id))
        return self.switch

    async def _switch(self, switch: Switch, model: str, by: str, by_id: str | None) -> None:
        service = self._service
        try:
            await service.models.read(model)
            await service.pool.switch(model, drain=switch.drain)
            await service.model_version(service.models.now())  # kept, so that runs don't wait for the database
            await service.record.deploy(switch.version, by=by_id)
            await service.record.audit(by, "put into service", "model version", str(switch.version))
        except Exception as error:  # noqa: BLE001 (told on the page; an unexpected one is logged)
            switch.state, switch.problem = "failed", problem(error).as_dict()
            logger.error("%s can't be put into service: %s", switch.name, switch.problem["message"])
        else:
            switch.state, self.reason = "done", None

    async def stop(self) -> None:
        """A switch that is under way is given up; the pool ends what it has begun."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})


def exists(version: ModelVersion) -> bool:
    """Whether the folder of a version that was trained here is still there."""
    return version.folder is None or (Path(version.folder) / "config.json").is_file()
