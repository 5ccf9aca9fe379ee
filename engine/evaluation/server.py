"""Asks a running server's replicas, through its socket `/ws` with an administrator's key: no second copy of the weights is needed.

The vocabulary comes from the server, too. When the connection breaks, it is made anew and open questions are asked again; if other
weights serve then, the run ends, for its numbers would be of two models.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import json
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException

from engine.errors import KINDS, GLMError
from engine.evaluation.asker import in_parts, persistently
from engine.evaluation.kinds import Answer, Question
from engine.glm.tokenizer import Tokenizer
from engine.serving.protocol import Limits

_REFUSED = ("login_needed", "role_needed", "forbidden")
_LONG = 120.0  # seconds that the first answer of a new connection may take


class ServerAsker:
    """url: of a server, as http://host:8000 or wss://host/glm. Between `__aenter__` and `__aexit__` it has a connection.

    GLMError: bad_request for a URL that is none, or a key that the server refuses; overloaded if it can't be reached, or has no
    model yet.
    """

    limits: Limits
    tokenizer: Tokenizer
    replicas: int
    width: int  # half of the slots: a server has other users

    def __init__(self, url: str, key: str) -> None:
        self._url, self._key = socket_url(url), key
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._numbers = itertools.count()
        self._open: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._weights: dict[str, str] | None = None  # fingerprint of the first connection's

    async def __aenter__(self) -> ServerAsker:
        await self._connected()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def ask(self, question: Question) -> list[Answer]:
        return await in_parts(question, lambda part: persistently(lambda: self._once(part)))

    async def _once(self, question: Question) -> list[Answer]:
        event = await self._exchange(await self._connected(), "evaluate", **_wire(question))
        return [Answer(tuple(one["ids"]), one["logprob"], one["text"], one["reason"]) for one in event["answers"]]

    async def _connected(self) -> ClientConnection:
        async with self._connecting:
            if self._socket is not None:
                return self._socket
            await self._close()  # the reader of a connection that broke
            try:
                socket = await connect(
                    self._url, additional_headers={"Authorization": f"Bearer {self._key}"}, max_size=None
                )
            except InvalidStatus as error:
                message = (
                    f"{self._url} answered {error.response.status_code}: it is no server of this kind, or refuses."
                )
                raise GLMError("bad_request", message, field="server") from error
            except (OSError, TimeoutError, WebSocketException) as error:
                message = f"The server at {self._url} can't be reached: {error or type(error).__name__}."
                raise GLMError("overloaded", message, field="server", retry_after_s=2.0) from error
            self._socket = socket
            self._reader = asyncio.create_task(self._read(socket))
            try:
                async with asyncio.timeout(_LONG):
                    self._learn(await self._exchange(socket, "evaluate_model"))
            except TimeoutError as error:
                raise GLMError("timeout", f"The server at {self._url} says nothing.", field="server") from error
            return socket

    def _learn(self, event: dict[str, Any]) -> None:
        limits = Limits(**event["limits"])
        if self._weights is not None:
            if limits.fingerprint() != self._weights:
                message = f"Other weights serve at {self._url} now; start again to measure those."
                raise GLMError("unsupported", message, field="server")
            return
        self._weights = limits.fingerprint()
        self.limits, self.replicas = limits, event["replicas"]
        self.width = self.replicas * max(1, limits.slots // 2)
        try:
            vocabulary = base64.b64decode(event["vocabulary"], validate=True)
        except binascii.Error as error:
            raise GLMError("bad_model", f"{self._url} gave no vocabulary.", field="server") from error
        self.tokenizer = Tokenizer(vocabulary, event["num_image_tokens"])

    async def _exchange(self, socket: ClientConnection, kind: str, **body: Any) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._open[number] = asyncio.get_running_loop().create_future()
        try:
            await socket.send(json.dumps({"type": kind, "id": number, **body}, separators=(",", ":")))
            return await answer
        except WebSocketException as error:
            raise GLMError("worker_died", "The connection to the server broke.", retry_after_s=1.0) from error
        finally:
            self._open.pop(number, None)

    async def _read(self, socket: ClientConnection) -> None:
        """Hand answers on until the connection ends; then those that wait are told so."""
        try:
            async for text in socket:
                event = json.loads(text)
                answer = self._open.get(event.get("id"))
                if answer is None or answer.done():
                    continue
                if event["type"] == "error":
                    answer.set_exception(_error(event))
                else:
                    answer.set_result(event)
        except WebSocketException:
            pass  # told below, as is a proper end
        finally:
            self._socket = None
            for answer in self._open.values():
                if not answer.done():
                    message = "The connection to the server broke."
                    answer.set_exception(GLMError("worker_died", message, retry_after_s=1.0))

    async def _close(self) -> None:
        if self._socket is not None:
            await self._socket.close()
        if self._reader is not None:
            await asyncio.wait({self._reader})
            self._reader = None


def socket_url(url: str) -> str:
    """The address of a server's socket. GLMError bad_request for what is no URL."""
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise GLMError("bad_request", f"--server takes a URL as http://localhost:8000, not {url!r}.", field="server")
    path = parts.path.rstrip("/")
    return urlunsplit((scheme, parts.netloc, path if path.endswith("/ws") else f"{path}/ws", "", ""))


def _wire(question: Question) -> dict[str, Any]:
    prompt = question.prompt
    body: dict[str, Any] = {
        "prompt": {
            "ids": prompt.ids,
            "positions": prompt.positions,
            "context_length": prompt.context_length,
            "next_position": prompt.next_position,
            "position_step": prompt.position_step,
        }
    }
    if question.choices:
        return body | {"choices": question.choices}
    sampling = question.sampling
    beams = sampling.beams
    return body | {
        "sampling": {
            "max_new_tokens": sampling.max_new_tokens,
            "min_new_tokens": sampling.min_new_tokens,
            "no_repeat_ngram": sampling.no_repeat_ngram,
            "stop": sampling.stop,
            "banned_ids": sampling.banned_ids,
            "banned_starts": sampling.banned_starts,
            "beams": beams and {"count": beams.count, "length_penalty": beams.length_penalty, "padding": beams.padding},
        }
    }


def _error(event: dict[str, Any]) -> GLMError:
    kind, message = event["kind"], event["message"]
    if kind in _REFUSED:
        return GLMError("bad_request", f"The server refuses the key: {message}", field="key_file")
    if kind == "not_ready":
        return GLMError("overloaded", message, retry_after_s=event.get("retry_after_s"))
    return GLMError(kind if kind in KINDS else "internal", message, retry_after_s=event.get("retry_after_s"))
