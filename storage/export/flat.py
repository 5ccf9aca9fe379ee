"""One row a run for tables: CSV and Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from storage.database import to_json
from storage.export.walk import Item

#: Name -> kind: text, whole, number, truth, moment, texts (a list), messages, json (JSON text in both formats).
COLUMNS = {
    "id": "text",
    "created": "moment",
    "conversation": "text",
    "visitor": "text",
    "client": "text",
    "mode": "text",
    "status": "text",
    "model": "text",
    "weights_hash": "text",
    "prompt": "text",
    "messages": "messages",
    "output": "text",
    "corrected": "text",
    "stars": "whole",
    "tags": "texts",
    "flagged": "truth",
    "note": "text",
    "reviewer": "text",
    "thumbs_up": "whole",
    "thumbs_down": "whole",
    "comments": "texts",
    "finish_reason": "text",
    "error_kind": "text",
    "error_message": "text",
    "prompt_tokens": "whole",
    "new_tokens": "whole",
    "mean_logprob": "number",
    "queue_milliseconds": "number",
    "first_token_milliseconds": "number",
    "total_milliseconds": "number",
    "seed": "text",  # it may be larger than what a table's integers hold
    "parameters": "json",
    "blanks": "json",
    "spans": "json",
}


def rows(item: Item) -> Iterator[dict[str, Any]]:
    """A row with all COLUMNS. `prompt` is the text, or a chat's last question; `messages` the whole chat."""
    document = item.document
    review = document["review"] or {}
    thumbs = [one["rating"] for one in document["feedback"]]
    version = item.entry.run.model_version
    derived = {
        "created": item.entry.run.created,
        "conversation": document["conversation"]["id"] if document["conversation"] else None,
        "model": version.name if version else None,
        "weights_hash": document["model"],
        "prompt": document["messages"][-1]["content"] if document["messages"] else document["prompt"],
        "corrected": review.get("corrected"),
        "stars": review.get("rating"),
        "tags": review.get("tags", []),
        "flagged": review.get("flagged", False),
        "note": review.get("note") or None,
        "reviewer": review.get("reviewer"),
        "thumbs_up": thumbs.count(1),
        "thumbs_down": thumbs.count(-1),
        "comments": [one["comment"] for one in document["feedback"] if one["comment"]],
        "seed": None if document["seed"] is None else str(document["seed"]),
        "parameters": to_json(document["parameters"]),
        "blanks": to_json(document["blanks"]),
        "spans": to_json(review.get("spans", [])),
    }
    yield {name: derived[name] if name in derived else document[name] for name in COLUMNS}
