"""Evaluations that staff begin under /admin: the model version that serves, measured on benchmarks by the project's evaluator.

The evaluator is a process of its own that asks this very server, so that no second copy of the weights is needed; it goes on while
the server restarts, for it asks again. Its key is made for it, lies in a file that only this account can read, and is taken back
when it ends. Below `training_folder`/evaluations, `results/` holds all rows and results (what was measured once with the same
weights isn't again) and the report over them; `runs/ID/` the log and the key while one is under way.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import processes
from app.admin.access import key_hash, new_key
from app.errors import Problem
from app.evaluation_log import EvaluationLog
from app.evaluation_tasks import TASKS, EvaluationTask, offered
from storage.training_tables import Evaluation

if TYPE_CHECKING:
    from app.service import Service

NAME = "tasks"  # of these evaluations, among others
KEY_LABEL = "evaluation"
KEY_DAYS = 30  # should its end never be seen
STARTING_SECONDS = 60.0  # for so long another server of this machine may have no process to show
LOG_LINES = 20
ENDED_UNSAID = "The evaluation's process ended without a word: it was killed, perhaps for lack of memory."
OTHER_WEIGHTS = "Other weights were put into service meanwhile. Start again to measure those."

logger = logging.getLogger(__name__)


class Evaluations:
    """Starts evaluations, follows them (`follow`, called again and again), takes in what they find."""

    def __init__(self, service: Service) -> None:
        self._service, self._record = service, service.record
        self.folder = service.finetuning.folder / "evaluations"
        data = service.settings.evaluation_data
        self.data = Path(data).expanduser().resolve() if data else None
        self._logs: dict[str, EvaluationLog] = {}

    @property
    def report(self) -> Path:
        """The report over all results; not there before the first."""
        return self.folder / "results" / "report.html"

    async def offered(self) -> list[EvaluationTask]:
        """Tasks whose rows are there."""
        return await asyncio.to_thread(offered, self.data)

    async def start(self, files: Sequence[str], limit: int | None, server: str, *, by: str) -> Evaluation:
        """Measure what serves on these tasks. server: this server's own address, as http://127.0.0.1:7860; by: an administrator.

        Raises Problem: `bad_request` for a task that isn't offered, `not_ready` before a model serves; StorageError `conflict`
        while this version is being measured already.
        """
        known = {task.file for task in await self.offered()}
        for file in files:
            if file not in known:
                raise Problem("bad_request", f"There are no rows of {file} here.", field="tasks")
        version = await self._service.deployments.current()
        if version is None:
            raise Problem("not_ready", retry_after_s=2.0)
        folder = self.folder / "runs" / secrets.token_hex(6)
        key = new_key()
        parameters = {
            "tasks": list(files),
            "limit": limit,
            "folder": str(folder),
            "key": key_hash(key),
            "host": socket.gethostname(),
        }
        evaluation = await self._record.create_evaluation(
            NAME, version, other=None, training_run=None, parameters=parameters, by=by
        )
        try:
            expires = self._record.clock() + timedelta(days=KEY_DAYS)
            await self._record.add_key(key_hash(key), by, "key", label=KEY_LABEL, expires=expires)
            await asyncio.to_thread(_write_key, folder, key)
            process = await asyncio.to_thread(self._launch, folder, files, limit, server)
        except OSError as error:
            message = f"The evaluation can't be started ({error.strerror})."
            await self._end(evaluation, "failed", {"error": message})
            raise Problem("disk_full" if error.errno == 28 else "internal", message) from error
        await self._record.change_evaluation(evaluation.id, parameters=parameters | {"process": process})
        self._service.finetuning.wake()
        return await self._record.get_evaluation(NAME, evaluation.id)

    async def stop(self, id: str) -> None:
        """Let an evaluation end, what it has is kept; asked again, end it at once. Raises Problem `conflict` if it doesn't run
        here, StorageError `not_found`."""
        evaluation = await self._record.get_evaluation(NAME, id)
        parameters = evaluation.parameters
        if evaluation.state != "running":
            raise Problem("conflict", "This evaluation is not running.")
        if parameters["host"] != socket.gethostname():
            raise Problem("conflict", f"This evaluation runs on {parameters['host']}.")
        again = parameters.get("stopping", False)
        await self._record.change_evaluation(id, parameters=parameters | {"stopping": True})
        processes.end(parameters.get("process"), now=again)
        self._service.finetuning.wake()

    async def follow(self) -> bool:
        """Take in what is new; whether any goes on. Raises StorageError."""
        going_on = False
        for evaluation in await self._record.running_evaluations(NAME):
            parameters = evaluation.parameters
            if parameters["host"] != socket.gethostname():
                continue
            process = parameters.get("process")
            age = (self._record.clock() - evaluation.created).total_seconds()
            if process is None and age < STARTING_SECONDS:
                going_on = True
                continue
            alive = processes.alive(process)  # before its words are read: the last ones must not be missed
            log = self._logs.setdefault(evaluation.id, EvaluationLog(Path(parameters["folder"]) / "log.txt"))
            await asyncio.to_thread(log.read)
            if not alive:
                await self._conclude(evaluation, log)
                continue
            going_on = True
            await self._check_weights(evaluation, log)
            found = {"progress": log.progress(), "tasks": log.results}
            if found != evaluation.results:
                await self._record.change_evaluation(evaluation.id, results=found)
        return going_on

    def _launch(self, folder: Path, files: Sequence[str], limit: int | None, server: str) -> dict[str, Any]:
        command = ["evaluate", *(str(TASKS / file) for file in files), "--data", str(self.data), "--json"]
        command += ["--server", server, "--key-file", str(folder / "key"), "--out", str(self.folder / "results")]
        if limit is not None:
            command += ["--limit", str(limit)]
        # What it asks is this machine, whatever proxy leads to others.
        direct = ",".join(filter(None, [os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), _host(server)]))
        return processes.start(command, folder / "log.txt", {"NO_PROXY": direct, "no_proxy": direct})

    async def _check_weights(self, evaluation: Evaluation, log: EvaluationLog) -> None:
        if log.weights is None or OTHER_WEIGHTS in log.failures:
            return
        version = await self._record.get_version(evaluation.model_version_id)
        if log.weights != version.weights_hash:
            log.failures.append(OTHER_WEIGHTS)
            processes.end(evaluation.parameters["process"])

    async def _conclude(self, evaluation: Evaluation, log: EvaluationLog) -> None:
        """Its process is gone: what it said says how it ended."""
        await self._check_weights(evaluation, log)
        results: dict[str, Any] = {"tasks": log.results}
        if OTHER_WEIGHTS in log.failures:
            state, results = "failed", {"error": OTHER_WEIGHTS}
        elif log.ended and not log.failures:
            state = "done"
        elif not log.failures and (log.interrupted or evaluation.parameters.get("stopping")):
            state, results = "stopped", results | {"progress": log.progress()}
        else:
            state = "failed"
            lines = [self._plain(line) for line in log.lines(LOG_LINES)]
            error = " ".join(map(self._plain, log.failures)) or ENDED_UNSAID
            results |= {"error": error, "log": lines, "progress": log.progress()}
            logger.error("an evaluation has failed: %s", error)
        await self._end(evaluation, state, results)

    async def _end(self, evaluation: Evaluation, state: str, results: dict[str, Any]) -> None:
        parameters = evaluation.parameters
        await self._record.remove_key(parameters["key"])
        now = self._record.clock()
        await self._record.change_evaluation(evaluation.id, state=state, results=results, finished=now)
        await asyncio.to_thread(shutil.rmtree, parameters["folder"], ignore_errors=True)
        self._logs.pop(evaluation.id, None)

    def _plain(self, text: str) -> str:
        """Without this machine's folders."""
        for folder in (self.data, self.folder, TASKS):
            text = text.replace(f"{folder}/", "") if folder else text
        return text


def _write_key(folder: Path, key: str) -> None:
    folder.mkdir(parents=True, mode=0o700)
    with os.fdopen(os.open(folder / "key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(key)


def _host(server: str) -> str:
    return server.removeprefix("http://").rpartition(":")[0].strip("[]")
