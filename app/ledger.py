"""What a run leaves behind in storage: written when it is accepted, finalised once, whatever the database does meanwhile.

A finalisation that fails is tried again with growing pauses until it succeeds or the server stops; what is still unwritten
then stands in the database as unfinished and becomes `interrupted` at the next start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from app.errors import Problem, incident
from engine.serving.events import Blank, Delta, Done, Event, Started, Usage
from storage import FilledBlank, Record, StorageError

ACCEPT_SECONDS = 12.0  # how long a visitor waits for the record of a run before the request is given up
FINALISE_SECONDS = 2.0  # how long the last event of a run waits for its record
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 30.0

logger = logging.getLogger(__name__)


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

    def as_arguments(self) -> dict[str, Any]:
        """Keyword arguments for `Record.finalise_run`."""
        names = set(self.__dataclass_fields__) - {"kinds", "accepted", "partial"}
        return {name: getattr(self, name) for name in names}


class Ledger:
    """Writes runs to `record`. Belongs to one event loop."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()

    async def accept(self, run: str, **values: Any) -> None:
        """Write an accepted run. Raises Problem; then the run does not count as accepted."""
        try:
            async with asyncio.timeout(ACCEPT_SECONDS):
                await self._record.accept_run(run, **values)
        except TimeoutError as error:
            # The write goes on behind our back and may yet succeed: the row must not stay unfinished.
            outcome = Outcome(())
            problem = Problem("database_unavailable", retry_after_s=5.0)
            outcome.end("error", None, problem)
            self._in_background(self._settle(run, outcome, FIRST_PAUSE))
            raise problem from error

    def started(self, run: str) -> None:
        """Mark a run as running; nobody waits for it, and a failure changes nothing."""
        self._in_background(self._start(run))

    async def finalise(self, run: str, outcome: Outcome) -> None:
        """Write the end of a run; returns when it is written, or after a moment while it is tried again behind."""
        task = self._in_background(self._settle(run, outcome, FIRST_PAUSE))
        await asyncio.wait({task}, timeout=FINALISE_SECONDS)

    async def close(self) -> None:
        """Let what is being written come to its end; retries get one last try at once."""
        self._stopping.set()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    @property
    def unwritten(self) -> int:
        """Writes that are under way or being tried again."""
        return len(self._tasks)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start(self, run: str) -> None:
        try:
            await self._record.start_run(run)
        except StorageError as error:
            logger.warning("run %s: could not be marked as running: %s", run, error)

    async def _settle(self, run: str, outcome: Outcome, pause: float) -> None:
        arguments = outcome.as_arguments()
        while True:
            last = self._stopping.is_set()
            try:
                if not await self._record.finalise_run(run, **arguments):
                    logger.debug("run %s was final already", run)
                return
            except StorageError as error:
                if error.kind == "not_found":
                    return  # its acceptance was never written
                logger.warning("run %s: its end could not be written: %s", run, error)
                if last:
                    return
            except Exception as error:  # noqa: BLE001 (it is logged, and the run must end)
                # Not the database's fault, so trying the same again is useless. The row must be final nevertheless.
                incident(error)
                if set(arguments) == {"status", "error_kind"}:
                    return
                arguments = {"status": outcome.status, "error_kind": outcome.error_kind or "internal"}
                continue
            try:
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            except TimeoutError:
                pause = min(2 * pause, LONGEST_PAUSE)
