"""What the routes of the review desk take, field by field, with its limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationInfo, field_validator
from starlette.requests import Request

from app.bodies import json_body
from app.schemas import ALTERNATIVES, TEXT_CHARACTERS, Body, validated
from storage.reviews import ALTERNATIVES as KEPT_ALTERNATIVES
from storage.reviews import CORRECTED_CHARACTERS, NOTE_CHARACTERS, TAG_CHARACTERS, TAGS

BODY_BYTES = 4 * 1024 * 1024
MOST_TOKENS = 2048

Version = Annotated[int, Field(ge=0)]
Place = Annotated[int, Field(ge=0)]


class ReviewBody(Body):
    """What is left out stays as it is. `version`: the review's that the person saw, 0 if there was none."""

    version: Version
    rating: Annotated[int, Field(ge=1, le=5)] | None = None
    flagged: bool = False
    status: Literal["open", "done"] = "open"
    note: Annotated[str, Field(max_length=NOTE_CHARACTERS)] = ""
    tags: Annotated[list[Annotated[str, Field(max_length=4 * TAG_CHARACTERS)]], Field(max_length=4 * TAGS)] = []
    corrected: Annotated[str, Field(max_length=CORRECTED_CHARACTERS)] | None = None

    def changes(self) -> dict[str, Any]:
        """Only what was sent."""
        return {name: getattr(self, name) for name in self.model_fields_set if name != "version"}


class Span(Body):
    """Characters [start, end) of the output."""

    start: Place
    end: Place

    @field_validator("end")
    @classmethod
    def _behind_start(cls, end: int, info: ValidationInfo) -> int:
        if end < info.data.get("start", 0):
            raise ValueError("the span must not end before it starts")
        return end


class FillsBody(Span):
    """Without a temperature the likeliest fills are looked for."""

    alternatives: Annotated[int, Field(ge=1, le=ALTERNATIVES)] = 4
    max_new_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None


class Offered(Body):
    """A fill that the model offered."""

    text: Annotated[str, Field(max_length=TEXT_CHARACTERS)]
    logprob: float | None = None


class SpanBody(Span):
    """`replace`: take the place of a whole rewrite, if there is one."""

    version: Version
    chosen: Annotated[str, Field(max_length=CORRECTED_CHARACTERS)]
    source: Literal["model", "typed"]
    alternatives: Annotated[list[Offered], Field(max_length=KEPT_ALTERNATIVES)] = []
    logprob: float | None = None
    replace: bool = False


_ADAPTERS: dict[type[Body], TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in (ReviewBody, FillsBody, SpanBody)}


async def read(request: Request, kind: type[Body]) -> Any:
    """The request's body as one of the classes above. Raises Problem `bad_request` with the field, or `too_large`."""
    return validated(_ADAPTERS[kind], await json_body(request, BODY_BYTES))
