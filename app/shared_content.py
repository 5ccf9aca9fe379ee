"""What a shared page shows: built from a visitor's stored runs, never from outputs that a page sends, and redacted.

    content = build(rows, text, title="A chat", hidden=["Anna"])

The content is {version: 1, kind, model, text, edited, items}. `kind`: chat, blanks or complete. `text` is the filled text as the
visitor has it, or null; `edited` says that it isn't what the model wrote. An item is one run: {mode, prompt, parameters, seed,
output, finish_reason, blanks: [{index, kind, text, alternatives: [{text, logprob}], ids}], fingerprint, created, redacted}.
`parameters` are what the client gave, without the seed. `redacted`: something of it is hidden, so that the same request can't
be sent again; token ids, which would tell what, are null then.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import Problem
from app.schemas import CONVERSATION_KINDS
from engine.glm.blanks import MASKS
from storage import redaction
from storage.columns import clean_text
from storage.hidden_words import strings
from storage.models import Run

VERSION = 1
CONTENT_CHARACTERS = 500_000
TITLE_CHARACTERS = 80  # of a proposed title
SHARED = ("done", "cancelled")
_MASK = re.compile(f"({'|'.join(re.escape(mask) for mask in MASKS)})")


def build(rows: Sequence[Run], text: str | None, hidden: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a page with these runs, in this order. Raises Problem: not finished, too large, of several
    conversations, or nothing that could be shown."""
    conversation_of(rows)
    shown = [row for row in rows if _is_shown(row)]
    if not shown:
        raise Problem("bad_request", "There is no finished answer to share.", field="runs")
    last = shown[-1]
    kind = CONVERSATION_KINDS.get(last.mode, "complete")
    if text is not None:
        if kind == "chat":
            raise Problem("bad_request", "A chat has no text of its own.", field="text")
        text = clean_text(text)
    content = {
        "version": VERSION,
        "kind": kind,
        "model": (last.fingerprint or {}).get("model") or (last.model_version.name if last.model_version else None),
        "text": None if text is None else redaction.hide(text, hidden),
        "edited": text is not None and text not in _whole(last),
        "items": [_item(row, hidden) for row in shown],
    }
    characters = sum(len(words) for words in strings(content))
    if characters > CONTENT_CHARACTERS:
        message = f"A shared page may have {CONTENT_CHARACTERS} characters, this one has {characters}."
        raise Problem("too_large", message, field="runs", limit=CONTENT_CHARACTERS)
    return content


def conversation_of(rows: Sequence[Run]) -> str | None:
    """The conversation that all these runs belong to. Raises Problem."""
    conversations = {row.conversation_id for row in rows}
    if len(conversations) != 1:
        raise Problem("bad_request", "The runs must belong to one conversation.", field="runs")
    return conversations.pop()


def title_of(rows: Sequence[Run]) -> str:
    """A title to propose: the beginning of the first question or text."""
    prompt = rows[0].prompt
    words = prompt[-1]["content"] if isinstance(prompt, list) else prompt or ""
    return " ".join(words.split())[:TITLE_CHARACTERS]


def findings(rows: Sequence[Run], text: str | None, title: str) -> list[redaction.Finding]:
    """What is worth hiding in all that the page would show."""
    texts = [title] + ([text] if text else [])
    for row in rows:
        if not _is_shown(row):
            continue
        texts += strings(row.parameters)
        texts += [other["text"] for blank in row.blanks for other in blank.alternatives or ()]
        if isinstance(row.prompt, list):
            texts += [message["content"] for message in row.prompt]
        else:
            texts.append("".join(_pieces(row).texts))
        texts.append(row.output or "")
    return redaction.find(texts)


def _is_shown(row: Run) -> bool:
    """Whether a run has something to show; one that failed without a word is left out."""
    if row.finished is None:
        raise Problem("bad_request", "The answer is not finished yet.", field="runs")
    return row.prompt is not None and (row.status in SHARED or bool(row.output))


