"""Training rows from reviewed runs, in the forms that the trainer reads and with nothing else in them.

    training_rows(run, review, spans)     # [{"text": "… [MASK] …", "answers": ["…"]}, {"messages": […]}]

A corrected run gives up to two rows. Its corrected spans become one text with a blank for each of them: {"text", "answers"}. Its
whole output as it should be becomes what the run itself was asked: for a chat {"messages"}, where the assistant's earlier answers
have `"weight": 0`, which tells the trainer to learn the last one only (nobody corrected the others); for a completion the text
and a [gMASK]; for a filled text its blanks with what stands in them. A row that the trainer would refuse is not made:
`examined` says why.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from storage.models import Run
from storage.review_tables import Review, SpanCorrection

SOURCES = ("span", "answer", "good")
#: Why a run, or a part of it, gives no row.
REASONS = (
    "deleted",  # it has no text any more
    "uncorrected",  # nothing of it was corrected, and it isn't asked for as it is
    "unfinished",  # it did not end by itself, and nobody corrected it
    "scored",  # the words are the visitor's
    "empty",  # nothing to learn
    "other_blanks",  # the text has blanks besides the ones to learn, or something like a blank
    "unclear_blanks",  # the corrected text can't be told apart into the blanks' fills
    "personal",  # what would be learnt holds personal data
    "duplicate",
)
_MASK = re.compile(r"\[[sg]?MASK\]")
# What the trainer refuses as a mask that was misspelt (see engine/glm/blanks.py).
_LOOKS_LIKE_MASK = re.compile(r"\[\s*[A-Za-z]{0,3}\s*mask\s*\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One row: its `content` for the trainer, where it comes from (SOURCES) and who is answerable for it."""

    content: dict[str, Any]
    source: str
    reviewer_id: str | None


def training_rows(
    run: Run, review: Review | None = None, spans: Sequence[SpanCorrection] = (), *, good: bool = False
) -> list[dict[str, Any]]:
    """The rows of one run; `good` says that its output may be learnt as it is if nobody corrected it."""
    return [row.content for row in examined(run, review, spans, good=good)[0]]


def examined(
    run: Run, review: Review | None, spans: Sequence[SpanCorrection], *, good: bool = False
) -> tuple[list[TrainingRow], list[str]]:
    """The rows of one run, and for each that could not be made the reason (REASONS)."""
    if run.deleted is not None or run.prompt is None:
        return [], ["deleted"]
    if run.mode == "score":
        return [], ["scored"]
    reviewer = review.reviewer_id if review else None
    answer = corrected_output(run, review, spans)
    if answer is None:
        if not good:
            return [], ["uncorrected"]
        if run.status != "done" or run.finish_reason == "length" or run.output is None:
            return [], ["unfinished"]
        answer, source = run.output, "good"
    else:
        source = "answer"
    rows: list[TrainingRow] = []
    reasons: list[str] = []
    for content, writer in _of_spans(run.output or "", spans):
        if _fits(content):
            rows.append(TrainingRow(content, "span", writer or reviewer))
        else:
            reasons.append("other_blanks")
    content, reason = _of_answer(run, answer)
    if content is not None:
        rows.append(TrainingRow(content, source, reviewer))
    elif reason is not None:
        reasons.append(reason)
    return rows, reasons


def corrected_output(run: Run, review: Review | None, spans: Sequence[SpanCorrection]) -> str | None:
    """The whole output as it should be, None if nobody corrected anything."""
    if review is not None and review.corrected is not None:
        return review.corrected
    if not spans or run.output is None:
        return None
    ordered = sorted(spans, key=lambda span: (span.start, span.end))
    if any(first.end > second.start for first, second in zip(ordered, ordered[1:], strict=False)):
        return None  # of two that overlap, nobody can say what was meant
    return _with_corrections(run.output, 0, len(run.output), ordered)


def row_hash(content: dict[str, Any]) -> str:
    """SHA-256 of a row, whatever the order of its keys, in hexadecimal digits."""
    words = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(words.encode()).hexdigest()


def row_texts(content: dict[str, Any]) -> list[str]:
    """Every text of a row, those to be learnt last."""
    if "messages" in content:
        return [message["content"] for message in content["messages"]]
    return [content["text"], *content["answers"]]


def _of_spans(output: str, spans: Sequence[SpanCorrection]) -> list[tuple[dict[str, Any], str | None]]:
    """One text with all corrected spans as its blanks, filled one after the other as at inference; with who corrected the last.
    Where they don't lie in one text side by side, a text for each."""
    ordered = sorted(spans, key=lambda span: (span.start, span.end))
    frames = [_frame(output, span, ordered) for span in ordered]
    apart = all(first.end <= second.start for first, second in zip(ordered, ordered[1:], strict=False))
    if len(ordered) < 2 or not apart or None in frames or len({frame[:2] for frame in frames if frame}) != 1:
        return [({"text": span.text, "answers": [span.chosen]}, span.reviewer_id) for span in ordered]
    before, after, _ = frames[0]  # type: ignore[misc]
    text, end = before, 0
    for span, frame in zip(ordered, frames, strict=True):
        text += output[end : span.start] + frame[2]  # type: ignore[index]
        end = span.end
    latest = max(ordered, key=lambda span: (span.created, span.id))
    return [({"text": text + output[end:] + after, "answers": [span.chosen for span in ordered]}, latest.reviewer_id)]


