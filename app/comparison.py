"""A new version beside the one in service, before it takes its place: on held-out corrections, and on general rows.

The measuring is a process of its own (`python -m engine measure`), which goes on while the server restarts; what it found is
kept as an Evaluation: `{"models": [new, old], "verdict": {"corrections", "general", "overall"}}`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import processes
from app.errors import Problem
from app.training_plan import CORRECTIONS
from storage.training_runs import COMPARISON
from storage.training_tables import Evaluation

if TYPE_CHECKING:
    from app.service import Service

NAME = COMPARISON
HELD_OUT = f"held-out-{CORRECTIONS}"
CLEARLY = 0.03  # a share of bits per byte, or of perplexity, that is no noise
LOST = 0.05  # a share of right answers, likewise

logger = logging.getLogger(__name__)


class Comparisons:
    """Starts comparisons and takes in what they find. `folder`: where their files lie meanwhile."""

    def __init__(self, service: Service, folder: Path) -> None:
        self._service, self._folder = service, folder

    async def start(self, version: int, *, training_run: str | None = None, by: str | None = None) -> Evaluation:
        """Measure a version beside the one in service, or beside its parent if it is in service itself.

        Raises Problem: `conflict` if there is nothing to compare it with; model_not_found, bad_model; StorageError.
        """
        record, deployments = self._service.record, self._service.deployments
        new = await record.get_version(version)
        current = await deployments.current()
        other = current if current not in (None, version) else new.parent_id
        if other is None:
            raise Problem("conflict", "There is no other version to compare this one with.")
        models = [await deployments.model_of(each) for each in (new, await record.get_version(other))]
        folder = self._folder / f"comparison-{secrets.token_hex(6)}"
        evaluation = await record.create_evaluation(
            NAME, version, other=other, training_run=training_run, parameters={"folder": str(folder)}, by=by
        )
        try:
            await asyncio.to_thread(folder.mkdir, parents=True)
            command = ["measure", "--models", *models, "--out", str(folder / "result.json")]
            if new.dataset_id is not None:
                rows = folder / f"{HELD_OUT}.jsonl"
                if await record.write_dataset(new.dataset_id, "held_out", rows):
                    command += ["--rows", str(rows)]
            if self._service.settings.check_rows:
                command += ["--general", str(Path(self._service.settings.check_rows).expanduser().resolve())]
            command += ["--threads", str(self._service.finetuning.threads)]
            process = await asyncio.to_thread(processes.start, command, folder / "log.txt")
            known = {"folder": str(folder), "process": process, "host": socket.gethostname()}
            await record.change_evaluation(evaluation.id, parameters=known)
        except OSError as error:
            message = f"The comparison can't be started ({error.strerror})."
            await self._fail(evaluation, folder, message)
            raise Problem("disk_full" if error.errno == 28 else "internal", message) from error
        self._service.finetuning.wake()
        return evaluation

    async def follow(self) -> bool:
        """Take in those that have ended; whether any goes on."""
        going_on = False
        for evaluation in await self._service.record.running_evaluations(NAME):
            parameters = evaluation.parameters
            if parameters.get("host", socket.gethostname()) != socket.gethostname():
                continue
            if processes.alive(parameters.get("process")):
                going_on = True
            else:
                await self._conclude(evaluation, Path(parameters["folder"]))
        return going_on

    async def _conclude(self, evaluation: Evaluation, folder: Path) -> None:
        try:
            found = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            said = processes.last_lines(folder / "log.txt", 3)
            await self._fail(evaluation, folder, " ".join(said) or "The comparison ended without a word.")
            return
        for each in found["models"]:
            each.pop("model")  # a path of this machine
        results = {"models": found["models"], "verdict": verdict(*found["models"])}
        now = self._service.record.clock()
        await self._service.record.change_evaluation(evaluation.id, state="done", results=results, finished=now)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)  # it holds visitors' texts

    async def _fail(self, evaluation: Evaluation, folder: Path, message: str) -> None:
        logger.error("a comparison has failed: %s", message)
        now = self._service.record.clock()
        values = {"state": "failed", "results": {"error": message}, "finished": now}
        await self._service.record.change_evaluation(evaluation.id, **values)
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def verdict(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, str]:
    """In words, each of better, worse, same; unknown for corrections if none were held out; overall also mixed."""
    corrections = _compared(list(new["rows"].values()), list(old["rows"].values())) if new["rows"] else "unknown"
    shared = [name for name in new["general"] if name in old["general"]]
    general = _compared([new["general"][name] for name in shared], [old["general"][name] for name in shared])
    if general == "worse":
        overall = "mixed" if corrections == "better" else "worse"
    elif corrections in ("better", "worse"):
        overall = corrections
    else:
        overall = "same" if corrections == "same" else "unknown"
    return {"corrections": corrections, "general": general, "overall": overall}


def _compared(new: list[Mapping[str, Any]], old: list[Mapping[str, Any]]) -> str:
    """By the right answers, then by how likely the right ones and the texts are: worse if any split clearly is."""
    found = [_one(after, before) for after, before in zip(new, old, strict=True)]
    return "worse" if "worse" in found else "better" if "better" in found else "same"


def _one(new: Mapping[str, Any], old: Mapping[str, Any]) -> str:
    asked = new.get("blanks", 0) + new.get("questions", 0)
    gained = sum(new.get(f"{what}_right", 0) - old.get(f"{what}_right", 0) for what in ("blanks", "questions"))
    if asked and abs(gained) > LOST * asked:
        return "better" if gained > 0 else "worse"
    for measure in ("bits_per_byte", "perplexity"):
        if measure in new and measure in old:
            # The perplexity of right answers swings far where answers are right already: then it says nothing.
            noise = CLEARLY if measure == "bits_per_byte" else 10 * CLEARLY
            change = new[measure] / old[measure] - 1
            if abs(change) > noise:
                return "worse" if change > 0 else "better"
    return "same"
