"""Everything that one server process holds: settings, pool, tokenizer, record, runs; its start, its end, its state.

The page opens while the model still loads: `start` returns as soon as storage is ready and loads the model behind it.
`state` is loading, ready or failed; `reason` says why it failed. Only with a loaded model are runs accepted.
"""

from __future__ import annotations

import asyncio
import logging
import re
from dataclasses import asdict
from typing import Any

from app.access import Limits
from app.errors import Problem, problem, sentences
from app.ledger import Ledger
from app.runs import Run, RunHub
from app.schemas import Chat, Fill, Generate, Parameters, Score, Task
from app.settings import Settings
from engine.errors import GLMError
from engine.glm import blanks
from engine.glm.config import Config, resolve_model
from engine.glm.tokenizer import Tokenizer
from engine.serving import generate, protocol
from engine.serving.pool import Pool
from engine.serving.run import Run as Generation
from storage import Database, Record, StorageError

NOTICE = {
    "en": "Prompts and outputs are stored on this server and kept for review.",
    "zh": "您输入的内容和模型的输出会保存在本服务器上，供人工审阅。",
}
CONVERSATION_KINDS = {"chat": "chat", "generate": "complete", "fill": "blanks", "score": "blanks"}
TITLE_CHARACTERS = 80
CHARACTERS_A_TOKEN = 64  # a text longer than this for each position can't fit, so it isn't even tokenised
QUICK_CHARACTERS = 4000  # longer texts are tokenised beside the event loop
_MASK = re.compile("|".join(re.escape(mask) for mask in blanks.MASKS))

logger = logging.getLogger(__name__)


class Service:
    """One server process. `pool` and `database` are not yet started; `start` and `stop` begin and end them."""

    def __init__(self, settings: Settings, pool: Pool, database: Database) -> None:
        self.settings = settings
        self.pool = pool
        self.database = database
        self.record = Record(database)
        self.limits = Limits(settings.rate_limit, settings.address_rate_limit)
        self.hub = RunHub(
            Ledger(self.record),
            self._begin,
            pool.cancel,
            finished=settings.finished_runs,
            concurrent=settings.concurrent_runs,
        )
        self.stopping = asyncio.Event()  # set when the server begins to stop, before its connections are closed
        self.state = "loading"
        self.reason: str | None = None
        self.decided = asyncio.Event()  # the state is not "loading" any more
        self.no_room = False  # it failed because the machine has no room for the model
        self._config: Config | None = None
        self._tokenizer: Tokenizer | None = None
        self._model_versions: dict[str, int] = {}
        self._loading: asyncio.Task[None] | None = None
        self._prepared = False

    # Life

    async def prepare(self) -> None:
        """Bring the database up to date and end what an earlier process left. Raises StorageError."""
        if not self._prepared:
            await self.database.migrate()
            count = await self.record.interrupt_unfinished()
            if count:
                logger.warning("%d runs were interrupted by the end of the last server process", count)
            self._prepared = True

    async def start(self) -> None:
        """Storage first, then the model in the background. Raises StorageError."""
        await self.prepare()
        self._loading = asyncio.create_task(self._load())

    async def _load(self) -> None:
        try:
            folder = resolve_model(self.settings.model)
            self._config = Config.load(folder)
            self._tokenizer = await asyncio.to_thread(Tokenizer.load, folder)
            await self.pool.start()
            await self._model_version()
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

    async def stop(self) -> None:
        """End every run, the model's processes and the database, in this order."""
        self.stopping.set()
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
            await asyncio.wait({self._loading})
        await self.hub.close()
        await self.pool.stop()
        await self.database.close()

    # Runs

    async def start_run(self, task: Task, visitor: str, *, grace_seconds: float, client: str = "web") -> Run:
        """Check a task against the loaded model, write it down, set it going. Raises Problem, GLMError, StorageError.

        grace_seconds: how long it goes on when nobody follows it. client: through which door it came, for the record.
        """
        limits = self._ready_limits()
        self._check_parameters(task.parameters, limits)
        if isinstance(task, Chat):
            text, kinds = task.messages[-1].content, ("[gMASK]",)
            self._check_length(text, limits)
        else:
            text = task.text
            kinds = self._kinds(task)
            self._check_length(text, limits)
            if len(text) > QUICK_CHARACTERS:
                await asyncio.to_thread(self._check_text, text, limits)
            else:
                self._check_text(text, limits)
            if isinstance(task, Score) and len(task.answers) != len(kinds):
                message = f"The text has {len(kinds)} blanks, but there are {len(task.answers)} answers."
                raise Problem("bad_request", message, field="answers", limit=len(kinds))
        version = await self._model_version()

        async def conversation() -> str:
            if task.conversation is not None:
                return task.conversation  # the record refuses one that isn't this visitor's
            title = " ".join(text.split())[:TITLE_CHARACTERS]
            return await self.record.create_conversation(visitor, CONVERSATION_KINDS[task.type], title)

        return await self.hub.start(
            task,
            visitor,
            kinds=kinds,
            grace_seconds=grace_seconds,
            open_conversation=conversation,
            model_version=version,
            client=client,
        )

    def _begin(self, task: Task, seed: int, run: str) -> Generation:
        assert self._tokenizer is not None
        sampling, alternatives = _sampling(task.parameters, seed), task.parameters.alternatives or 1
        if isinstance(task, Generate):
            return generate.complete(self.pool, self._tokenizer, task.text, sampling, alternatives, run=run)
        if isinstance(task, Fill):
            return generate.fill(self.pool, self._tokenizer, task.text, sampling, alternatives, run=run)
        if isinstance(task, Chat):
            assert self._config is not None
            messages = [message.model_dump() for message in task.messages]
            chat = self._config.chat
            if chat is None:
                raise Problem("unsupported", "This model has no chat format; it can fill blanks and go on with a text.")
            return generate.chat(self.pool, self._tokenizer, messages, sampling, chat, alternatives, run=run)
        return generate.score(self.pool, self._tokenizer, task.text, task.answers, run=run)

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
        limits, config = self.pool.limits, self._config
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
            "notice": NOTICE,
            "errors": sentences(),
        }

    def why_not_ready(self) -> str | None:
        """None if runs are taken and worked on now, else a sentence."""
        if self.state == "failed":
            return self.reason
        if self.state == "loading":
            return "The model is loading."
        return None if self.pool.ready else "The model's process is being started again."

    # Checks

    def _ready_limits(self) -> protocol.Limits:
        # A pool whose replica is being restarted has limits and queues what comes; before the first one there are none.
        if self.state == "failed":
            raise Problem("overloaded", self.reason)
        limits = self.pool.limits
        if self.state == "loading" or limits is None:
            raise Problem("not_ready", retry_after_s=2.0)
        return limits

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

    def _check_text(self, text: str, limits: protocol.Limits) -> None:
        assert self._tokenizer is not None
        document = blanks.parse(text, self._tokenizer)
        if len(document.ids) >= limits.positions:
            raise protocol.prompt_too_long(len(document.ids), limits.positions)

    def _kinds(self, task: Task) -> tuple[str, ...]:
        assert not isinstance(task, Chat)
        kinds = tuple(_MASK.findall(task.text)) or ("[gMASK]",)
        return kinds if task.type != "generate" else ("[gMASK]",)

    async def _model_version(self) -> int:
        """The number in storage of the weights that run now."""
        limits = self.pool.limits
        assert limits is not None and self._config is not None
        if limits.weights_hash not in self._model_versions:
            version = await self.record.ensure_model_version(limits.weights_hash, limits.model, asdict(self._config))
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
