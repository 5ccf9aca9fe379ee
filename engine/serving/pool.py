"""All replicas of a model behind one queue, for the event loop of the web process. Torch-free.

    pool = Pool("embedded"); await pool.start()
    async for event in pool.stream(request): ...      # see stream.py; or GLMError
    await pool.switch("runs/ours/model")              # other weights; what runs, ends on those that it began with

Requests are given out first in, first out, to the replica with the fewest tokens in flight that has slots for all their
rows. When a replica dies, its requests are run again if no text of theirs had left, else they fail with `worker_died`.
Every accepted request ends in exactly one Finished, Cancelled or GLMError.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Any, Protocol

from engine.errors import GLMError
from engine.serving import protocol
from engine.serving.member import Member
from engine.serving.options import plan_replicas
from engine.serving.pace import Pace
from engine.serving.pinned import Pinned
from engine.serving.protocol import Cancel, Cancelled, Failed, Finished, Limits, Request, Step
from engine.serving.stream import Flight, Queued, Started, Stream
from engine.serving.version import Version
from engine.serving.versions import Versions

log = logging.getLogger(__name__)

MOST_RUNS = 2  # of a request whose replica died: a request that kills replicas must not kill them all


class Cancellable(Protocol):
    """What `register` takes."""

    id: str

    def cancel(self) -> None: ...


class Pool:
    """`model`: "embedded" or a model folder. tensor_parallel: processes (ranks) that share the weights of one replica; slots:
    sequences that run at the same time in one replica; queue: requests that may wait; threads: of one rank (None: what the
    machine has, less one for this process, shared by all ranks).

    quantize: make plain weights so while they are loaded, of config.SERVED_QUANTIZATIONS; offload: where the layers wait that
    don't fit into weights_budget (bytes of one rank): "none", "host" or "disk". device: "auto" (accelerators if there are
    any, one a rank) or "cpu". prefill_tokens: prompts are read together up to so many tokens; gap_seconds: that running
    requests wait for a token meanwhile (0: as long as it takes). batch_invariant: see runner.Runner. kv_cache: "auto", "full" or
    "fp16", see cache_precision.py. eager: no graphs.py on accelerators. start_timeout: seconds until the first replica must be
    ready (None: by the size of the weights).

    Errors: bad_request for a value that can't be; model_not_found, bad_model, unsupported if the model can't be served so.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        replicas: int = 1,
        tensor_parallel: int = 1,
        slots: int = 16,
        queue: int = 256,
        threads: int | None = None,
        precision: str = "fp32",
        quantize: str | None = None,
        offload: str = "none",
        weights_budget: int | None = None,
        device: str = "auto",
        prefill_tokens: int = 512,
        gap_seconds: float = 0.1,
        batch_invariant: bool = False,
        kv_cache: str = "auto",
        eager: bool = False,
        start_timeout: float | None = None,
    ) -> None:
        if queue < 1:
            raise GLMError("bad_request", "queue must be at least 1.", field="queue", limit=1)
        plan = functools.partial(
            plan_replicas,
            replicas=replicas,
            tensor_parallel=tensor_parallel,
            slots=slots,
            threads=threads,
            precision=precision,
            quantize=quantize,
            offload=offload,
            weights_budget=weights_budget,
            device=device,
            prefill_tokens=prefill_tokens,
            gap_seconds=gap_seconds,
            batch_invariant=batch_invariant,
            kv_cache=kv_cache,
            eager=eager,
        )
        self._versions = Versions(model, plan, self, start_timeout)
        self._slots, self._queue_limit = slots, queue
        self._flights: dict[str, Flight] = {}  # waiting and running
        self._waiting: deque[Flight] = deque()
        self._runs: weakref.WeakValueDictionary[str, Cancellable] = weakref.WeakValueDictionary()
        self._stopping = False
        self._announcing = False
        self.pace = Pace()

    @property
    def model(self) -> str:
        """The folder of the weights that serve, or "embedded"."""
        return self._versions.current.model

    @property
    def limits(self) -> Limits | None:
        """Of the weights that serve; None before their first replica was ready."""
        return self._versions.current.limits

    @property
    def launched(self) -> bool:
        """`launch` or `start` was called."""
        return self._versions.current.launched

    def choose(self, model: str | Path) -> None:
        """Before the start, or after one that failed: other weights than those it was made for. GLMError as the constructor's."""
        self._versions.choose(model)
        self._stopping = False

    def launch(self) -> None:
        """Begin to start the replicas, one after the other, in the running loop; `start` waits for them."""
        self._versions.current.launch()

    async def start(self) -> None:
        """Start the replicas, if they aren't launched; returns when the first is ready. GLMError if it can't be."""
        try:
            await self._versions.start()
        except BaseException:
            await self.stop()
            raise

    async def switch(self, model: str | Path, *, drain: bool = False) -> Limits:
        """Put other weights into service, with all else as it is; returns their limits once all their replicas are ready.

        They load beside the old ones, which serve on meanwhile. From then on requests go to the new ones; those that were
        accepted before, waiting ones and runs with blanks to come included, end on the old ones, which then leave.
        drain: where there is no room for both. The old ones finish what they have and leave first; until the new ones are
        ready, new requests are refused as overloaded.

        GLMError: bad_request, model_not_found, bad_model, unsupported; overloaded for a lack of memory, or another switch that is
        under way; worker_died, timeout. The old weights are in service then, with `drain` loaded again.
        """
        return await self._versions.switch(model, drain)

    async def settled(self) -> None:
        """Wait until only one version is there: those that were replaced have ended what they had, and are gone."""
        await self._versions.settled()

    async def stop(self) -> None:
        """End all replicas. Requests that have not ended fail with `worker_died`. May be called twice."""
        self._stopping = True
        self._waiting.clear()
        for flight in list(self._flights.values()):
            self._end(flight, GLMError("worker_died", "The server is stopping."))
        await self._versions.stop()

    async def __aenter__(self) -> Pool:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def ready(self) -> bool:
        """A replica is ready now."""
        return self._versions.current.ready

    @property
    def waiting(self) -> int:
        """Requests that no replica works on yet."""
        return len(self._waiting)

    def wait_seconds(self, rows: int) -> float | None:
        """How long a request of so many rows would wait if it came now: 0 if it would not, None before anything was measured."""
        if not self._waiting and any(self._fits(member, rows) for member in self._versions.current.members):
            return 0.0
        return self._eta(sum(map(self._slots_of, self._waiting)))

    def status(self) -> dict[str, Any]:
        """What the pool is doing, for a health page."""
        return {
            "ready": self.ready,
            "model": self.limits.model if self.limits else self.model,
            "waiting": len(self._waiting),
            "in_flight": len(self._flights) - len(self._waiting),
            "replicas": [
                {
                    "index": member.index,
                    "model": version.model,
                    "leaving": version.leaving,
                    "state": member.state,
                    "pid": member.pid,
                    "pids": member.pids,
                    "requests": sum(flight.member is member for flight in self._flights.values()),
                    "rows": self._rows(member),
                    "tokens_in_flight": self._tokens(member),
                    "starts": member.starts,
                    "reason": member.reason,
                }
                for version in self._versions.all
                for member in version.members
            ],
        }

    def require_limits(self) -> Limits:
        """The limits; GLMError overloaded before the first replica is ready."""
        return self._versions.current.require_limits()

    def pinned(self) -> Pinned:
        """This pool with the weights that serve now, whatever comes into service later. GLMError overloaded while a switch that
        drains first is between two."""
        if self._versions.between:
            raise GLMError("overloaded", "Other weights are being loaded; please try again.", retry_after_s=5.0)
        return Pinned(self, self._versions.current)

    def stream(self, request: Request, *, first: bool = False) -> Stream:
        """Accept a request; its events follow. `first`: it goes on with a run that was accepted, so it waits before all
        others and is never refused for a full queue. Errors at once: those of `protocol.check`, queue_full, overloaded."""
        return self.pinned().stream(request, first=first)

    def accept(self, version: Version, request: Request, first: bool) -> Stream:
        """`stream`, for Pinned."""
        protocol.check(request, version.require_limits())
        if self._stopping:
            raise GLMError("overloaded", "The server is stopping.")
        if version.broken:
            reason = version.members[0].reason
            raise GLMError("overloaded", f"The model can't be run at the moment. {reason}", retry_after_s=5.0)
        if len(self._waiting) >= self._queue_limit and not first:
            raise GLMError(
                "queue_full",
                f"{len(self._waiting)} requests are waiting already; please try again later.",
                limit=self._queue_limit,
                retry_after_s=self._eta(sum(map(self._slots_of, self._waiting))) or 1.0,
            )
        assert request.id not in self._flights, "request ids are unique"
        flight = Flight(request, Stream(request), version)
        version.requests += 1
        self._flights[request.id] = flight
        if first:
            self._waiting.appendleft(flight)
        else:
            self._waiting.append(flight)
        self._dispatch()
        if flight.member is None:
            self._announce()
        else:
            flight.stream.put(Queued(0, 0.0))
        return flight.stream

    async def cancel(self, identifier: str) -> bool:
        """Cancel a run of `generate`, or a single request, by its id. Its events still come to an end by themselves, with
        Cancelled unless it was faster. False if there is nothing of this id."""
        run = self._runs.get(identifier)
        if run is None:
            return self.cancel_request(identifier)
        run.cancel()
        return True

    def cancel_request(self, request_id: str) -> bool:
        """As `cancel`, for requests only."""
        flight = self._flights.get(request_id)
        if flight is None:
            return False
        if not flight.cancelled:
            flight.cancelled = True
            if flight.member is None:
                self._waiting.remove(flight)
                self._end(flight, Cancelled(request_id))
                self._dispatch()
                self._announce()
            else:
                flight.member.send(Cancel(request_id))
        return True

    def register(self, run: Cancellable) -> None:
        """Let `cancel(run.id)` call `run.cancel()`, as long as somebody holds the run."""
        assert run.id not in self._runs, "run ids are unique"
        self._runs[run.id] = run

    def forget(self, run: Cancellable) -> None:
        """The end of `register`."""
        self._runs.pop(run.id, None)

    # What the versions tell (see version.Host)

    def version_ready(self, version: Version) -> None:
        self._dispatch()

    def version_failed(self, version: Version, error: GLMError) -> None:
        if version.broken:
            message = f"The model can't be started again. {error.message}"
            for flight in [flight for flight in self._waiting if flight.version is version]:
                self._waiting.remove(flight)
                self._end(flight, GLMError("worker_died", message, retry_after_s=5.0))

    def member_died(self, member: Member) -> None:
        again = []
        for flight in [flight for flight in self._flights.values() if flight.member is member]:
            flight.member = None
            if flight.cancelled:
                self._end(flight, Cancelled(flight.request.id))
            elif flight.told_text or flight.runs >= MOST_RUNS:
                message = "The process that ran the model ended unexpectedly."
                self._end(flight, GLMError("worker_died", message, retry_after_s=5.0))
            else:
                again.append(flight)
        self._waiting.extendleft(reversed(again))
        self._dispatch()

    def member_stepped(self, member: Member, step: Step) -> None:
        for request_id in step.started:
            flight = self._flights.get(request_id)
            if flight is not None and not flight.told_started:
                assert member.limits is not None
                flight.told_started = True
                flight.stream.put(Started(member.limits))
        for token in step.tokens:
            flight = self._flights.get(token.request)
            if flight is not None:
                flight.told_text = True
                flight.stream.put(token)
        for search in step.searches:
            flight = self._flights.get(search.request)
            if flight is not None:  # nothing of it is certain yet, so the request may still be run again elsewhere
                flight.stream.put(search)
        for end in step.ends:
            flight = self._flights.get(end.id)
            if flight is None:  # the pool is stopping
                continue
            if isinstance(end, Finished) and not flight.request.choices:
                self.pace.note_finished(flight.stream, end, time.monotonic())
            self._end(flight, end.error if isinstance(end, Failed) else end)
        if step.ends:
            self._dispatch()

    def _dispatch(self) -> None:
        """Give out the queue in its order, of each version as far as slots are free."""
        gave, full, kept = False, set[Version](), deque[Flight]()
        while self._waiting and len(full) < len(self._versions.all):
            flight = self._waiting.popleft()
            rows, members = self._slots_of(flight), flight.version.members
            fitting = [] if flight.version in full else [member for member in members if self._fits(member, rows)]
            if not fitting:
                full.add(flight.version)
                kept.append(flight)
                continue
            flight.member = min(fitting, key=self._tokens)
            flight.runs += 1
            flight.stream.given_at = time.monotonic()
            flight.member.send(flight.request)
            gave = True
        self._waiting.extendleft(reversed(kept))
        if gave and self._waiting:
            self._announce()

    def _fits(self, member: Member, rows: int) -> bool:
        return member.state == "ready" and self._rows(member) + rows <= self._slots

    def _rows(self, member: Member) -> int:
        return sum(self._slots_of(flight) for flight in self._flights.values() if flight.member is member)

    def _slots_of(self, flight: Flight) -> int:
        return flight.request.slots(flight.version.require_limits().positions)

    def _tokens(self, member: Member) -> int:
        return sum(flight.request.tokens for flight in self._flights.values() if flight.member is member)

    def _announce(self) -> None:
        """Tell waiting requests their positions, once in this turn of the loop."""
        if not self._announcing:
            self._announcing = True
            asyncio.get_running_loop().call_soon(self._tell_positions)

    def _tell_positions(self) -> None:
        self._announcing = False
        rows = 0
        for position, flight in enumerate(self._waiting):
            if flight.told_position != position and not flight.told_started:
                flight.told_position = position
                flight.stream.put(Queued(position, self._eta(rows)))
            rows += self._slots_of(flight)

    def _eta(self, rows_before: int) -> float | None:
        """Seconds until a slot is free for a request with so many rows before it, at the measured pace."""
        held = self.pace.held_seconds
        if held is None:
            return None
        slots = self._slots * max(1, sum(member.state == "ready" for member in self._versions.current.members))
        return round(held * (rows_before + 1) / slots, 2)

    def _end(self, flight: Flight, event: Finished | Cancelled | GLMError) -> None:
        del self._flights[flight.request.id]
        flight.version.ended()
        flight.stream.end(event)