def _whole(row: Run) -> tuple[str, ...]:
    """What the text is if the visitor left it as the model wrote it."""
    return (row.output or "", "".join(_pieces(row).texts))


def _item(row: Run, hidden: Sequence[str]) -> dict[str, Any]:
    item = _shown(row, hidden)
    redacted = item != _shown(row, ())
    for shown, blank in zip(item["blanks"], row.blanks, strict=True):
        shown["ids"] = None if redacted else list(blank.token_ids)
    return item | {"redacted": redacted}


def _shown(row: Run, hidden: Sequence[str]) -> dict[str, Any]:
    if isinstance(row.prompt, list):
        prompt: Any = [message | {"content": redaction.hide(message["content"], hidden)} for message in row.prompt]
        words = {blank.index: redaction.hide(blank.text, hidden) for blank in row.blanks}
        around = {blank.index: ("", "") for blank in row.blanks}
    else:
        pieces = _pieces(row)
        redacted = redaction.hide_pieces(pieces.texts, hidden)
        # The masks of the prompt stand where its blanks are.
        prompt = "".join(part if mask is None else mask for mask, part in zip(pieces.masks, redacted, strict=True))
        words = {index: redacted[place] for index, place in pieces.places.items()}
        reach = 2 * max(map(len, hidden), default=0)
        around = {index: pieces.around(place, reach) for index, place in pieces.places.items()}
    blanks = []
    for blank in row.blanks:
        before, after = around.get(blank.index, ("", ""))
        alternatives = [
            {"text": redaction.hide_pieces([before, other["text"], after], hidden)[1], "logprob": other.get("logprob")}
            for other in blank.alternatives or ()
        ]
        shown = words.get(blank.index, redaction.hide(blank.text, hidden))
        blanks.append({"index": blank.index, "kind": blank.kind, "text": shown, "alternatives": alternatives})
    return {
        "mode": row.mode,
        "prompt": prompt,
        "parameters": _hidden(row.parameters, hidden),
        "seed": row.seed,
        "output": None if row.output is None else redaction.hide(row.output, hidden),
        "finish_reason": row.finish_reason,
        "blanks": blanks,
        "fingerprint": row.fingerprint,
        "created": row.created.isoformat(),
    }


def _hidden(value: Any, hidden: Sequence[str]) -> Any:
    """JSON-like `value` with its strings redacted."""
    if isinstance(value, str):
        return redaction.hide(value, hidden)
    if isinstance(value, dict):
        return {name: _hidden(item, hidden) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item, hidden) for item in value]
    return value


@dataclass(slots=True)
class _Pieces:
    """A text with its blanks filled, in pieces. `texts`: as they are read. `masks`: what the prompt has in a fill's place, "" for
    a blank that nobody wrote; None for its own words. `places`: index of a blank -> number of its piece."""

    texts: list[str] = field(default_factory=list)
    masks: list[str | None] = field(default_factory=list)
    places: dict[int, int] = field(default_factory=dict)

    def around(self, place: int, reach: int) -> tuple[str, str]:
        """Up to `reach` characters before and behind a piece."""
        before = "".join(self.texts[:place])
        return before[len(before) - reach :] if len(before) > reach else before, "".join(self.texts[place + 1 :])[
            :reach
        ]


def _pieces(row: Run) -> _Pieces:
    filled = {blank.index: blank.text for blank in row.blanks}
    parts = _MASK.split(row.prompt or "")
    if row.mode == "generate":
        filled.setdefault(0, row.output or "")
    pieces = _Pieces()
    for position, part in enumerate(parts if len(parts) > 1 else [*parts, "", ""]):
        if position % 2 == 0:
            pieces.texts.append(part)
            pieces.masks.append(None)
            continue
        index = position // 2
        pieces.places[index] = len(pieces.texts)
        pieces.texts.append(filled.get(index, part))
        pieces.masks.append(part)
    return pieces