def _frame(output: str, span: SpanCorrection, others: Sequence[SpanCorrection]) -> tuple[str, str, str] | None:
    """(what stands before the output, what stands behind it, the mask), None if the span's text isn't made so.

    At the desk the corrections that were made before this one stand in its text already.
    """
    former = [one for one in others if (one.created, one.id) < (span.created, span.id)]
    for corrections in (former, []):
        left = _with_corrections(output, 0, span.start, corrections)
        right = _with_corrections(output, span.end, len(output), corrections)
        for found in _MASK.finditer(span.text):
            before, after = span.text[: found.start()], span.text[found.end() :]
            if before.endswith(left) and after.startswith(right):
                return before[: len(before) - len(left)], after[len(right) :], found.group()
    return None


def _with_corrections(output: str, start: int, end: int, spans: Sequence[SpanCorrection]) -> str:
    """The characters [start, end) of the output with these spans, in order, in their corrected form."""
    text = ""
    for span in spans:
        if start <= span.start and span.end <= end:
            text += output[start : span.start] + span.chosen
            start = span.end
    return text + output[start:end]


def _of_answer(run: Run, answer: str) -> tuple[dict[str, Any] | None, str | None]:
    """The row that asks what the run was asked and learns `answer`; or the reason why there is none."""
    if isinstance(run.prompt, list):
        return _of_chat(run.prompt, answer)
    if run.mode == "fill":
        return _of_fill(run, answer)
    text = run.prompt if run.prompt.endswith("[gMASK]") else run.prompt + "[gMASK]"
    return _checked({"text": text, "answers": [answer]}, answer)


def _of_chat(prompt: list[dict[str, str]], answer: str) -> tuple[dict[str, Any] | None, str | None]:
    messages: list[dict[str, Any]] = []
    for message in prompt:
        kept: dict[str, Any] = {"role": message["role"], "content": message["content"]}
        if message["role"] == "assistant":
            kept["weight"] = 0
        messages.append(kept)
    content = {"messages": [*messages, {"role": "assistant", "content": answer}]}
    question = prompt[0]["content"]
    # One question with one blank is read as a text to fill, and then must be one.
    if len(prompt) == 1 and question.count("[MASK]") == 1 and not _fits({"text": question, "answers": [answer]}):
        return None, "other_blanks"
    return (content, None) if answer.strip() else (None, "empty")


def _of_fill(run: Run, answer: str) -> tuple[dict[str, Any] | None, str | None]:
    text = run.prompt if _MASK.search(run.prompt) else run.prompt + "[gMASK]"
    if answer == run.output and len(run.blanks) == len(_MASK.findall(text)):
        fills: list[str] | None = [blank.text for blank in sorted(run.blanks, key=lambda blank: blank.index)]
    else:
        fills = _fills(_MASK.split(text), answer)
    if fills is None:
        return None, "unclear_blanks"
    return _checked({"text": text, "answers": fills}, "".join(fills))


def _fills(parts: list[str], whole: str) -> list[str] | None:
    """What stands between the parts in `whole`, None if they don't stand there in this order or in more ways than one."""
    first, *middle, last = parts
    if len(whole) < len(first) + len(last) or not whole.startswith(first) or not whole.endswith(last):
        return None
    inner = whole[len(first) : len(whole) - len(last)]
    leftmost, rightmost = [], []
    rest = inner
    for part in middle:
        if part == "" or part not in rest:
            return None
        fill, rest = rest.split(part, 1)
        leftmost.append(fill)
    leftmost.append(rest)
    rest = inner
    for part in reversed(middle):
        rest, fill = rest.rsplit(part, 1)
        rightmost.append(fill)
    rightmost.append(rest)
    return leftmost if leftmost == rightmost[::-1] else None


def _checked(content: dict[str, Any], learnt: str) -> tuple[dict[str, Any] | None, str | None]:
    if not _fits(content):
        return None, "other_blanks"
    return (content, None) if learnt.strip() else (None, "empty")


def _fits(content: dict[str, Any]) -> bool:
    """Whether a text has a blank for each answer, and nothing that is taken for a misspelt one."""
    text = content["text"]
    return len(_MASK.findall(text)) == len(content["answers"]) and not _misspelt(_LOOKS_LIKE_MASK.findall(text))


def _misspelt(found: Iterable[str]) -> bool:
    return any(not _MASK.fullmatch(words) for words in found)
