"""Everything that one server process holds: settings, pool, tokenizer, record, runs; its start, its end, its state.

The page opens while the model still loads: `start` returns as soon as storage is ready and loads the model behind it.
`state` is loading, ready or failed; `reason` says why it failed. Only with a loaded model are runs accepted.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import re
from dataclasses import asdict
from typing import Any

from app import privacy
from app.access import Limits
from app.deployment import Deployments, choose_model
from app.errors import Problem, problem, sentences
from app.evaluations import Evaluations
from app.finetuning import FineTuning
from app.record_keeper import RecordKeeper
from app.retention import RetentionJob
from app.runs import Run, RunHub
from app.schemas import CONVERSATION_KINDS, Chat, Estimable, Fill, Generate, Parameters, Score, Task
from app.served import Models, Served
from app.settings import Settings
from engine.errors import GLMError
from engine.glm import blanks
from engine.serving import generate, protocol
from engine.serving.estimate import Estimate, estimate
from engine.serving.pool import Pool
from engine.serving.run import Run as Generation
from engine.serving.run_job import Job, check_order
from storage import Database, StorageError
from storage.run_filter import STAFF_CLIENT

TITLE_CHARACTERS = 80
CHARACTERS_A_TOKEN = 64  # a text longer than this for each position can't fit, so it isn't even tokenised
QUICK_CHARACTERS = 4000  # longer texts are tokenised beside the event loop
LONG_ESTIMATES = 4  # longer texts that may be measured at the same time: whoever asks for more is told to wait
_MASK = re.compile("|".join(re.escape(mask) for mask in blanks.MASKS))

logger = logging.getLogger(__name__)


class Service:
    """One server process. `pool` and `database` are not yet started; `start` and `stop` begin and end them."""

    def __init__(self, settings: Settings, pool: Pool, database: Database) -> None:
        self.settings = settings
        self.pool = pool
        self.database = database
        self.keeper = RecordKeeper(settings, database)
        self.record, self.ledger = self.keeper.record, self.keeper.ledger
        self.retention = RetentionJob(self.record, privacy.policy_of(settings))
        self.limits = Limits(settings.rate_limit, settings.address_rate_limit)
        self.hub = RunHub(
            self.ledger,
            pool.cancel,
            finished=settings.finished_runs,
            concurrent=settings.concurrent_runs,
        )
        self.stopping = asyncio.Event()  # set when the server begins to stop, before its connections are closed
        self.state = "loading"
        self.reason: str | None = None
        self.decided = asyncio.Event()  # the state is not "loading" any more
        self.no_room = False  # it failed because the machine has no room for the model
        self.models = Models(pool)
        self.deployments = Deployments(self)
        self.finetuning = FineTuning(self)
        self.evaluations = Evaluations(self)
        self._model_versions: dict[str, int] = {}
        self._loading: asyncio.Task[None] | None = None
        self._prepared = False
        self._estimating = 0  # long texts that are being measured

    # Life

    async def prepare(self) -> None:
        """Bring the database up to date and end what an earlier process left. Raises StorageError."""
        if not self._prepared:
            await self.keeper.prepare()
            self._prepared = True

    async def start(self) -> None:
        """Storage first, then the model in the background. Raises StorageError."""
        await self.prepare()
        self.retention.start()
        if not self.pool.launched:
            self.deployments.reason = await choose_model(self.settings, self.pool, self.database)
        self.finetuning.begin()
        self._loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        try:
            await self._load_model()
            await self.model_version(self.models.now())
        except (GLMError, StorageError) as error:
            self.state, self.reason = "failed", error.message
            self.no_room = isinstance(error, GLMError) and error.kind == "overloaded"
            logger.error("the model can't be served: %s", error.message)
        except Exception as error:  # noqa: BLE001 (logged; the server stays up and says so)
            self.state, self.reason = "failed", problem(error).message
        else:
            self.state = "ready"
        finally:
            self.decided.set()

    async def _load_model(self) -> None:
        """The version that is in service; if it can't be loaded, what --model names."""
        try:
            await self.models.read(self.pool.model)
            await self.pool.start()
        except GLMError as error:
            if self.pool.model == self.settings.model:
                raise
            self.deployments.reason = f"{self.pool.model}: {error.message}"
            logger.error("%s can't be served, so %s is: %s", self.pool.model, self.settings.model, error.message)
            self.pool.choose(self.settings.model)
            await self.models.read(self.pool.model)
            await self.pool.start()

    async def stop(self) -> None:
        """End every run, the model's processes and the database, in this order."""
        self.stopping.set()
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
            await asyncio.wait({self._loading})
        await self.retention.stop()
        await self.deployments.stop()
        await self.finetuning.close()
        await self.hub.close()
        await self.pool.stop()
        await self.keeper.stop()
        await self.database.close()

    # Runs

    async def start_run(self, task: Task, visitor: str, *, grace_seconds: float, client: str = "web") -> Run:
        """Check a task against the loaded model, write it down, set it going. Raises Problem, GLMError, StorageError.

        grace_seconds: how long it goes on when nobody follows it. client: through which door it came, for the record.
        """
        if not task.log and not self.settings.allow_unlogged and client != STAFF_CLIENT:
            raise Problem("unsupported", "This server keeps every run: it doesn't allow log false.", field="log")
        served = self.served()
        text, kinds = self._check(task, served.limits)
        if not isinstance(task, Chat):
            if len(text) > QUICK_CHARACTERS:
                await asyncio.to_thread(self._check_text, text, served)
            else:
                self._check_text(text, served)
        version = await self.model_version(served)

        async def conversation() -> str:
            if task.conversation is not None:
                return task.conversation  # the record refuses one that isn't this visitor's
            title = " ".join(text.split())[:TITLE_CHARACTERS]
            return await self.ledger.open_conversation(visitor, CONVERSATION_KINDS[task.type], title)

        return await self.hub.start(
            task,
            visitor,
            kinds=kinds,
            grace_seconds=grace_seconds,
            begin=functools.partial(self._begin, served),
            open_conversation=conversation,
            model_version=version,
            client=client,
        )

    def _begin(self, served: Served, task: Task, seed: int, run: str) -> Generation:
        if isinstance(task, Score):
            return generate.score(served.pool, served.tokenizer, task.text, task.answers, run=run)
        return Generation(served.pool, served.tokenizer, self._job(task, seed, served), run)

    def _job(self, task: Estimable, seed: int | None, served: Served) -> Job:
        """What the model would be given. Raises Problem, GLMError."""
        limits, tokenizer = served.limits, served.tokenizer
        sampling, alternatives = _sampling(task.parameters, seed), task.parameters.alternatives or 1
        if isinstance(task, Generate):
            return generate.complete_job(limits, tokenizer, task.text, sampling, alternatives)
        if isinstance(task, Fill):
            return generate.fill_job(limits, tokenizer, task.text, sampling, alternatives, order=task.order)
        chat = served.config.chat
        if chat is None:
            raise Problem("unsupported", "This model has no chat format; it can fill blanks and go on with a text.")
        messages = [message.model_dump() for message in task.messages]
        return generate.chat_job(limits, tokenizer, messages, sampling, chat, alternatives)

    async def estimate(self, task: Estimable) -> Estimate:
        """What a task would take; nothing is started, nothing is stored. Raises Problem, GLMError as the run would."""
        served = self.served()
        self._check(task, served.limits)
        texts = [message.content for message in task.messages] if isinstance(task, Chat) else [task.text]
        seed = task.parameters.seed
        if sum(map(len, texts)) <= QUICK_CHARACTERS:
            return estimate(self._job(task, seed, served), served.pool)
        if self._estimating >= LONG_ESTIMATES:
            raise Problem("rate_limited", "Too many long texts are being measured just now.", retry_after_s=1.0)
        self._estimating += 1
        try:
            return estimate(await asyncio.to_thread(self._job, task, seed, served), served.pool)
        finally:
            self._estimating -= 1

    async def recall(self, run: str, visitor: str, after: int) -> dict[str, Any]:
        """The terminal event of a run that is no longer in memory, numbered behind `after`. StorageError `not_found`."""
        row = await self.record.get_run(run, visitor)
        common = {"run": row.id, "seq": after + 1, "text": row.output or "", "recalled": True}
        if row.status == "done":
            milliseconds = row.total_milliseconds or 0.0
            first = row.first_token_milliseconds
            usage = {
                "prompt_tokens": row.prompt_tokens,
                "new_tokens": row.new_tokens,
                "seconds": milliseconds / 1000,
                "first_token_seconds": None if first is None else first / 1000,
                "tokens_per_second": None,
                "largest_batch": row.largest_batch,
            }
            rest = {
                "finish_reason": row.finish_reason,
                "usage": usage,
                "seed": row.seed,
                "fingerprint": row.fingerprint,
            }
            return {"type": "done", **common, **rest}
        if row.status == "cancelled":
            return {"type": "cancelled", **common}
        # A row that isn't final belongs to a process that is no more: this one has all its own in memory.
        kind = row.error_kind if row.status == "error" else "interrupted"
        failure = Problem(kind if kind in sentences() else "internal", row.error_message)
        return {"type": "error", **common, **failure.as_dict()}

    # State

    def info(self) -> dict[str, Any]:
        """What a client may know of this server; limits are null until the model has loaded."""
        limits, config = self.pool.limits, self.models.config
        return {
            "ready": self.state == "ready" and self.pool.ready,
            "state": self.state,
            "reason": self.reason,
            "model": limits.model if limits else (config.name if config else None),
            "max_new_tokens": limits.max_new_tokens if limits else None,
            "limits": None if limits is None else asdict(limits) | {"max_new_tokens": limits.max_new_tokens},
            "fingerprint": None if limits is None else limits.fingerprint(),
            "chat_format": asdict(config.chat) if config and config.chat else None,
            "defaults": {
                name: value for name, value in asdict(protocol.Sampling()).items() if name in Parameters.model_fields
            },
            "grace_seconds": self.settings.grace_seconds,
            "record": self.keeper.state(),
            "notice": privacy.notice(self.settings),
            "privacy": privacy.told(self.settings),
            "errors": sentences(),
        }

    def why_not_ready(self) -> str | None:
        """None if runs are taken and worked on now, else a sentence."""
        if self.state == "failed":
            return self.reason
        if self.state == "loading":
            return "The model is loading."
        if not self.pool.ready:
            return "The model's process is being started again."
        record = self.keeper.state()
        return record["reason"] if record["state"] == "refusing" else None

    # Checks

    def _check(self, task: Task, limits: protocol.Limits) -> tuple[str, tuple[str, ...]]:
        """What can be told of a task without reading its text as tokens. Its text (of a chat, the last message) and the kinds of
        its masks. Raises Problem, GLMError."""
        self._check_parameters(task.parameters, limits)
        if isinstance(task, Chat):
            text, kinds = task.messages[-1].content, ("[gMASK]",)
        else:
            text, kinds = task.text, self._kinds(task)
        self._check_length(text, limits)
        if isinstance(task, Fill):
            check_order(task.order, len(kinds), _sampling(task.parameters, task.parameters.seed))
        if isinstance(task, Score) and len(task.answers) != len(kinds):
            message = f"The text has {len(kinds)} blanks, but there are {len(task.answers)} answers."
            raise Problem("bad_request", message, field="answers", limit=len(kinds))
        return text, kinds

    def served(self) -> Served:
        """The weights that new runs get. Raises Problem `not_ready`, `overloaded`, GLMError."""
        # A pool whose replica is being restarted has limits and queues what comes; before the first one there are none.
        if self.state == "failed":
            raise Problem("overloaded", self.reason)
        if self.state == "loading":
            raise Problem("not_ready", retry_after_s=2.0)
        return self.models.now()

    def _check_parameters(self, parameters: Parameters, limits: protocol.Limits) -> None:
        for name in ("length_penalty", "sampled_beams"):
            if parameters.num_beams is None and getattr(parameters, name) is not None:
                raise Problem("bad_request", f"{name} needs num_beams.", field=f"parameters.{name}")
        try:
            protocol.check_sampling(_sampling(parameters, parameters.seed), limits)
        except GLMError as error:
            raise Problem(error.kind, error.message, field=f"parameters.{error.field}", limit=error.limit) from error
        if parameters.num_beams is not None and parameters.alternatives is not None:
            message = "The beams are the alternatives: leave the number out."
            raise Problem("bad_request", message, field="parameters.alternatives")
        if (parameters.alternatives or 1) > limits.max_alternatives:
            most = limits.max_alternatives
            message = f"alternatives can be at most {most} with this model."
            raise Problem("bad_request", message, field="parameters.alternatives", limit=most)

    def _check_length(self, text: str, limits: protocol.Limits) -> None:
        if len(text) > limits.positions * CHARACTERS_A_TOKEN:
            message = f"The text has {len(text)} characters; the model takes {limits.positions - 1} tokens."
            raise Problem("prompt_too_long", message, field="text", limit=limits.positions - 1)

    def _check_text(self, text: str, served: Served) -> None:
        document, positions = blanks.parse(text, served.tokenizer), served.limits.positions
        if len(document.ids) >= positions:
            raise protocol.prompt_too_long(len(document.ids), positions)

    def _kinds(self, task: Task) -> tuple[str, ...]:
        assert not isinstance(task, Chat)
        kinds = tuple(_MASK.findall(task.text)) or ("[gMASK]",)
        return kinds if task.type != "generate" else ("[gMASK]",)

    async def model_version(self, served: Served) -> int:
        """The number in storage of these weights. Raises StorageError."""
        limits = served.limits
        if limits.weights_hash not in self._model_versions:
            version = await self.record.ensure_model_version(limits.weights_hash, limits.model, asdict(served.config))
            self._model_versions[limits.weights_hash] = version
        return self._model_versions[limits.weights_hash]


# The parameters of a beam search on the wire and in the engine.
_BEAMS = {"num_beams": "count", "length_penalty": "length_penalty", "sampled_beams": "sampled"}


def _sampling(parameters: Parameters, seed: int | None) -> protocol.Sampling:
    given = parameters.given() | {"seed": seed}
    given.pop("alternatives", None)
    beams = {name: given.pop(wire) for wire, name in _BEAMS.items() if wire in given}
    if beams:
        given["beams"] = protocol.Beams(**beams)
    if "stop" in given:
        given["stop"] = tuple(given["stop"])
    return protocol.Sampling(**given)
