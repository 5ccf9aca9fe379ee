"""What a run tells whoever asked for it: the events of `generate`, in the form of the websocket.

`as_dict()` is the wire format without `run` and `seq`, which the connection adds. A run gives any number of Queued, one
Started, then Delta, Beams and Blank, and ends in exactly one Done, Cancelled or Error.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from engine.errors import GLMError


class Event:
    """Base of all events; `type` is the name on the wire."""

    __slots__ = ()
    type: ClassVar[str]
    terminal: ClassVar[bool] = False

    def as_dict(self) -> dict[str, Any]:
        return {"type": self.type, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class Queued(Event):
    """Waiting; `position` requests are to start before this one (0: it is the next). eta_s: seconds, None until measured."""

    type: ClassVar[str] = "queued"
    position: int
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The model begins to read the prompt. dropped_messages: how many of a conversation's oldest messages had no room."""

    type: ClassVar[str] = "started"
    model: str
    prompt_tokens: int
    dropped_messages: int = 0


@dataclass(frozen=True, slots=True)
class Delta(Event):
    """Text to append to an alternative of a blank; alternative 0 is the one that is shown and spliced."""

    type: ClassVar[str] = "delta"
    blank: int
    alternative: int
    text: str


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to fill a blank. logprob: of all its tokens, the end token included."""

    text: str
    logprob: float
    finish_reason: str


@dataclass(frozen=True, slots=True)
class TokenText:
    """One token of a blank as text; `top`: (text, logprob) of the most likely ones, when asked for."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class BeamText:
    """One answer of a beam search. logprob: the sum over its tokens; score: that, penalised by length, by which answers are
    ranked; ended: by its own end token."""

    text: str
    logprob: float
    score: float
    ended: bool


@dataclass(frozen=True, slots=True)
class Beams(Event):
    """How far the beam search for a blank is, best answer first; `final` is the search's result, the others may all change."""

    type: ClassVar[str] = "beams"
    blank: int
    final: bool
    beams: tuple[BeamText, ...]


@dataclass(frozen=True, slots=True)
class Blank(Event):
    """A blank is filled. `tokens` and `ids` are those of alternative 0; the tokens' texts joined are `text`."""

    type: ClassVar[str] = "blank"
    index: int
    text: str
    alternatives: tuple[Alternative, ...]
    tokens: tuple[TokenText, ...]
    ids: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        tokens = [
            {"text": token.text, "logprob": token.logprob}
            | ({"top": [{"text": text, "logprob": logprob} for text, logprob in token.top]} if token.top else {})
            for token in self.tokens
        ]
        return {
            "type": self.type,
            "index": self.index,
            "text": self.text,
            "alternatives": [asdict(alternative) for alternative in self.alternatives],
            "tokens": tokens,
            "ids": list(self.ids),
        }


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts over all blanks of a run; times in seconds from acceptance, waiting included.

    tokens_per_second leaves out the time of waiting. largest_batch: rows of the largest step it took part in.
    """

    prompt_tokens: int
    new_tokens: int
    seconds: float
    first_token_seconds: float | None
    tokens_per_second: float
    largest_batch: int


@dataclass(frozen=True, slots=True)
class Done(Event):
    """The end of a run that went well. finish_reason: "stop", "length", "stop_string" (of the last blank), "scored"."""

    type: ClassVar[str] = "done"
    terminal: ClassVar[bool] = True
    text: str
    finish_reason: str
    usage: Usage
    seed: int
    fingerprint: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cancelled(Event):
    """The end of a run that was cancelled; `text` is what there is, blanks not yet filled are still masks."""

    type: ClassVar[str] = "cancelled"
    terminal: ClassVar[bool] = True
    text: str


@dataclass(frozen=True, slots=True)
class Error(Event):
    """The end of a run that failed."""

    type: ClassVar[str] = "error"
    terminal: ClassVar[bool] = True
    kind: str
    message: str
    retry_after_s: float | None = None
    field: str | None = None
    limit: int | float | str | None = None

    @staticmethod
    def of(error: GLMError) -> Error:
        return Error(error.kind, error.message, error.retry_after_s, error.field, error.limit)
