"""What a run would take, told without running it: its room, its longest answer, its likely time. Torch-free.

    estimate(fill_job(pool.require_limits(), tokenizer, "The capital of [MASK] is [MASK]."), pool)

The job is the one that a run would get, and its own rule gives the budgets, so what is told here is what happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.serving.pinned import Pinned
from engine.serving.pool import Pool
from engine.serving.protocol import Limits
from engine.serving.run_job import Job


@dataclass(frozen=True, slots=True)
class Estimate:
    """prompt_tokens: of the first prompt; positions: what the model takes, prompt and answer together; new_tokens: the most
    that all fills together may have; seconds: waiting, reading and answering, None until the server has measured its own
    speed; queued: requests that wait now."""

    prompt_tokens: int
    positions: int
    new_tokens: int
    dropped_messages: int
    seconds: float | None
    queued: int


def estimate(job: Job, pool: Pool | Pinned) -> Estimate:
    """GLMError: as the run would be refused for its lengths."""
    limits = pool.require_limits()
    prompt_tokens = len(job.document.ids) + 1
    kinds = [mask.kind for mask in job.targets]
    if job.order == "confident":
        # Which blank comes when is not known; with the short ones first none is cut more than it must be.
        kinds.sort(key=lambda kind: job.budget(kind, prompt_tokens, 0, limits))
    new_tokens, length = 0, prompt_tokens
    for to_come, kind in zip(reversed(range(len(kinds))), kinds, strict=True):
        most = job.budget(kind, length, to_come, limits)
        new_tokens += most
        length += most - 1  # the fill stands where its mask was
    rows = job.alternatives
    if job.sampling.beams is not None:  # they share the prompt, and columns of slots beside it
        rows = -(-(prompt_tokens + job.sampling.beams.count * new_tokens) // limits.positions)
    parts = [pool.wait_seconds(rows), *_work(job, pool, limits, kinds, prompt_tokens)]
    known = [seconds for seconds in parts if seconds is not None]
    seconds = round(sum(known), 2) if len(known) == len(parts) else None
    return Estimate(prompt_tokens, limits.positions, new_tokens, job.dropped_messages, seconds, pool.waiting)


def _work(
    job: Job, pool: Pool | Pinned, limits: Limits, kinds: list[str], prompt_tokens: int
) -> Iterator[float | None]:
    """Seconds of every part of the work, with answers of their usual lengths."""
    pace, beams, length = pool.pace, job.sampling.beams is not None, prompt_tokens
    for to_come, kind in zip(reversed(range(len(kinds))), kinds, strict=True):
        side_by_side = kinds[-1 - to_come :] if job.order == "confident" else [kind]
        likely = {
            each: pace.length(job.answer_kind(each), job.budget(each, length, to_come, limits))
            for each in set(side_by_side)
        }
        for _ in side_by_side:  # their prompts are read one after the other, their answers written at the same time
            yield pace.reading_seconds(length)
        yield pace.decoding_seconds(max(likely.values()), beams=beams)
        length += max(0, round(likely[kind]) - 1)
