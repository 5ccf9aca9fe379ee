"""Answers an evaluation's questions on `/ws`: for administrators only, on the weights that served when it began.

Questions wait in the pool's queue with everybody's, as many at a time as the client sends (up to MOST_OPEN); nothing of them is
kept. When the connection closes, those that are open are cancelled.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from app.admin.access import staff_of
from app.errors import Problem, problem
from app.evaluation_bodies import Evaluate, EvaluateModel
from app.served import Served
from app.service import Service
from engine.serving.protocol import Finished

MOST_OPEN = 1024  # questions of one connection
CHECK_SECONDS = 5.0  # after so long a key is looked up again: it may have been taken back

_numbers = itertools.count()


class EvaluationDesk:
    """Of one connection. send: takes an event. To be closed."""

    def __init__(
        self, websocket: WebSocket, service: Service, send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        self._websocket, self._service, self._send = websocket, service, send
        self._served: Served | None = None
        self._open: set[asyncio.Task[None]] = set()
        self._admitted = -CHECK_SECONDS  # when, by time.monotonic()

    async def handle(self, message: EvaluateModel | Evaluate) -> None:
        """Answer, or begin to. Raises Problem, GLMError, StorageError."""
        await self._admit()
        if self._served is None:
            self._served = self._service.served()
        if isinstance(message, EvaluateModel):
            await self._send(self._model(message.id, self._served))
            return
        if len(self._open) >= MOST_OPEN:
            text = f"{MOST_OPEN} questions of this connection are open."
            raise Problem("queue_full", text, limit=MOST_OPEN, retry_after_s=1.0)
        task = asyncio.create_task(self._answer(message, self._served))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def close(self) -> None:
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)
        if self._served is not None:
            self._served.pool.release()

    async def _admit(self) -> None:
        if time.monotonic() - self._admitted < CHECK_SECONDS:
            return
        self._websocket.scope.pop("glm_staff", None)  # what was known of it
        await staff_of(self._websocket, self._service, role="admin")
        self._admitted = time.monotonic()

    def _model(self, id: int, served: Served) -> dict[str, Any]:
        tokenizer = served.tokenizer
        return {
            "type": "evaluate_model",
            "id": id,
            "limits": asdict(served.limits),
            "replicas": sum(not each["leaving"] for each in self._service.pool.status()["replicas"]),
            "vocabulary": base64.b64encode(tokenizer.model).decode(),
            "num_image_tokens": tokenizer.num_image_tokens,
        }

    async def _answer(self, message: Evaluate, served: Served) -> None:
        try:
            event = await self._ask(message, served)
        except Exception as error:  # noqa: BLE001 (every message is answered)
            event = {"type": "error", "id": message.id, "run": None, "seq": 0, **problem(error).as_dict()}
        try:
            await self._send(event)
        except WebSocketDisconnect:
            return

    async def _ask(self, message: Evaluate, served: Served) -> dict[str, Any]:
        name = f"evaluate-{next(_numbers)}"
        finished: Finished | None = None
        try:
            async for event in served.pool.stream(message.request(name)):
                finished = event if isinstance(event, Finished) else finished
        except asyncio.CancelledError:
            served.pool.cancel_request(name)
            raise
        if finished is None:
            raise Problem("worker_died", "The question was cancelled.", retry_after_s=1.0)
        answers = [
            {"ids": result.ids, "logprob": result.logprob, "text": result.text, "reason": result.reason}
            for result in finished.results
        ]
        return {"type": "evaluated", "id": message.id, "answers": answers}
