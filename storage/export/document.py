"""A run as one plain document, with its conversation, blanks, feedback, votes and review: what every format is made from.

All keys are always there, so that programs that read tables (Arrow, pandas) find the same columns in every line. A text that was
the prompt stands in `prompt`, a chat in `messages`. Members of staff go by name, model versions by the hash of their weights, runs
and conversations by their ids; nothing in a document depends on the database that it came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from storage import redaction
from storage.hidden_words import Words, hide_in
from storage.models import Blank, Conversation, Feedback, Vote
from storage.review_tables import SpanCorrection
from storage.run_batches import Entry

#: Columns of a run that a document has as they are.
PLAIN = (
    "id",
    "visitor",
    "client",
    "mode",
    "parameters",
    "seed",
    "fingerprint",
    "repaired",
    "status",
    "output",
    "finish_reason",
    "error_kind",
    "error_message",
    "prompt_tokens",
    "new_tokens",
    "largest_batch",
    "mean_logprob",
    "queue_milliseconds",
    "first_token_milliseconds",
    "total_milliseconds",
)
MOMENTS = ("created", "started", "finished")
CONVERSATION = ("id", "visitor", "kind", "title")
FEEDBACK = ("visitor", "rating", "comment")
VOTE = ("first_run_id", "second_run_id", "visitor", "choice", "blind")
REVIEW = ("version", "status", "rating", "flagged", "corrected", "note")
SPAN = ("id", "start", "end", "rejected", "chosen", "source", "text", "alternatives", "logprob")


def document(entry: Entry, votes: Sequence[Vote], staff: Mapping[str, str]) -> dict[str, Any]:
    """The document of a run. `staff`: id -> name."""
    run = entry.run
    values = _columns(run, PLAIN, MOMENTS)
    chat = isinstance(run.prompt, list)
    values["prompt"] = None if chat else run.prompt
    values["messages"] = run.prompt if chat else None
    values["model"] = None if run.model_version is None else run.model_version.weights_hash
    values["conversation"] = _conversation(run.conversation)
    values["blanks"] = [_blank(blank) for blank in run.blanks]
    opinions = sorted(run.feedback, key=lambda one: (one.created, one.visitor))
    values["feedback"] = [_feedback(one) for one in opinions]
    values["votes"] = [_columns(vote, VOTE, ("created", "updated")) for vote in votes]
    values["review"] = _review(entry, staff)
    return values


def redacted(document: dict[str, Any], hidden: Words) -> dict[str, Any]:
    """The document with these words hidden everywhere; without token ids where they would tell."""
    if not hidden:
        return document
    changed: dict[str, Any] = {}
    for name in ("prompt", "messages", "parameters", "output", "error_message"):
        changed[name] = hide_in(document[name], hidden)
    if document["conversation"] is not None:
        conversation = document["conversation"]
        changed["conversation"] = conversation | {"title": redaction.hide(conversation["title"], hidden)}
    changed["feedback"] = [one | {"comment": redaction.hide(one["comment"], hidden)} for one in document["feedback"]]
    told = any(changed[name] != document[name] for name in ("prompt", "messages", "output"))
    changed["blanks"] = [_hidden_blank(blank, hidden, told) for blank in document["blanks"]]
    if document["review"] is not None:
        changed["review"] = _hidden_review(document["review"], document["output"] or "", hidden)
    return document | changed


def _columns(row: Any, names: Sequence[str], moments: Sequence[str]) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in names}
    for name in moments:
        moment = getattr(row, name)
        values[name] = None if moment is None else moment.isoformat()
    return values


def _conversation(row: Conversation | None) -> dict[str, Any] | None:
    return None if row is None else _columns(row, CONVERSATION, ("created", "updated", "deleted"))


def _feedback(row: Feedback) -> dict[str, Any]:
    return _columns(row, FEEDBACK, ("created", "updated"))


def _blank(row: Blank) -> dict[str, Any]:
    return {
        "index": row.index,
        "kind": row.kind,
        "text": row.text,
        "token_ids": list(row.token_ids),
        # JSON has no nan and no infinity, which a broken model may have left.
        "logprobs": [value if math.isfinite(value) else None for value in row.logprobs],
        "alternatives": row.alternatives,
    }


def _review(entry: Entry, staff: Mapping[str, str]) -> dict[str, Any] | None:
    if entry.review is None:
        return None
    values = _columns(entry.review, REVIEW, ("created", "updated"))
    values["reviewer"] = staff.get(entry.review.reviewer_id or "")
    values["tags"] = entry.tags
    values["spans"] = [_span(span, staff) for span in entry.spans]
    return values


def _span(row: SpanCorrection, staff: Mapping[str, str]) -> dict[str, Any]:
    return _columns(row, SPAN, ("created",)) | {"reviewer": staff.get(row.reviewer_id or "")}


def _hidden_blank(blank: dict[str, Any], hidden: Words, told: bool) -> dict[str, Any]:
    changed = blank | {name: hide_in(blank[name], hidden) for name in ("text", "alternatives")}
    return changed | {"token_ids": []} if told or changed != blank else changed


def _hidden_review(review: dict[str, Any], output: str, hidden: Words) -> dict[str, Any]:
    changed = {name: hide_in(review[name], hidden) for name in ("corrected", "note", "tags")}
    spans = []
    for span in review["spans"]:
        start, end = span["start"], span["end"]
        pieces = redaction.hide_pieces([output[:start], output[start:end], output[end:]], hidden)
        place = {"start": len(pieces[0]), "end": len(pieces[0]) + len(pieces[1]), "rejected": pieces[1]}
        spans.append(span | {name: hide_in(span[name], hidden) for name in ("chosen", "text", "alternatives")} | place)
    return review | changed | {"spans": spans}
