"""create_app: the whole web application from its settings, a pool and a database. Nothing happens at import.

    app = create_app(settings, Pool(settings.model), Database(settings.database))

Order matters: own routes first, then static files, then the Gradio page at `/`, which would take every address.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from fastapi import FastAPI, WebSocket
from starlette.middleware import Middleware
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import api, websocket
from app.access import AccessMiddleware
from app.admin import main as admin
from app.admin.administrator import first_administrator
from app.errors import problem
from app.service import Service
from app.settings import Settings

if TYPE_CHECKING:
    from engine.serving.pool import Pool
    from storage import Database

STATIC = Path(__file__).resolve().parent.parent / "static"


def create_app(settings: Settings, pool: Pool, database: Database, *, page: bool = True) -> FastAPI:
    """The application; its lifespan starts and stops `pool` and `database`. `page` False leaves the Gradio page out.

    `app.state.service` is the Service. Loading Gradio takes seconds: it happens here, not at import.
    """
    service = Service(settings, pool, database)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await service.start()
            app.state.password_file = await first_administrator(service) or app.state.password_file
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="GLM Playground",
        lifespan=lifespan,
        root_path=settings.root_path,
        # The pages that show the schema fetch scripts from another host; the schema itself is enough for programs.
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        middleware=[Middleware(Shield, stopping=service.stopping), Middleware(AccessMiddleware)],
    )
    app.state.service = service
    app.state.password_file = None  # of the first administrator, if one was made at this start
    admin.install(app, service)
    api.install(app, service)

    @app.websocket("/ws")
    async def socket(connection: WebSocket) -> None:
        await websocket.serve(connection, service)

    @app.get("/favicon.ico", include_in_schema=False)
    async def favicon() -> Response:
        for name, kind in (("favicon.ico", "image/x-icon"), ("favicon.svg", "image/svg+xml")):
            if (STATIC / name).is_file():
                return FileResponse(STATIC / name, media_type=kind, headers={"Cache-Control": "max-age=86400"})
        return Response(status_code=204)

    if page:
        _mount_page(app, service)
    else:
        app.mount("/static", Files(directory=STATIC), name="static")
    return app


def import_gradio() -> ModuleType:
    """It takes seconds; may be done in a thread, before `create_app`."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    return importlib.import_module("gradio")


def _mount_page(app: FastAPI, service: Service) -> None:
    gradio = import_gradio()
    from app.ui import playground
    from app.ui.head import PageHead

    # Gradio asks for files of its own under the same path, so they stand behind ours.
    files = Files(directory=STATIC, packages=[("gradio", "templates/frontend/static")])
    app.mount("/static", files, name="static")
    blocks = playground.build(service.settings, service.info)
    gradio.mount_gradio_app(app, blocks, path="/", **playground.mount_arguments())
    app.add_middleware(PageHead, head=playground.page_head())


class Files(StaticFiles):
    """Static files that a browser keeps but asks about each time: an answer of 304 costs little, an old page much."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers.setdefault("Cache-Control", "no-cache")
        return response


class Shield:
    """ASGI, outermost. An unexpected exception becomes a logged incident and a typed JSON answer, never a traceback.

    When `stopping` is set, answers that stream without end (Gradio has such) end too, so that the server can.
    """

    def __init__(self, app: ASGIApp, stopping: asyncio.Event) -> None:
        self.app = app
        self.stopping = stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = complete = False

        async def watched(message: Message) -> None:
            nonlocal started, complete
            started = True
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        async def received() -> Message:
            return await self._unless_stopping(receive)

        try:
            # A stream waits for its client's going; a body that is being sent is read to its end.
            await self.app(scope, received if scope["method"] == "GET" else receive, watched)
        except Exception as error:  # noqa: BLE001 (the outermost edge: logged and answered)
            refusal = problem(error)
            if not started:
                await api.answer(refusal)(scope, receive, watched)
        if started and not complete and self.stopping.is_set():
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _unless_stopping(self, receive: Receive) -> Message:
        stopping = asyncio.ensure_future(self.stopping.wait())
        receiving = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({stopping, receiving}, return_when=asyncio.FIRST_COMPLETED)
            return receiving.result() if receiving.done() else {"type": "http.disconnect"}
        finally:
            stopping.cancel()
            receiving.cancel()
