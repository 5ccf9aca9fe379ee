"""What the routes of training take, field by field, with its limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter
from starlette.requests import Request

from app.bodies import json_body
from app.schemas import Body, validated
from app.training_plan import REPLAY_SHARE, Options

NAME_CHARACTERS = 60
BODY_BYTES = 16 * 1024

Id = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=NAME_CHARACTERS)]


class OptionsBody(Body):
    """How to train; what is null takes the default that fits the rows."""

    kind: Literal["lora", "full"] = "lora"
    learning_rate: float | None = Field(None, gt=0, le=1)
    steps: int | None = Field(None, ge=1, le=1_000_000)
    rank: int = Field(8, ge=1, le=1024)
    replay_share: float = Field(REPLAY_SHARE, ge=0, le=0.9)

    def options(self) -> Options:
        return Options(**self.model_dump())


class PreviewBody(Body):
    """dataset: its id; base: number of the model version to go on from."""

    dataset: Id
    base: int = Field(ge=1)
    options: OptionsBody = OptionsBody()


class StartBody(PreviewBody):
    """name: of the model that comes out."""

    name: Name


class DeployBody(Body):
    """drain: finish what runs before the new weights are loaded, where there is no room for both. unchecked: without a
    comparison."""

    drain: bool = False
    unchecked: bool = False


async def read(request: Request, kind: type[Body]) -> Any:
    """The request's body as one of the classes above. Raises Problem `bad_request` with the field, or `too_large`."""
    return validated(_ADAPTERS[kind], await json_body(request, BODY_BYTES))


_ADAPTERS = {kind: TypeAdapter(kind) for kind in (PreviewBody, StartBody, DeployBody)}
