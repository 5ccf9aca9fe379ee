"""How a dataset's rows are collected from reviewed runs: which runs are looked at, what is hidden, which part a row is in."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import ColumnElement, exists, or_

from storage.hidden_words import Words, hide_in
from storage.models import Feedback, Run
from storage.review_tables import Review, SpanCorrection
from storage.run_batches import Entry
from storage.training_rows import examined, row_hash
from storage.training_tables import PARTS

GOOD_STARS = 4  # a reviewer's stars from which on an output may be learnt as it is


@dataclass(frozen=True, slots=True)
class ProposedRow:
    """A row that would be frozen. `source`: span (corrected spans), answer (a corrected output), good (an output as it is)."""

    content: dict[str, Any]
    hash: str
    part: str
    source: str
    run_id: str
    reviewer_id: str | None


def dataset_hash(rows: Sequence[tuple[str, str]]) -> str:
    """The hash of a dataset from (part, hash) of all its rows in order."""
    total = hashlib.sha256()
    for part, hash in rows:
        total.update(f"{part} {hash}\n".encode())
    return total.hexdigest()


@dataclass(slots=True)
class Collected:
    """Rows as they are found; `runs`: selected ones, `left_out`: how many gave no row, by reason."""

    runs: int = 0
    rows: list[ProposedRow] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    keys: list[str] = field(default_factory=list)  # of each row: the hash that decides its part
    seen: set[str] = field(default_factory=set)

    def add(self, batch: Sequence[Entry], hidden: Sequence[Words], sources: set[str]) -> None:
        """Take the rows of a batch."""
        for entry, words in zip(batch, hidden, strict=True):
            good = "good" in sources and is_good(entry)
            found, reasons = examined(entry.run, entry.review, entry.spans, good=good)
            self.left_out.update(reasons)
            for row in found:
                if row.source not in sources:
                    continue
                content = redacted_row(row.content, words) if words else row.content
                if content is None:
                    self.left_out["personal"] += 1
                    continue
                hash = row_hash(content)
                if hash in self.seen:
                    self.left_out["duplicate"] += 1
                    continue
                self.seen.add(hash)
                self.rows.append(ProposedRow(content, hash, "train", row.source, entry.run.id, row.reviewer_id))
                self.keys.append(_prompt_hash(entry.run.prompt))

    def divide(self, held_out_share: float) -> None:
        """Choose the held-out part."""
        keys = sorted(set(self.keys))
        held_out = {key for key in keys if int(key[:15], 16) / 16**15 < held_out_share}
        if held_out_share and len(keys) > 1:
            held_out = held_out or {keys[0]}
            if len(held_out) == len(keys):
                held_out.remove(keys[-1])
        self.rows = [replace(row, part=PARTS[key in held_out]) for row, key in zip(self.rows, self.keys, strict=True)]


def is_good(entry: Entry) -> bool:
    """Whether somebody liked the output well enough to learn it as it is."""
    stars = entry.review.rating if entry.review else None
    if stars is not None:
        return stars >= GOOD_STARS
    thumbs = {feedback.rating for feedback in entry.run.feedback}
    return 1 in thumbs and -1 not in thumbs


def worth_a_look(sources: Sequence[str]) -> ColumnElement[bool]:
    """Runs that may give a row, so that the others needn't be read."""
    corrected = exists().where(Review.run_id == Run.id, Review.corrected.is_not(None))
    spans = exists().where(SpanCorrection.run_id == Run.id)
    if "good" not in sources:
        return or_(corrected, spans)
    stars = exists().where(Review.run_id == Run.id, Review.rating >= GOOD_STARS)
    thumb = exists().where(Feedback.run_id == Run.id, Feedback.rating == 1)
    return or_(corrected, spans, stars, thumb)


def redacted_row(content: dict[str, Any], words: Words) -> dict[str, Any] | None:
    """The row with personal data hidden in what is read; None where it would be learnt, or where a blank went with it."""
    hidden = hide_in(content, words)
    if hidden == content:
        return content
    if "messages" in content:
        return hidden if hidden["messages"][-1] == content["messages"][-1] else None
    same_blanks = hidden["text"].count("MASK]") == content["text"].count("MASK]")
    return hidden if hidden["answers"] == content["answers"] and same_blanks else None


def _prompt_hash(prompt: Any) -> str:
    words = json.dumps(prompt, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(words.encode()).hexdigest()
