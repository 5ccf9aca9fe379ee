"""What the review desk is sent: rows of the queue, a run with all that is kept of it, a review with its spans, as JSON."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from app.admin.facts import version_facts
from engine.errors import GLMError
from engine.glm.stream_decoder import StreamDecoder
from engine.glm.tokenizer import Tokenizer
from storage.models import Blank, ModelVersion, Run
from storage.queue import QueuePage, QueueRow, excerpt
from storage.reviews import ReviewState
from storage.run_details import RunDetails

SCALARS = (
    "id",
    "mode",
    "language",
    "status",
    "client",
    "visitor",
    "prompt",
    "parameters",
    "seed",
    "output",
    "finish_reason",
    "error_kind",
    "error_message",
    "prompt_tokens",
    "new_tokens",
    "largest_batch",
    "mean_logprob",
    "fingerprint",
    "repaired",
    "queue_milliseconds",
    "first_token_milliseconds",
    "total_milliseconds",
)


def page(found: QueuePage) -> dict[str, Any]:
    """A page of the queue."""
    rows = [_row(row) for row in found.rows]
    return {"runs": rows, "next": found.next, "previous": found.previous, "complete": found.complete}


def _row(row: QueueRow) -> dict[str, Any]:
    run = row.run
    names = ("id", "mode", "language", "status", "client", "thumbs_up", "thumbs_down", "disagreement")
    return {name: getattr(run, name) for name in names} | {
        "created": run.created.isoformat(),
        "model_version": run.model_version_id,
        "model": row.model,
        "prompt": row.prompt,
        "output": row.output,
        "uncertainty": _uncertainty(run.uncertainty),
        "rating": run.stars,
        "flagged": run.flagged,
        "reviewed": run.reviewed,
        "corrected": run.corrected,
        "tags": row.tags,
        "reviewer": {"id": row.reviewer_id, "name": row.reviewer} if row.reviewer_id else None,
        "review_version": row.review_version,
    }


def details(found: RunDetails, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """A run; the texts of its tokens if `tokenizer`, of the model that serves now, has the same vocabulary."""
    run = found.run
    return {
        "run": _run(run),
        "model_version": _version(run.model_version),
        "blanks": [_blank(blank, tokenizer) for blank in run.blanks],
        "conversation": _conversation(found),
        "feedback": [
            {
                "visitor": one.visitor,
                "rating": one.rating or 0,
                "comment": one.comment,
                "updated": one.updated.isoformat(),
            }
            for one in run.feedback
        ],
        "votes": [
            {"other": other, "choice": choice, "blind": vote.blind, "created": vote.created.isoformat()}
            for other, choice, vote in found.votes
        ],
        "datasets": [
            {
                "id": dataset.id,
                "name": dataset.name,
                "version": dataset.version,
                "part": row.part,
                "removed": _moment(row.removed),
            }
            for dataset, row in found.datasets
        ],
    } | state(found.review)


def state(found: ReviewState) -> dict[str, Any]:
    """A review with its spans; of a run that has none yet, an empty one of version 0."""
    review, names = found.review, found.names
    told: dict[str, Any] = {
        "version": found.version,
        "status": review.status if review else "open",
        "rating": review.rating if review else None,
        "flagged": review.flagged if review else False,
        "corrected": review.corrected if review else None,
        "note": review.note if review else "",
        "reviewer": _person(review.reviewer_id, names) if review else None,
        "created": _moment(review.created) if review else None,
        "updated": _moment(review.updated) if review else None,
        "tags": found.tags,
    }
    spans = [
        {
            "id": span.id,
            "start": span.start,
            "end": span.end,
            "rejected": span.rejected,
            "chosen": span.chosen,
            "source": span.source,
            "text": span.text,
            "alternatives": span.alternatives or [],
            "logprob": span.logprob,
            "reviewer": _person(span.reviewer_id, names),
            "created": span.created.isoformat(),
        }
        for span in found.spans
    ]
    return {"review": told, "spans": spans}


def _run(run: Run) -> dict[str, Any]:
    told = {name: getattr(run, name) for name in SCALARS}
    for name in ("created", "started", "finished", "deleted"):
        told[name] = _moment(getattr(run, name))
    told["uncertainty"] = _uncertainty(run.uncertainty)
    told["tokens_per_second"] = _speed(run)
    return told


def _speed(run: Run) -> float | None:
    """Tokens a second behind the first one."""
    first, total = run.first_token_milliseconds, run.total_milliseconds
    if not run.new_tokens or run.new_tokens < 2 or first is None or total is None or total <= first:
        return None
    return (run.new_tokens - 1) / (total - first) * 1000


def _version(version: ModelVersion | None) -> dict[str, Any] | None:
    if version is None:
        return None
    return version_facts(version) | {"parent": version.parent_id, "dataset": version.dataset_id}


def _blank(blank: Blank, tokenizer: Tokenizer | None) -> dict[str, Any]:
    texts = _token_texts(blank, tokenizer) or [None] * len(blank.token_ids)
    logprobs = [*blank.logprobs, *[None] * len(blank.token_ids)]
    return {
        "index": blank.index,
        "kind": blank.kind,
        "text": blank.text,
        "tokens": [
            {"id": id, "text": text, "logprob": logprob}
            for id, text, logprob in zip(blank.token_ids, texts, logprobs, strict=False)
        ],
        "alternatives": blank.alternatives or [],
    }


def _token_texts(blank: Blank, tokenizer: Tokenizer | None) -> list[str] | None:
    """The text that each token added; None if this vocabulary doesn't make the blank's text of them."""
    if tokenizer is None:
        return None
    decoder = StreamDecoder(tokenizer, first_of_text=False)
    try:
        texts = [decoder.push(id) for id in blank.token_ids]
    except GLMError:
        return None
    if texts:
        texts[-1] += decoder.finish()
    # A fill loses the space that it begins with where one stands before it, and a filled text may end at a stop string.
    return texts if "".join(texts).strip().startswith(blank.text.strip()) else None


def _conversation(found: RunDetails) -> dict[str, Any] | None:
    conversation = found.conversation
    if conversation is None:
        return None
    return {
        "id": conversation.id,
        "kind": conversation.kind,
        "title": conversation.title,
        "created": conversation.created.isoformat(),
        "deleted": _moment(conversation.deleted),
        "earlier": found.earlier,
        "later": found.later,
        "runs": [
            {
                "id": run.id,
                "created": run.created.isoformat(),
                "mode": run.mode,
                "status": run.status,
                "prompt": excerpt(run.prompt),
                "output": run.output,
                "current": run.id == found.run.id,
            }
            for run in found.neighbours
        ],
    }


def _person(id: str | None, names: dict[str, str]) -> dict[str, Any] | None:
    return {"id": id, "name": names.get(id)} if id else None


def _uncertainty(value: float) -> float | None:
    return None if value < 0 else value


def _moment(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
