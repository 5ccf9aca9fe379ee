"""Numbers over time and the room on the disk, for staff: GET /api/admin/statistics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from app.admin.access import staff_of
from app.service import Service
from storage.statistics import StatisticsQuery


def routes(service: Service) -> APIRouter:
    """All routes of this file, for one service."""
    router = APIRouter()
    record = service.record

    @router.get("/api/admin/statistics")
    async def statistics(request: Request) -> dict[str, Any]:
        """Runs, tokens, latencies and ratings: ?from&to&bucket=hour|day|week&by=all|mode|model&mode&model_version; see
        storage/statistics.py. `disk`: how much is used, free and allowed, and when it will be full; null if that isn't known."""
        await staff_of(request, service)
        found = await record.statistics(StatisticsQuery.parse(request.query_params, record.clock()))
        disk = service.keeper.disk.state
        return found | {"disk": disk and disk.as_dict()}

    return router
