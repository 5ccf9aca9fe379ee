"""Fine-tuning: starts the project's trainer on a frozen dataset, follows it, stops it, takes in its result.

The trainer is a process of its own that outlives this one; what is known of it stands in the database (TrainingRun), so that any
server process of this machine can go on to follow it. Below `training_folder` a run has `recipe.yaml`, `log.txt`, `data/` while it
works (it holds visitors' texts, so it goes when the run ends, and comes again from the database when it goes on) and `run/`, the
trainer's own folder with metrics, state, and at the end `model/`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import socket
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import processes
from app.comparison import Comparisons
from app.errors import Problem, problem
from app.settings import data_folder
from app.training_plan import CORRECTIONS, GENERAL, Options, Plan, make_plan, measured_flops, recipe
from engine.errors import GLMError
from engine.glm.config import EMBEDDED_FOLDER, Config, base_folder, resolve_model, weights_hash
from storage import StorageError
from storage.training_tables import TrainingRun

if TYPE_CHECKING:
    from app.service import Service

BUSY_SECONDS, IDLE_SECONDS = 1.0, 30.0  # between two looks at what is under way
CURVE_POINTS = 400
LOG_LINES = 40
SHOWN_ROWS = 20
PREVIEW_SECONDS = 60.0
ENDED_UNSAID = "The training process ended without a word: it was killed, perhaps for lack of memory."

logger = logging.getLogger(__name__)


class FineTuning:
    """The trainings of this machine. `begin` after the database is ready; `close` leaves trainings running."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self._service, self._record = service, service.record
        self.folder = Path(settings.training_folder or data_folder() / "training").expanduser().resolve()
        self.general = Path(settings.general_rows).expanduser().resolve() if settings.general_rows else None
        self.threads = settings.training_threads or max(1, (os.cpu_count() or 2) - 1)
        self.comparisons = Comparisons(service, self.folder)
        self._launching: set[str] = set()
        self._news = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Follow what an earlier process has left, and what is started from now on."""
        shutil.rmtree(self.folder / "previews", ignore_errors=True)  # of a process that was killed
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})

    def wake(self) -> None:
        """Look now: something was started."""
        self._news.set()

    # What an administrator does

    async def preview(self, dataset: str, base: int, options: Options) -> dict[str, Any]:
        """{"plan", "rows"}: what a training would do, and what the trainer makes of the rows (engine/commands/rows.py).

        Raises Problem `bad_data` for rows that the trainer refuses, StorageError.
        """
        version = await self._record.get_version(base)
        model = await self._service.deployments.model_of(version)
        size = await self._rows(dataset, model)
        plan = await self._plan(options, size, model)
        return {"plan": plan.as_dict(), "rows": size}

    async def start(self, dataset: str, base: int, options: Options, name: str, *, by: str | None) -> TrainingRun:
        """Start a training. Raises Problem, and StorageError `conflict` while another one is under way."""
        version = await self._record.get_version(base)
        model = await self._service.deployments.model_of(version)
        _check_kind(options, model)
        size = await self._rows(dataset, model)
        if not size["sequences"]:
            raise Problem("bad_data", "There is nothing in this dataset to train on.", field="dataset")
        plan = await self._plan(options, size, model)
        self._check_disk(plan, model)
        parameters = {"plan": plan.as_dict(), "options": asdict(options), "name": name, "model": model}
        run = await self._record.create_training_run(dataset, base, options.kind, parameters, str(self.folder), by=by)
        await self._launch(run)
        return run

    async def stop(self, id: str) -> None:
        """Let a training save its state and leave; asked again, end it at once. Raises Problem `conflict` if it doesn't run."""
        run = (await self._record.get_training_run(id)).run
        self._check_host(run)
        if run.state == "running" and await self._record.change_training_run(id, ("running",), state="stopping"):
            processes.end(run.process)
        elif run.state == "stopping":
            processes.end(run.process, now=True)
        else:
            raise Problem("conflict", "This training is not running.")
        self.wake()

    async def resume(self, id: str) -> None:
        """Go on with a training that was stopped or has failed, from its last saved state. Raises Problem, StorageError."""
        await self._launch(await self._record.resume_training_run(id))

    async def detail(self, id: str) -> dict[str, Any]:
        """{"curve": [[step, loss]…], "log": [lines]}. Raises StorageError `not_found`."""
        folder = Path((await self._record.get_training_run(id)).run.folder)
        return await asyncio.to_thread(_detail, folder)

    # Starting

    async def _launch(self, run: TrainingRun) -> None:
        """From queued to running."""
        self._launching.add(run.id)
        process = None
        try:
            await self._write_files(run)
            folder = Path(run.folder)
            command = [
                "train",
                str(folder / "recipe.yaml"),
                "--data",
                str(folder / "data"),
                "--out",
                str(folder / "run"),
            ]
            command += ["--threads", str(self.threads)]
            process = await asyncio.to_thread(processes.start, command, folder / "log.txt")
            identity = process | {"host": socket.gethostname()}
            values = {"state": "running", "process": identity, "started": run.started or self._record.clock()}
            await self._record.change_training_run(run.id, ("queued",), **values)
        except (OSError, StorageError) as error:
            processes.end(process, now=True)
            text = f"It could not be started: {error.strerror if isinstance(error, OSError) else error}"
            await self._record.change_training_run(run.id, ("queued",), state="failed", error=text)
            if isinstance(error, StorageError):
                raise
            raise Problem("disk_full" if error.errno == 28 else "internal", text) from error
        finally:
            self._launching.discard(run.id)
            self.wake()

    async def _write_files(self, run: TrainingRun) -> None:
        folder, parameters = Path(run.folder), run.parameters
        data = folder / "data"
        await asyncio.to_thread(data.mkdir, parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        await self._record.write_dataset(run.dataset_id, "train", data / f"{CORRECTIONS}.jsonl")
        general = self.general or EMBEDDED_FOLDER / "general_rows.jsonl"
        await asyncio.to_thread(shutil.copyfile, general, data / f"{GENERAL}.jsonl")
        plan = Plan(**parameters["plan"])
        made = recipe(plan, initial=parameters["model"], name=parameters["name"], seed=1)
        (folder / "recipe.yaml").write_text(json.dumps(made, ensure_ascii=False, indent=1), encoding="utf-8")

    async def _rows(self, dataset: str, model: str) -> dict[str, Any]:
        """What the trainer makes of a dataset's rows, asked of its own code."""
        folder = self.folder / "previews"
        await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        path = folder / f"{CORRECTIONS}-{os.urandom(6).hex()}.jsonl"
        try:
            await self._record.write_dataset(dataset, "train", path)
            arguments = ["-m", "engine", "rows", "--model", model, "--rows", str(path), "--shown", str(SHOWN_ROWS)]
            asked = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                cwd=processes.ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            try:
                said, complained = await asyncio.wait_for(asked.communicate(), PREVIEW_SECONDS)
            except TimeoutError as error:
                asked.kill()
                raise Problem("timeout", "Reading the rows took too long.") from error
        finally:
            path.unlink(missing_ok=True)
        if asked.returncode:
            message = complained.decode("utf-8", "replace").strip().removeprefix("error: ")
            raise Problem("bad_data", message.replace(path.name, "the dataset")[-1000:], field="dataset")
        return json.loads(said)

    async def _plan(self, options: Options, size: dict[str, Any], model: str) -> Plan:
        config = Config.load(resolve_model(model))
        done = [entry.run.progress for entry in await self._record.list_training_runs() if entry.run.state == "done"]
        flops = next((progress["flops"] for progress in done if progress and progress.get("flops")), None)
        return make_plan(
            options,
            size,
            parameters=config.parameters(),
            positions=config.positions,
            threads=self.threads,
            flops=flops,
        )

    def _check_disk(self, plan: Plan, model: str) -> None:
        parameters = Config.load(resolve_model(model)).parameters()
        # Weights and two moments in fp32, twice while a state takes another's place, and the model.
        needed = (26 * parameters if plan.kind == "full" else parameters // 4) + (64 << 20)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            message = f"A training needs about {needed >> 20} MiB of disk, and {free >> 20} MiB are free."
            raise Problem("disk_full", message, limit=needed)

    def _check_host(self, run: TrainingRun) -> None:
        if run.process and run.process.get("host", socket.gethostname()) != socket.gethostname():
            raise Problem("conflict", f"This training runs on {run.process['host']}.")

    # Following

    async def _watch(self) -> None:
        while True:
            self._news.clear()
            try:
                busy = await self._look()
            except StorageError as error:
                logger.warning("trainings can't be followed just now: %s", error.message)
                busy = True
            except Exception as error:  # noqa: BLE001 (logged; the next look may go well)
                problem(error)
                busy = False
            try:
                await asyncio.wait_for(self._news.wait(), BUSY_SECONDS if busy else IDLE_SECONDS)
            except TimeoutError:
                continue

    async def _look(self) -> bool:
        """Take in what has happened; whether anything is under way."""
        runs = await self._record.active_training_runs()
        for run in runs:
            if run.process and run.process.get("host", socket.gethostname()) != socket.gethostname():
                continue
            if run.state == "queued":
                if run.id not in self._launching:
                    await self._fail(run, "The server ended before this training had begun.")
            elif processes.alive(run.process):
                progress = await asyncio.to_thread(_progress, Path(run.folder), run.parameters["plan"]["steps"])
                if progress and progress != run.progress:
                    await self._record.change_training_run(run.id, (run.state,), progress=progress)
            else:
                await self._conclude(run)
        comparing = await self.comparisons.follow()
        evaluating = await self._service.evaluations.follow()
        return bool(runs) or comparing or evaluating

    async def _conclude(self, run: TrainingRun) -> None:
        """Its process is gone: what it left says how it ended."""
        folder = Path(run.folder)
        await asyncio.to_thread(shutil.rmtree, folder / "data", ignore_errors=True)
        progress = await asyncio.to_thread(_progress, folder, run.parameters["plan"]["steps"])
        if (folder / "run" / "model" / "config.json").is_file():
            await self._take_in(run, progress)
            return
        said = processes.last_lines(folder / "log.txt")
        values: dict[str, Any] = {"process": None, "finished": self._record.clock(), "progress": progress}
        if run.state == "stopping" or (said and said[-1].startswith("Stopped, the state is saved")):
            values |= {"state": "stopped", "error": None}
        else:
            # The last line may be of what went well before the process was killed.
            failed = bool(said) and (": " in said[-1] and not said[-1][:4].isdigit())
            values |= {"state": "failed", "error": said[-1] if failed else ENDED_UNSAID}
            logger.error("training %s has failed: %s", run.id, values["error"])
        await self._record.change_training_run(run.id, (run.state,), **values)

    async def _take_in(self, run: TrainingRun, progress: dict[str, Any] | None) -> None:
        model = Path(run.folder) / "run" / "model"
        try:
            config = Config.load(model)
            digest = await asyncio.to_thread(weights_hash, model)
        except GLMError as error:
            await self._fail(run, error.message)
            return
        if progress:
            seconds = progress["seconds"]
            progress["flops"] = measured_flops(run.parameters["plan"], config.parameters(), seconds + 20)
            await self._record.change_training_run(run.id, (run.state,), progress=progress)
        version = await self._record.finish_training_run(
            run.id, weights_hash=digest, name=config.name, config=asdict(config), model_folder=str(model)
        )
        await asyncio.to_thread(shutil.rmtree, Path(run.folder) / "run" / "state", ignore_errors=True)
        logger.info("training %s is done: model version %d", run.id, version)
        try:
            await self.comparisons.start(version, training_run=run.id, by=run.created_by)
        except (Problem, StorageError, GLMError) as error:
            logger.error("version %d can't be compared: %s", version, error)

    async def _fail(self, run: TrainingRun, message: str) -> None:
        values = {"state": "failed", "error": message, "process": None, "finished": self._record.clock()}
        await self._record.change_training_run(run.id, (run.state,), **values)


def _check_kind(options: Options, model: str) -> None:
    folder = resolve_model(model)
    if options.kind == "full" and (base_folder(folder) != folder or Config.load(folder).quantization):
        message = "All weights can only be trained of a plain model, not of an adapter or of weights with few bits."
        raise Problem("unsupported", message, field="kind")


def _metrics(folder: Path) -> list[dict[str, Any]]:
    """Whole lines of steps; the last may be written just now."""
    try:
        lines = (folder / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        return []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if row.get("loss") is not None]


def _progress(folder: Path, steps: int) -> dict[str, Any] | None:
    rows = _metrics(folder)
    if not rows:
        return None
    recent = rows[-20:]
    pace = sum(row["seconds"] for row in recent) / len(recent)
    return {
        "step": rows[-1]["step"],
        "steps": steps,
        "loss": round(sum(row["loss"] for row in recent[-5:]) / len(recent[-5:]), 4),
        "tokens_per_second": round(sum(row["tokens"] for row in recent) / max(1e-9, pace * len(recent))),
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "seconds_left": round(pace * (steps - rows[-1]["step"])),
    }


def _detail(folder: Path) -> dict[str, Any]:
    rows = _metrics(folder)
    thinned = rows[:: max(1, len(rows) // CURVE_POINTS)]
    return {
        "curve": [[row["step"], row["loss"]] for row in thinned],
        "log": processes.last_lines(folder / "log.txt", LOG_LINES),
    }
