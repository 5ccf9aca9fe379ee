"""Fine-tuning for administrators: rows as the trainer sees them, start, follow, stop, resume; compare; put into service."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from app import comparison
from app.admin.access import staff_of
from app.admin.facts import version_facts
from app.admin.training_bodies import DeployBody, PreviewBody, StartBody, read
from app.deployment import exists
from app.errors import Problem
from app.service import Service
from storage.training_runs import TrainingRunEntry, VersionEntry
from storage.training_tables import Evaluation


def routes(service: Service) -> APIRouter:
    """The routes under /api/admin/training."""
    router = APIRouter()
    record, finetuning, deployments = service.record, service.finetuning, service.deployments

    @router.get("/api/admin/training")
    async def overview(request: Request) -> dict[str, Any]:
        """Everything the page shows at once: datasets, trainings, versions, what serves and served."""
        await staff_of(request, service, role="admin")
        current = await deployments.current()
        versions = await record.list_versions()
        datasets = (await record.list_datasets(limit=100)).rows
        switch = deployments.switch
        return {
            "current": current,
            "reason": deployments.reason,
            "switch": None
            if switch is None
            else {
                "version": switch.version,
                "name": switch.name,
                "state": switch.state,
                "drain": switch.drain,
                "problem": switch.problem,
            },
            "datasets": [
                {
                    "id": one.dataset.id,
                    "name": f"{one.dataset.name} {one.dataset.version}",
                    "train": one.train,
                    "held_out": one.held_out,
                    "removed": one.removed,
                    "created": one.dataset.created.isoformat(),
                }
                for one in datasets
            ],
            "runs": [_run(entry) for entry in await record.list_training_runs()],
            "versions": [_version(entry, current) for entry in versions],
            "deployments": [
                {
                    "version": one.deployment.model_version_id,
                    "name": one.version,
                    "since": one.deployment.since.isoformat(),
                    "until": one.deployment.until.isoformat() if one.deployment.until else None,
                    "by": one.by,
                }
                for one in await record.list_deployments()
            ],
        }

    @router.post("/api/admin/training/preview")
    async def preview(request: Request) -> dict[str, Any]:
        """{"plan", "rows"}: what a training would do, and the first rows as the trainer sees them."""
        staff = await staff_of(request, service, role="admin")
        body: PreviewBody = await read(request, PreviewBody)
        found = await finetuning.preview(body.dataset, body.base, body.options.options())
        await record.audit(staff.name, "read rows", "dataset", body.dataset, {"rows": len(found["rows"]["shown"])})
        return found

    @router.post("/api/admin/training/runs")
    async def start(request: Request) -> dict[str, Any]:
        """Start a training; what `overview` says of it."""
        staff = await staff_of(request, service, role="admin")
        body: StartBody = await read(request, StartBody)
        run = await finetuning.start(body.dataset, body.base, body.options.options(), body.name, by=staff.id)
        await record.audit(staff.name, "start training", "training run", run.id, {"dataset": body.dataset})
        return _run(await record.get_training_run(run.id))

    @router.get("/api/admin/training/runs/{id}")
    async def detail(request: Request, id: str) -> dict[str, Any]:
        """A training with its loss curve, [[step, loss]…], and the end of its log."""
        await staff_of(request, service, role="admin")
        return _run(await record.get_training_run(id)) | await finetuning.detail(id)

    @router.post("/api/admin/training/runs/{id}/stop")
    async def stop(request: Request, id: str) -> dict[str, Any]:
        """Save and leave; asked again, end at once."""
        staff = await staff_of(request, service, role="admin")
        await finetuning.stop(id)
        await record.audit(staff.name, "stop training", "training run", id)
        return _run(await record.get_training_run(id))

    @router.post("/api/admin/training/runs/{id}/resume")
    async def resume(request: Request, id: str) -> dict[str, Any]:
        """Go on from the last saved state."""
        staff = await staff_of(request, service, role="admin")
        await finetuning.resume(id)
        await record.audit(staff.name, "resume training", "training run", id)
        return _run(await record.get_training_run(id))

    @router.post("/api/admin/training/versions/{id}/compare")
    async def compare(request: Request, id: int) -> dict[str, Any]:
        """Measure a version beside the one in service."""
        staff = await staff_of(request, service, role="admin")
        evaluation = await finetuning.comparisons.start(id, by=staff.id)
        await record.audit(staff.name, "compare", "model version", str(id))
        return _evaluation(evaluation)

    @router.post("/api/admin/training/versions/{id}/deploy")
    async def deploy(request: Request, id: int) -> dict[str, Any]:
        """Put a version into service; it loads in the background, see `switch` of the overview.

        Problem `conflict` for a version that was not compared with another yet and never served, unless `unchecked` says so.
        """
        staff = await staff_of(request, service, role="admin")
        body: DeployBody = await read(request, DeployBody)
        version = await record.get_version(id)
        if version.parent_id is not None and not body.unchecked:
            served = any(one.deployment.model_version_id == id for one in await record.list_deployments(limit=10_000))
            compared = await record.last_evaluation(comparison.NAME, id)
            if not served and (compared is None or compared.state != "done"):
                message = "This version was not compared with another one yet. Compare it first, or say unchecked."
                raise Problem("conflict", message, field="unchecked")
        switch = await deployments.begin(version, drain=body.drain, by=staff.name, by_id=staff.id)
        return {"version": switch.version, "name": switch.name, "state": switch.state}

    return router


def _run(entry: TrainingRunEntry) -> dict[str, Any]:
    run = entry.run
    return {
        "id": run.id,
        "name": run.parameters["name"],
        "kind": run.kind,
        "state": run.state,
        "plan": run.parameters["plan"],
        "dataset": entry.dataset,
        "base": run.base_version_id,
        "result": run.result_version_id,
        "progress": run.progress,
        "error": run.error,
        "by": entry.by,
        "created": run.created.isoformat(),
        "finished": run.finished.isoformat() if run.finished else None,
    }


def _version(entry: VersionEntry, current: int | None) -> dict[str, Any]:
    version = entry.version
    return version_facts(version) | {
        "parent": version.parent_id,
        "dataset": entry.dataset,
        "training_run": entry.training_run,
        "runs": entry.runs,
        "current": version.id == current,
        "there": exists(version),
        "evaluation": _evaluation(entry.evaluation) if entry.evaluation else None,
    }


def _evaluation(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "id": evaluation.id,
        "version": evaluation.model_version_id,
        "other": evaluation.other_version_id,
        "state": evaluation.state,
        "results": evaluation.results,
        "created": evaluation.created.isoformat(),
    }
