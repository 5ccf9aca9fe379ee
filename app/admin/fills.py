"""What the model would write in place of a span: its likeliest fills, given both sides, and how likely the span itself was.

The model is asked as for a visitor, in runs of its own (client "review") that keep no texts: what is chosen stands in the review.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from app.admin.span_context import readable, span_context
from app.errors import Problem
from app.schemas import Fill, Parameters, Score, Task
from storage.models import Run
from storage.review_tables import SpanCorrection
from storage.run_filter import STAFF_CLIENT

if TYPE_CHECKING:
    from app.admin.access import Staff
    from app.admin.review_bodies import FillsBody
    from app.service import Service

GRACE_SECONDS = 5.0
LEAST_TOKENS = 16


async def fills(
    service: Service, staff: Staff, run: Run, spans: list[SpanCorrection], body: FillsBody
) -> dict[str, Any]:
    """The fills, best first, with the context that they were made for. Raises Problem, GLMError, StorageError."""
    served = service.served()
    output = run.output or ""
    rejected = output[body.start : body.end]
    length = len(served.tokenizer.encode_plain(rejected)) if rejected else 0
    positions = served.limits.positions
    tokens = body.max_new_tokens or max(LEAST_TOKENS, 2 * length)
    tokens = max(1, min(tokens, served.limits.max_new_tokens, positions // 2))
    others = [span for span in spans if span.end <= body.start or body.end <= span.start]
    room = positions - max(tokens, length) - 4  # sop, eos, eop and the mask's own
    fits = readable(served.tokenizer, room)
    context = span_context(run, body.start, body.end, served.config.chat, corrected=others, fits=fits)
    given: dict[str, Any] = {"max_new_tokens": tokens}
    if body.temperature is None:
        # The likeliest, all different, and the same each time.
        given |= {"num_beams": body.alternatives}
    else:
        given |= {"alternatives": body.alternatives, "temperature": body.temperature}
    fill = Fill(type="fill", text=context.text, parameters=Parameters(**given), log=False)
    asked = [_ask(service, staff, fill)]
    if rejected.strip():
        # A space before the blank belongs to the words themselves, as in `blanks.splice`.
        asked.append(_ask(service, staff, Score(type="score", text=context.text, answers=[rejected], log=False)))
    (id, filled), *scored = await asyncio.gather(*asked)
    offered: dict[str, float] = {}
    for one in filled["alternatives"]:
        offered[one["text"]] = max(one["logprob"], offered.get(one["text"], -math.inf))
    best = sorted(offered.items(), key=lambda pair: -pair[1])
    whole = math.fsum(math.exp(logprob) for _, logprob in best)
    found = [
        {
            "text": text,
            "logprob": logprob,
            "probability": math.exp(logprob),
            "share": math.exp(logprob) / whole if whole else 1 / len(best),
        }
        for text, logprob in best
    ]
    return {
        "fills": found,
        "rejected": rejected,
        "rejected_logprob": scored[0][1]["alternatives"][0]["logprob"] if scored else None,
        "mask": context.mask,
        "text": context.text,
        "run": id,
        "model_version": await service.model_version(served),
    }


async def _ask(service: Service, staff: Staff, task: Task) -> tuple[str, dict[str, Any]]:
    """Run a task with one blank; the run's id and the blank's event."""
    run = await service.start_run(task, f"staff:{staff.id}", grace_seconds=GRACE_SECONDS, client=STAFF_CLIENT)
    blank: dict[str, Any] | None = None
    async with aclosing(service.hub.follow(run)) as events:
        async for event in events:
            if event["type"] == "blank":
                blank = event
            elif event["type"] == "error":
                raise Problem(event["kind"], event["message"], retry_after_s=event.get("retry_after_s"))
    if blank is None:
        raise Problem("interrupted", "The model was stopped before it had filled the blank.", retry_after_s=2.0)
    return run.id, blank
