"""Reading a request's JSON body, with a limit, so that no page of another site can send one unasked."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from app.errors import Problem
from app.schemas import read_json


async def json_body(request: Request, most: int) -> Any:
    """The body as JSON. Raises Problem `bad_request` or `too_large`."""
    return read_json(await read_body(request, most))


async def read_body(request: Request, most: int) -> bytes:
    """The body of at most `most` bytes, which must be sent as JSON. Raises Problem `bad_request` or `too_large`."""
    # A form of another site can send text/plain without asking; application/json makes its browser ask first.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Problem("bad_request", "The body must be sent as application/json.", field="Content-Type")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Problem("too_large", f"The body may have {most} bytes.", limit=most)
    return bytes(body)
