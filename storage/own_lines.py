"""The lines of the project's own JSON lines, field by field, as `storage.export.own` writes them; anything else is refused.

line = read_line(data, number)        # ExportLine, ModelVersionLine or RunLine, or StorageError("bad_request") with the number
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from storage.errors import StorageError
from storage.models import CHOICES, CONVERSATION_KINDS, FINAL
from storage.review_tables import REVIEW_STATUSES, SPAN_SOURCES

LINE_BYTES = 64 << 20
VERSION = 1

Id = Annotated[str, Field(min_length=1, max_length=200)]
Moment = AwareDatetime
Count = Annotated[int, Field(ge=0, lt=1 << 31)]
Milliseconds = Annotated[float, Field(ge=0)]
TokenId = Annotated[int, Field(ge=-(1 << 31), lt=1 << 31)]


class Line(BaseModel):
    """Strict: a number is no text, an unknown field is an error, and so is a missing one."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class ExportLine(Line):
    kind: Literal["export"]
    form: Literal["glm-playground"]
    version: int


class ModelVersionLine(Line):
    kind: Literal["model_version"]
    weights_hash: Id
    name: str
    config: dict[str, Any]
    parent: Id | None
    created: Moment
    tainted: Moment | None


class MessageLine(Line):
    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    role: str
    content: str


class ConversationLine(Line):
    id: Id
    visitor: str
    kind: Literal[CONVERSATION_KINDS]  # type: ignore[valid-type]
    title: str
    created: Moment
    updated: Moment
    deleted: Moment | None


class BlankLine(Line):
    index: Count
    kind: str
    text: str
    token_ids: list[TokenId]
    logprobs: list[float | None]
    alternatives: list[dict[str, Any]] | None


class FeedbackLine(Line):
    visitor: str
    rating: Literal[-1, 1] | None
    comment: str
    created: Moment
    updated: Moment


class VoteLine(Line):
    first_run_id: Id
    second_run_id: Id
    visitor: str
    choice: Literal[CHOICES]  # type: ignore[valid-type]
    blind: bool
    created: Moment
    updated: Moment


class SpanLine(Line):
    id: Id
    start: Count
    end: Count
    rejected: str
    chosen: str
    source: Literal[SPAN_SOURCES]  # type: ignore[valid-type]
    text: str
    alternatives: list[dict[str, Any]] | None
    logprob: float | None
    created: Moment
    reviewer: str | None


class ReviewLine(Line):
    version: Annotated[int, Field(ge=0, lt=1 << 31)]
    status: Literal[REVIEW_STATUSES]  # type: ignore[valid-type]
    rating: Annotated[int, Field(ge=1, le=5)] | None
    flagged: bool
    corrected: str | None
    note: str
    created: Moment
    updated: Moment
    reviewer: str | None
    tags: list[str]
    spans: list[SpanLine]


class RunLine(Line):
    kind: Literal["run"]
    id: Id
    visitor: str
    client: str
    mode: str
    parameters: dict[str, Any]
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] | None
    fingerprint: dict[str, Any] | None
    repaired: bool
    status: Literal[FINAL]  # type: ignore[valid-type]
    output: str | None
    finish_reason: str | None
    error_kind: str | None
    error_message: str | None
    prompt_tokens: Count | None
    new_tokens: Count | None
    largest_batch: Count | None
    mean_logprob: float | None
    queue_milliseconds: Milliseconds | None
    first_token_milliseconds: Milliseconds | None
    total_milliseconds: Milliseconds | None
    created: Moment
    started: Moment | None
    finished: Moment | None
    prompt: str | None
    messages: list[MessageLine] | None
    model: Id | None
    conversation: ConversationLine | None
    blanks: list[BlankLine]
    feedback: list[FeedbackLine]
    votes: list[VoteLine]
    review: ReviewLine | None

    @model_validator(mode="after")
    def _whole(self) -> RunLine:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("a run has a prompt or messages")
        if len({blank.index for blank in self.blanks}) != len(self.blanks):
            raise ValueError("two blanks have the same index")
        if len({one.visitor for one in self.feedback}) != len(self.feedback):
            raise ValueError("two ratings are of the same visitor")
        if any(self.id not in (vote.first_run_id, vote.second_run_id) for vote in self.votes):
            raise ValueError("a vote is of other runs")
        if self.review is not None and len(set(self.review.tags)) != len(self.review.tags):
            raise ValueError("a tag comes twice")
        return self


AnyLine = ExportLine | ModelVersionLine | RunLine
_LINE: TypeAdapter[AnyLine] = TypeAdapter(Annotated[AnyLine, Field(discriminator="kind")])


def read_line(data: bytes, number: int) -> AnyLine:
    """One line of the file. Raises `StorageError("bad_request")` with its number and what is wrong, without its texts."""
    try:
        return _LINE.validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"][1:])[:100]
        raise damaged(number, f"{place}: {first['msg']}" if place else first["msg"]) from error


def damaged(number: int, why: str) -> StorageError:
    """The error of a line that can't be imported."""
    return StorageError(
        "bad_request", f"Line {number} can't be imported ({why[:300].rstrip('.')}). Nothing was changed."
    )
