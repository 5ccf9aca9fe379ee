"""The websocket `/ws`: several runs over one connection, each message answered, each event sent once and in order.

Every frame is either understood or answered with one `error` event that has `run` null and `seq` 0 and carries the message's
own `id`; the connection stays open. A run that was accepted is followed by this connection until its terminal event; one
task a run reads the run's log and sends, at the pace the client reads, so that a client that doesn't read costs no more
memory than its runs' logs, and is dropped by the server's pings.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
from typing import Any

from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from app.access import address_of, check_origin, cookie_header, visitor_of
from app.errors import Problem, problem
from app.evaluation_bodies import Evaluate, EvaluateModel
from app.evaluation_socket import EvaluationDesk
from app.runs import TERMINAL, Run
from app.schemas import Cancel, Resume, client_id, read_message
from app.service import Service
from storage import StorageError

REMEMBERED_RUNS = 2000  # how far each run was sent, for as many runs of one connection

logger = logging.getLogger(__name__)


async def serve(websocket: WebSocket, service: Service) -> None:
    """One connection from its handshake to its end. A page of a foreign site gets 403 instead of a connection."""
    try:
        check_origin(websocket, service.settings.allowed_origins)
    except Problem as refusal:
        response = JSONResponse({"error": refusal.as_dict()}, refusal.entry.status)
        await websocket.send_denial_response(response)
        return
    visitor = visitor_of(websocket)
    headers = [(b"set-cookie", cookie_header(visitor, websocket).encode())] if visitor.is_new else []
    await websocket.accept(headers=headers)
    connection = Connection(websocket, service)
    try:
        await connection.receive()
    except WebSocketDisconnect:
        logger.debug("a socket was closed")
    finally:
        await connection.close()


class Connection:
    """What one open socket follows. `receive` runs until the client goes; `close` must be called then."""

    def __init__(self, websocket: WebSocket, service: Service) -> None:
        self._websocket = websocket
        self._service = service
        self._visitor = visitor_of(websocket)
        self._address = address_of(websocket)
        self._sending = asyncio.Lock()
        self._evaluations = EvaluationDesk(websocket, service, self._send)
        self._following: dict[str, asyncio.Task[None]] = {}
        self._sent: dict[str, int] = {}  # run -> number of the last event that was sent

    async def receive(self) -> None:
        """Read and answer messages one after the other. Raises WebSocketDisconnect when the client goes."""
        while True:
            frame = await self._websocket.receive()
            if frame["type"] == "websocket.disconnect":
                return
            text = frame.get("text")
            if text is None:
                await self._refuse(Problem("bad_request", "Messages are text frames with JSON, not binary frames."))
                continue
            try:
                await self._handle(text)
            except WebSocketDisconnect:
                raise
            except Exception as error:  # noqa: BLE001 (every message is answered, the connection stays)
                await self._refuse(problem(error), client_id(text))

    async def close(self) -> None:
        """Stop following; the runs go on by themselves for their grace time, an evaluation's questions don't."""
        await self._evaluations.close()
        tasks = list(self._following.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _handle(self, text: str) -> None:
        message = read_message(text)
        if isinstance(message, Resume):
            await self._resume(message)
        elif isinstance(message, Cancel):
            await self._cancel(message)
        elif isinstance(message, EvaluateModel | Evaluate):
            await self._evaluations.handle(message)
        else:
            self._service.limits.admit(self._visitor, self._address)
            grace = self._service.settings.grace_seconds
            run = await self._service.start_run(message, self._visitor.id, grace_seconds=grace)
            self._follow(run, 0)

    async def _resume(self, message: Resume) -> None:
        run = self._service.hub.find(message.run, self._visitor.id)
        if run is None:
            try:
                event = await self._service.recall(message.run, self._visitor.id, message.after)
            except StorageError as error:
                await self._refuse(problem(error), message.id, message.run)
                return
            await self._send(event)
            return
        previous = self._following.pop(run.id, None)
        if previous is not None:
            previous.cancel()
            await asyncio.wait({previous})
        self._follow(run, message.after)

    async def _cancel(self, message: Cancel) -> None:
        run = self._service.hub.find(message.run, self._visitor.id)
        if run is None:
            await self._resume(Resume(type="resume", id=message.id, run=message.run))
            return
        await self._service.hub.cancel(run)
        # Whoever cancels sees the end of it, even on a connection that didn't follow the run.
        self._follow(run, self._sent.get(run.id, len(run.events) - run.finished))

    def _follow(self, run: Run, after: int) -> None:
        if run.id in self._following:
            return
        task = asyncio.create_task(self._forward(run, after))
        self._following[run.id] = task
        task.add_done_callback(lambda done: self._followed(run.id, done))

    def _followed(self, run: str, task: asyncio.Task[None]) -> None:
        if self._following.get(run) is task:
            del self._following[run]
        if not task.cancelled() and (error := task.exception()) is not None:
            problem(error)  # logs what is unexpected

    async def _forward(self, run: Run, after: int) -> None:
        """Send the run's events after number `after` until it ends or the client goes."""
        try:
            async with contextlib.aclosing(self._service.hub.follow(run, after)) as events:
                async for event in events:
                    await self._send(event)
                    self._sent.pop(run.id, None)
                    self._sent[run.id] = event["seq"]
                    if len(self._sent) > REMEMBERED_RUNS:
                        del self._sent[next(iter(self._sent))]
                    if event["type"] in TERMINAL:
                        return
        except WebSocketDisconnect:
            return

    async def _refuse(self, refusal: Problem, id: str | int | None = None, run: str | None = None) -> None:
        await self._send({"type": "error", "id": id, "run": run, "seq": 0, **refusal.as_dict()})

    async def _send(self, event: dict[str, Any]) -> None:
        text = as_json(event)
        async with self._sending:
            if self._websocket.application_state is not WebSocketState.CONNECTED:
                raise WebSocketDisconnect(1006)
            await self._websocket.send_text(text)


def as_json(event: dict[str, Any]) -> str:
    """JSON that every client can read: Chinese as itself, half characters escaped, a number that isn't finite as null."""
    try:
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(event, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return as_json(_finite(event))
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
