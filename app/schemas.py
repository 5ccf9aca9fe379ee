"""What clients may send over `/ws` and `/api`, field by field, with its limits; everything else is refused by name.

`read_message(text)` turns one text frame into one of the message classes or raises `Problem("bad_request")` that names the
field and the limit. Limits that the model decides (vocabulary, positions) are engine.serving.protocol's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from app.errors import Problem
from app.evaluation_bodies import Evaluate, EvaluateModel
from storage.conversations import TITLE_CHARACTERS

FRAME_BYTES = 16 * 1024 * 1024  # beyond this the connection is closed (1009); up to it an answer names the limit
MESSAGE_CHARACTERS = 1_000_000
TEXT_CHARACTERS = 200_000
MESSAGES = 1000
ANSWERS = 64
STOP_STRINGS = 16
STOP_CHARACTERS = 200
ALTERNATIVES = 8
BEAMS = 16
SEED_MAXIMUM = 2**53 - 1  # what JavaScript can hold without rounding
COMMENT_CHARACTERS = 5000
SHARED_RUNS = 200
HIDDEN_WORDS = 300
HIDDEN_CHARACTERS = 1000
REASON_CHARACTERS = 2000
EXPIRY_SECONDS = 366 * 24 * 3600
#: Type of a message -> kind of the conversation that it opens
CONVERSATION_KINDS = {"chat": "chat", "generate": "complete", "fill": "blanks", "score": "blanks"}
ID_CHARACTERS = 128
NAME_CHARACTERS = 100  # of a field's name, where an answer repeats it

ClientId = Annotated[str, Field(max_length=ID_CHARACTERS)] | int | None
RunId = Annotated[str, Field(min_length=1, max_length=ID_CHARACTERS)]
ConversationId = Annotated[str, Field(min_length=1, max_length=ID_CHARACTERS)] | None
Text = Annotated[str, Field(min_length=1, max_length=TEXT_CHARACTERS)]
# `log` false, of each kind of run: only counts and timings are kept of it, where the host allows that.


class Body(BaseModel):
    """Strict: "0.5" is no number, true is no number, an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Parameters(Body):
    """Sampling, or with `num_beams` a beam search. What is left out takes the server's default, which /api/info tells;
    `temperature` 0 is greedy."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_k: int | None = Field(None, ge=0)
    top_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    no_repeat_ngram: int | None = Field(None, ge=0, le=100)
    min_new_tokens: int | None = Field(None, ge=0)
    max_new_tokens: int | None = Field(None, ge=1)
    stop: list[Annotated[str, Field(min_length=1, max_length=STOP_CHARACTERS)]] | None = Field(
        None, max_length=STOP_STRINGS
    )
    seed: int | None = Field(None, ge=0, le=SEED_MAXIMUM)
    alternatives: int | None = Field(None, ge=1, le=ALTERNATIVES)
    logprobs: int | None = Field(None, ge=0, le=20)
    num_beams: int | None = Field(None, ge=1, le=BEAMS)
    length_penalty: float | None = Field(None, ge=-10, le=10)
    sampled_beams: bool | None = None

    def given(self) -> dict[str, Any]:
        """Only what the client set."""
        return self.model_dump(exclude_none=True)


class Generate(Body):
    """Continue a text, or fill its only blank."""

    type: Literal["generate"]
    id: ClientId = None
    text: Text
    parameters: Parameters = Parameters()
    conversation: ConversationId = None
    log: bool = True


class ChatMessage(Body):
    role: Literal["user", "assistant"]
    content: Annotated[str, Field(max_length=TEXT_CHARACTERS)]


class Chat(Body):
    """Answer the last message, which is the user's."""

    type: Literal["chat"]
    id: ClientId = None
    messages: list[ChatMessage] = Field(min_length=1, max_length=MESSAGES)
    parameters: Parameters = Parameters()
    conversation: ConversationId = None
    log: bool = True

    @field_validator("messages")
    @classmethod
    def _last_is_users(cls, messages: list[ChatMessage]) -> list[ChatMessage]:
        if messages[-1].role != "user" or not messages[-1].content.strip():
            raise ValueError("the last message must be the user's and not empty")
        return messages


class Fill(Body):
    """Fill every blank of a text: from left to right, or the one that the model is surest of first."""

    type: Literal["fill"]
    id: ClientId = None
    text: Text
    order: Literal["left", "confident"] = "left"
    parameters: Parameters = Parameters()
    conversation: ConversationId = None
    log: bool = True


class Score(Body):
    """The log-probability of given answers, one for each blank, in order."""

    type: Literal["score"]
    id: ClientId = None
    text: Text
    answers: list[Annotated[str, Field(max_length=TEXT_CHARACTERS)]] = Field(min_length=1, max_length=ANSWERS)
    parameters: Parameters = Parameters()
    conversation: ConversationId = None
    log: bool = True


class Cancel(Body):
    type: Literal["cancel"]
    id: ClientId = None
    run: RunId


class Resume(Body):
    """Follow a run of one's own from the event after `after`; 0 begins at the first."""

    type: Literal["resume"]
    id: ClientId = None
    run: RunId
    after: int = Field(0, ge=0)


Task = Generate | Chat | Fill | Score
Message = Task | Cancel | Resume | EvaluateModel | Evaluate
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])
_TYPES = ("generate", "chat", "fill", "score", "cancel", "resume", "evaluate_model", "evaluate")

# What `POST /api/estimate` takes: the message that would start a run.
Estimable = Generate | Chat | Fill
_ESTIMABLE: TypeAdapter[Estimable] = TypeAdapter(Annotated[Estimable, Field(discriminator="type")])


