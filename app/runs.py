"""The runs of this server. A run belongs to the server, not to the connection that asked for it.

`RunHub.start` writes a request to storage and only then sets it going; a task drives it and appends its events to the
run's log, `{"run", "seq": 1, 2, 3 ..., "type", ...}`. Any number of followers read the log at their own pace, from any
event on, during the run and for a while after it; later the answer comes from storage as one terminal event. A run that
nobody follows is cancelled after its grace time (0: at once). Every accepted run ends in exactly one terminal event.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from app.errors import Problem, problem
from app.ledger import Ledger
from app.outcome import Outcome
from app.schemas import Chat, Fill, Score, Task
from engine.serving.events import Started
from engine.serving.run import Run as Generation
from storage.erasure import only_numbers
from storage.identifier import new_id

TERMINAL = frozenset({"done", "cancelled", "error"})
KEPT_EVENTS = 200_000  # of finished runs, in memory
KEPT_SECONDS = 900.0
CANCEL_SECONDS = 10.0  # until a cancelled run that doesn't end by itself is given up
REPEATABLE_ID = 16  # characters: a client's id this long names its request, so that sending it twice runs it once

logger = logging.getLogger(__name__)


class Run:
    """One accepted request: its log of events and who follows it."""

    def __init__(
        self, visitor: str, mode: str, conversation: str | None, grace_seconds: float, outcome: Outcome, logged: bool
    ) -> None:
        self.id = new_id(18)
        self.logged = logged  # whether its texts are kept in storage
        self.forgotten = False  # deleted: not kept in memory either when it ends
        self.visitor = visitor
        self.mode = mode
        self.conversation = conversation
        self.grace_seconds = grace_seconds
        self.outcome = outcome
        self.events: list[dict[str, Any]] = []
        self.finished = False
        self.cancelled = False
        self.followers: list[Callable[[], None]] = []
        self.expiry: asyncio.TimerHandle | None = None  # ends the grace time
        self.deadline: asyncio.TimerHandle | None = None  # ends the wait for a cancelled run
        self.finished_at = 0.0
        self.key: str | None = None  # of the request, see _request_key

    def publish(self, event: dict[str, Any]) -> None:
        """Append an event to the log and wake whoever follows it."""
        assert not self.finished, "a run has one terminal event"
        self.events.append({"run": self.id, "seq": len(self.events) + 1, **event})
        self.finished = event["type"] in TERMINAL
        for wake in self.followers:
            wake()


# What the hub needs of the program around it: the events of a task under a run's id, and a way to cancel that run.
Begin = Callable[[Task, int, str], Generation]
Cancel = Callable[[str], Awaitable[Any]]


class RunHub:
    """All runs of this process, by id. Belongs to one event loop.

    cancel(run) makes the events of a run end. finished: how many finished runs stay in
    memory; concurrent: how many runs of one visitor may be under way (0: any number).
    """

    def __init__(self, ledger: Ledger, cancel: Cancel, *, finished: int, concurrent: int) -> None:
        self._ledger = ledger
        self._cancel = cancel
        self._keep = finished
        self._concurrent = concurrent
        self._runs: dict[str, Run] = {}  # under way
        self._finished: OrderedDict[str, Run] = OrderedDict()
        self._kept_events = 0
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._requests: dict[str, asyncio.Task[Run]] = {}  # of runs in memory and of those on their way into storage
        self._starting: dict[str, int] = {}  # visitor -> requests on their way into storage
        self._accepting: set[asyncio.Task[Run]] = set()
        self._background: set[asyncio.Task[None]] = set()
        self._closing = False

    # Starting

    async def start(
        self,
        task: Task,
        visitor: str,
        *,
        kinds: tuple[str, ...],
        grace_seconds: float,
        begin: Begin,
        open_conversation: Callable[[], Awaitable[str | None]],
        model_version: int | None,
        client: str = "web",
    ) -> Run:
        """Accept a task: a run that is in storage and under way. The same request sent twice with the same long id is one.

        kinds: of the masks of its text. begin(task, seed, run): the events of the task. open_conversation(): awaitable, the id of
        the conversation that it belongs to.
        Raises Problem or StorageError: then there is no run.
        """
        key = _request_key(task, visitor)
        starting = self._requests.get(key) if key else None
        if starting is None:
            self._check_room(visitor)
            # A task of its own: a connection that breaks in the middle can't leave a run half accepted.
            work = self._accept(task, visitor, kinds, grace_seconds, begin, open_conversation, model_version, client)
            starting = asyncio.create_task(work)
            self._starting[visitor] = self._starting.get(visitor, 0) + 1
            self._accepting.add(starting)
            starting.add_done_callback(lambda done: self._accepted(done, visitor, key))
            if key:
                self._requests[key] = starting
        return await asyncio.shield(starting)

    def _check_room(self, visitor: str) -> None:
        if self._closing:
            raise Problem("overloaded", "The server is stopping.", retry_after_s=5.0)
        count = sum(run.visitor == visitor for run in self._runs.values()) + self._starting.get(visitor, 0)
        if self._concurrent and count >= self._concurrent:
            raise Problem(
                "rate_limited",
                f"{count} runs of yours are under way; {self._concurrent} may be at the same time.",
                limit=self._concurrent,
                retry_after_s=1.0,
            )

    def _accepted(self, done: asyncio.Task[Run], visitor: str, key: str | None) -> None:
        self._accepting.discard(done)
        self._starting[visitor] -= 1
        if not self._starting[visitor]:
            del self._starting[visitor]
        if done.cancelled() or done.exception() is not None:
            self._requests.pop(key or "", None)
        else:
            done.result().key = key

    async def _accept(
        self,
        task: Task,
        visitor: str,
        kinds: tuple[str, ...],
        grace_seconds: float,
        begin: Begin,
        open_conversation: Callable[[], Awaitable[str | None]],
        model_version: int | None,
        client: str,
    ) -> Run:
        parameters = task.parameters.given()
        # Drawn here, so that the record has it; small enough to be typed by hand.
        seed = parameters.pop("seed", None)
        seed = secrets.randbelow(2**32) if seed is None else seed
        prompt: Any = [message.model_dump() for message in task.messages] if isinstance(task, Chat) else task.text
        if task.type == "score":
            parameters["answers"] = list(task.answers)
        if task.type == "fill" and task.order != "left":
            parameters["order"] = task.order
        if not task.log:
            prompt, parameters = "", only_numbers(parameters)
        conversation = await open_conversation() if task.log else None
        run = Run(visitor, task.type, conversation, grace_seconds, Outcome(kinds), task.log)
        await self._ledger.accept(
            run.id,
            visitor=visitor,
            mode=task.type,
            prompt=prompt,
            parameters=parameters,
            conversation=conversation,
            seed=seed,
            model_version=model_version,
            client=client,
            texts=task.log,
        )
        self._runs[run.id] = run
        told = {"conversation": conversation, "mode": task.type, "seed": seed, "log": task.log}
        run.publish({"type": "accepted", "id": task.id, **told})
        self._tasks[run.id] = asyncio.create_task(self._drive(run, task, seed, begin))
        self._watch(run)
        return run

    # Driving

    async def _drive(self, run: Run, task: Task, seed: int, begin: Begin) -> None:
        terminal: dict[str, Any] | None = None
        generation: Generation | None = None
        try:
            if run.cancelled:  # before there was anything to cancel
                raise asyncio.CancelledError
            generation = begin(task, seed, run.id)
            async for event in generation:
                assert terminal is None, "nothing comes after a terminal event"
                if event.terminal:
                    run.outcome.note(event)
                    terminal = event.as_dict()
                    continue
                if isinstance(event, Started) and run.outcome.queue_milliseconds is None:
                    self._ledger.started(run.id)
                run.outcome.note(event)
                run.publish(event.as_dict())
            if terminal is None:
                raise AssertionError("a run ended without a terminal event")
        except asyncio.CancelledError:
            # The server is stopping, or the model's side didn't answer a cancellation.
            whole = task.text if isinstance(task, Fill | Score) else None
            terminal = {"type": "cancelled", "text": whole or "".join(run.outcome.partial)}
            if self._closing:
                terminal = {"type": "error", **Problem("interrupted", retry_after_s=5.0).as_dict()}
        except Exception as error:  # noqa: BLE001 (every accepted run ends in a terminal event)
            terminal = {"type": "error", **problem(error).as_dict()}
        if generation is not None and terminal["type"] != "done":
            run.outcome.note_unfinished(generation.unfinished, generation.usage)
        self._conclude(run, terminal)
        try:
            # What isn't logged doesn't even get as far as the spool.
            await self._ledger.finalise(run.id, run.outcome if run.logged else run.outcome.without_texts())
        except asyncio.CancelledError:
            logger.debug("run %s: cancelled at its end", run.id)  # the write goes on by itself
        run.publish(terminal)
        self._retire(run)

    def _conclude(self, run: Run, terminal: dict[str, Any]) -> None:
        if terminal["type"] == "error":
            failure = Problem(terminal["kind"], terminal["message"])
            run.outcome.end("interrupted" if failure.kind == "interrupted" else "error", None, failure)
        else:
            run.outcome.end(terminal["type"], terminal["text"])

    def _retire(self, run: Run) -> None:
        """Move a finished run to those that are kept for a while, and forget the oldest of them."""
        for timer in (run.expiry, run.deadline):
            if timer is not None:
                timer.cancel()
        run.expiry = run.deadline = None
        del self._runs[run.id]
        del self._tasks[run.id]
        now = asyncio.get_running_loop().time()
        run.finished_at = now
        if run.forgotten:
            self._requests.pop(run.key or "", None)
            return
        self._finished[run.id] = run
        self._kept_events += len(run.events)
        while self._finished:
            oldest = next(iter(self._finished.values()))
            old = now - oldest.finished_at > KEPT_SECONDS
            if not (old or len(self._finished) > self._keep or self._kept_events > KEPT_EVENTS):
                break
            del self._finished[oldest.id]
            self._kept_events -= len(oldest.events)
            self._requests.pop(oldest.key or "", None)

    # Following

    def find(self, run: str, visitor: str) -> Run | None:
        """A run of this visitor that is in memory; another's looks like none."""
        found = self._runs.get(run) or self._finished.get(run)
        return found if found is not None and found.visitor == visitor else None

    async def follow(self, run: Run, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        """The run's events after number `after`, those to come included; ends behind the terminal one.

        Use it under `contextlib.aclosing`, so that a follower that goes away is seen to go at once.
        """
        news = asyncio.Event()
        run.followers.append(news.set)
        self._watch(run)
        try:
            position = after
            while True:
                news.clear()
                while position < len(run.events):
                    position += 1
                    yield run.events[position - 1]
                if run.finished:
                    return
                await news.wait()
        finally:
            run.followers.remove(news.set)
            self._watch(run)

    def _watch(self, run: Run) -> None:
        """Keep the grace timer running exactly while nobody follows an unfinished run."""
        if run.followers or run.finished:
            if run.expiry is not None:
                run.expiry.cancel()
                run.expiry = None
        elif run.expiry is None and run.id in self._tasks:
            run.expiry = asyncio.get_running_loop().call_later(run.grace_seconds, self._expire, run)

    def _expire(self, run: Run) -> None:
        run.expiry = None
        if not run.followers and not run.finished:
            logger.info("run %s: nobody follows it any more", run.id)
            cancelling = asyncio.create_task(self.cancel(run))
            self._background.add(cancelling)
            cancelling.add_done_callback(self._background.discard)

    # Ending

    async def cancel(self, run: Run) -> None:
        """Ask a run to end; its terminal event follows by itself (`cancelled`, unless it was faster)."""
        if run.finished or run.cancelled:
            return
        run.cancelled = True
        task = self._tasks.get(run.id)
        await self._cancel(run.id)
        if task is not None and not run.finished:
            run.deadline = asyncio.get_running_loop().call_later(CANCEL_SECONDS, task.cancel)

    async def end_all(self, visitor: str) -> None:
        """End the runs that this visitor has under way, and wait until they have; what is started meanwhile goes on."""
        while self._starting.get(visitor):
            await asyncio.wait(set(self._accepting), return_when=asyncio.FIRST_COMPLETED)
        mine = [run for run in self._runs.values() if run.visitor == visitor]
        tasks = {self._tasks[run.id] for run in mine}
        await asyncio.gather(*(self.cancel(run) for run in mine))
        if tasks:
            await asyncio.wait(tasks)

    def forget(self, *, visitor: str = "", conversation: str = "", run: str = "") -> None:
        """Keep nothing in memory of a visitor's or a conversation's runs, or of one run, whose texts are deleted; one under way
        still goes to its end for whoever follows it."""
        for one in [*self._runs.values(), *self._finished.values()]:
            if not (one.visitor == visitor or one.id == run or (conversation and one.conversation == conversation)):
                continue
            one.forgotten = True
            if self._finished.pop(one.id, None) is not None:
                self._kept_events -= len(one.events)
                self._requests.pop(one.key or "", None)

    async def close(self) -> None:
        """End every run as interrupted and write that down; nothing is accepted any more."""
        self._closing = True
        while self._accepting:
            await asyncio.wait(set(self._accepting))
        # A task that is cancelled before its first step would never see it.
        await asyncio.sleep(0)
        runs, tasks = list(self._runs.values()), list(self._tasks.values())
        for run in runs:
            await self._cancel(run.id)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._ledger.close()

    def counts(self) -> dict[str, int]:
        """How many runs are under way, are kept in memory, and wait for storage."""
        return {"running": len(self._runs), "kept": len(self._finished), "unwritten": self._ledger.unwritten}


def _request_key(task: Task, visitor: str) -> str | None:
    """What makes two requests the same one: a long id of the client's own, and the same content."""
    if not isinstance(task.id, str) or len(task.id) < REPEATABLE_ID:
        return None
    return hashlib.sha256(json.dumps([visitor, task.model_dump()], sort_keys=True).encode()).hexdigest()
