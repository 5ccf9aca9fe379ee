"""All that is mounted for staff: the page at /admin and the routes under /api/admin, each part in a file of its own.

Every route asks `staff_of` who is there before anything else, and leaves an audit entry where it reads, changes or takes away
what visitors wrote.
"""

from __future__ import annotations

from fastapi import FastAPI

from app.admin import (
    accounts,
    datasets,
    evaluating,
    exporting,
    lineage,
    page,
    people,
    privacy,
    reviewing,
    statistics,
    training,
)
from app.service import Service


def install(app: FastAPI, service: Service) -> None:
    """Add the staff's routes to `app`; before anything that takes every address."""
    app.include_router(page.routes(service))
    app.include_router(accounts.routes(service))
    app.include_router(people.routes(service))
    app.include_router(privacy.routes(service))
    app.include_router(statistics.routes(service))
    app.include_router(training.routes(service))
    app.include_router(evaluating.routes(service))
    app.include_router(reviewing.routes(service))
    app.include_router(exporting.routes(service))
    app.include_router(datasets.routes(service))
    app.include_router(lineage.routes(service))
