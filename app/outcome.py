"""What a run made, collected from its events as they come, in the form that storage takes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Any

from app.errors import Problem
from engine.serving.events import Blank, Delta, Done, Event, Started, Usage
from storage import FilledBlank


@dataclass(slots=True)
class Outcome:
    """What a run made so far, collected from its events, in the form that storage takes. `kinds`: of the text's masks."""

    kinds: tuple[str, ...]
    accepted: float = field(default_factory=time.monotonic)
    status: str = ""
    output: str | None = None
    error_kind: str | None = None
    error_message: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    largest_batch: int | None = None
    queue_milliseconds: float | None = None
    first_token_milliseconds: float | None = None
    total_milliseconds: float | None = None
    fingerprint: dict[str, str] | None = None
    blanks: list[FilledBlank] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)

    def note(self, event: Event) -> None:
        """Take what is to be kept from one event of the run."""
        if isinstance(event, Started):
            if self.queue_milliseconds is None:
                self.queue_milliseconds = self._milliseconds()
            self.prompt_tokens = event.prompt_tokens
        elif isinstance(event, Delta):
            if self.first_token_milliseconds is None:
                self.first_token_milliseconds = self._milliseconds()
            if event.alternative == 0:
                self.partial.append(event.text)
        elif isinstance(event, Blank):
            kind = self.kinds[event.index] if event.index < len(self.kinds) else "[gMASK]"
            alternatives = [{"text": other.text, "logprob": other.logprob} for other in event.alternatives]
            logprobs = [token.logprob for token in event.tokens]
            self.blanks.append(FilledBlank(event.index, kind, event.text, event.ids, logprobs, alternatives))
        elif isinstance(event, Done):
            self.finish_reason = event.finish_reason
            self.fingerprint = event.fingerprint
            self.prompt_tokens = event.usage.prompt_tokens
            self.new_tokens = event.usage.new_tokens
            self.largest_batch = event.usage.largest_batch
            if event.usage.first_token_seconds is not None:
                self.first_token_milliseconds = event.usage.first_token_seconds * 1000

    def note_unfinished(self, blank: Blank | None, usage: Usage) -> None:
        """A run that ends early keeps the tokens that there are of the blank it was at, and its counts."""
        if blank is not None:
            self.note(blank)
        self.prompt_tokens, self.new_tokens, self.largest_batch = (
            usage.prompt_tokens,
            usage.new_tokens,
            usage.largest_batch or None,
        )

    def end(self, status: str, output: str | None, problem: Problem | None = None) -> None:
        """The run is over. Without an output, a text with one blank keeps what was made of it."""
        self.status = status
        if output is None and len(self.kinds) == 1:
            output = "".join(self.partial)
        self.output = output
        if problem is not None:
            self.error_kind, self.error_message = problem.kind, problem.message
        self.total_milliseconds = self._milliseconds()

    def _milliseconds(self) -> float:
        return (time.monotonic() - self.accepted) * 1000

    def without_texts(self) -> Outcome:
        """What may be written of a run that isn't logged: how it ended, counts and timings."""
        return replace(self, output=None, error_message=None, blanks=[], partial=[])

    def as_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `Record.finalise_run`."""
        names = set(self.__dataclass_fields__) - {"kinds", "accepted", "partial"}
        return {name: getattr(self, name) for name in names}