class FeedbackBody(Body):
    """A thumb (-1, 1; 0 takes it back) and a comment ("" takes it back) on a run of one's own."""

    run: RunId
    rating: Literal[-1, 0, 1] | None = None
    comment: Annotated[str, Field(max_length=COMMENT_CHARACTERS)] | None = None


class VoteBody(Body):
    """Which of two runs of one's own is better; `blind`: the settings were hidden when the choice was made."""

    first: RunId
    second: RunId
    choice: Literal["first", "second", "tie", "neither"]
    blind: bool = False

    @field_validator("second")
    @classmethod
    def _another_run(cls, second: str, info: ValidationInfo) -> str:
        if second == info.data.get("first"):
            raise ValueError("the second run must be another one than the first")
        return second


class TitleBody(Body):
    """A conversation's new title."""

    title: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=TITLE_CHARACTERS)]


HiddenWords = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=HIDDEN_CHARACTERS)]
SharedRuns = Annotated[list[RunId], Field(min_length=1, max_length=SHARED_RUNS)]


class SharePreviewBody(Body):
    """What a page with these runs would show; `hidden` are words to leave out of it."""

    runs: SharedRuns
    text: Annotated[str, Field(max_length=TEXT_CHARACTERS)] | None = None
    title: Annotated[str, StringConstraints(strip_whitespace=True, max_length=TITLE_CHARACTERS)] | None = None
    hidden: Annotated[list[HiddenWords], Field(max_length=HIDDEN_WORDS)] = []


class ShareBody(SharePreviewBody):
    """Publish that page; null lets it stay until it is revoked."""

    title: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=TITLE_CHARACTERS)]
    expires_seconds: int | None = Field(None, ge=60, le=EXPIRY_SECONDS)


class ReportBody(Body):
    """Why a shared page shouldn't be there."""

    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=REASON_CHARACTERS)]


def read_message(text: str) -> Message:
    """One frame as a message. Raises Problem with the kind `bad_request` or `too_large`."""
    _check_size(text)
    return validated(_MESSAGE, read_json(text))


def read_estimable(body: bytes) -> Estimable:
    """A body as the message whose cost is asked for. Raises Problem as `read_message`."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise Problem("bad_request", "The body is not UTF-8.") from error
    _check_size(text)
    value = read_json(text)
    if isinstance(value, dict) and "type" not in value:
        raise Problem("bad_request", "The message has no type; the types are chat, fill, generate.", field="type")
    return validated(_ESTIMABLE, value)


def _check_size(text: str) -> None:
    if len(text) > MESSAGE_CHARACTERS:
        raise Problem(
            "too_large",
            f"A message may have {MESSAGE_CHARACTERS} characters, this one has {len(text)}.",
            limit=MESSAGE_CHARACTERS,
        )


def read_json(text: str | bytes) -> Any:
    """JSON without NaN and infinities. Raises Problem."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise Problem("bad_request", "The message is nested too deeply.") from error
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            raise Problem("bad_request", f"The message is not JSON: {error.msg} at character {error.pos}.") from error
        raise Problem("bad_request", f"The message is not JSON: {error}.") from error


def validated(adapter: TypeAdapter[Any], value: Any) -> Any:
    """`value` as the adapter's type. Raises Problem `bad_request` with the first field that is wrong, and its limit."""
    if not isinstance(value, dict):
        raise Problem("bad_request", "A message is one JSON object.")
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise _problem(error) from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number in JSON")


_LIMITS = ("max_length", "min_length", "le", "lt", "ge", "gt")


def _problem(error: ValidationError) -> Problem:
    # Unions report one error for each member; the first in the order of the message is what a person can act on.
    first = error.errors(include_url=False, include_input=False)[0]
    kind, context = first["type"], first.get("ctx", {})
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        tags = str(context.get("expected_tags") or ", ".join(_TYPES)).replace("'", "")
        what = "has no type" if kind == "union_tag_not_found" else "has an unknown type"
        return Problem("bad_request", f"The message {what}; the types are {tags}.", field="type")
    # The first part of the place is the union's tag (the message's type), which is no field.
    place = list(first["loc"])
    if place and place[0] in _TYPES:
        place = place[1:]
    names = [str(part)[:NAME_CHARACTERS] for part in place if part not in ("int", "str", "constrained-str")]
    field = ".".join(names) or None
    limit = next((context[name] for name in _LIMITS if name in context), None)
    text = first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return Problem("bad_request", f"There is no field {field}.", field=field)
    if kind == "missing":
        return Problem("bad_request", f"The field {field} is missing.", field=field)
    return Problem("bad_request", f"{field or 'The message'}: {text[:1].lower()}{text[1:]}.", field=field, limit=limit)


# The message's own id, for an answer to a frame that is too large to be read. Inside a JSON string a quote is escaped, so
# this finds a key and not a part of a text.
_ID = re.compile(r'(?<!\\)"id"\s*:\s*(?:"([^"\\]{0,128})"|(-?\d{1,15})(?![\d.eE]))')


def client_id(text: str) -> str | int | None:
    """The `id` of a message that could not be used, as well as it can be told; None if there is none."""
    if len(text) <= MESSAGE_CHARACTERS:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
        found = value.get("id") if isinstance(value, Mapping) else None
        usable = isinstance(found, int) and not isinstance(found, bool) or isinstance(found, str)
        return found if usable and len(str(found)) <= ID_CHARACTERS else None
    match = _ID.search(text)
    if match is None:
        return None
    return match[1] if match[1] is not None else int(match[2])
