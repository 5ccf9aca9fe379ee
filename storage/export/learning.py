"""Formats for training from people's judgement: preference pairs, and GLM's own texts with blanks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from storage.dataset_rows import redacted_row
from storage.export.chats import question
from storage.export.walk import Item
from storage.training_rows import examined


def preferences(item: Item) -> Iterator[dict[str, Any]]:
    """{"prompt", "chosen", "rejected", "source", "run", "rejected_run"}, prompt and answers as messages.

    source: span (a corrected span; the prompt is the text with a blank), rewrite (the whole output corrected), thumbs (an answer
    to the same prompt with a thumb up against one with a thumb down), vote (a comparison of two answers).
    """
    document = item.document
    asked, output, review = question(document), document["output"] or "", document["review"]
    if review is not None:
        for span in review["spans"]:
            prompt = [{"role": "user", "content": span["text"]}]
            yield from _pair(document, prompt, span["chosen"], span["rejected"], "span")
        if review["corrected"] is not None and output:
            yield from _pair(document, asked, review["corrected"], output, "rewrite")
    for _, worse, source, other in item.related.rivals:
        # A corrected answer is better than the one that was compared, and as good against the other.
        better = review["corrected"] if review is not None and review["corrected"] is not None else output
        yield from _pair(document, asked, better, item.clean(worse), source, other)


def blanks(item: Item) -> Iterator[dict[str, Any]]:
    """{"text", "answers"}: corrected spans, completions and filled texts as texts with blanks ([MASK], [sMASK], [gMASK]) and what
    fills them, as the project's own trainer reads them. Of chats only the corrected spans are among them."""
    entry = item.entry
    for row in examined(entry.run, entry.review, entry.spans, good=True)[0]:
        content = redacted_row(row.content, item.hidden) if item.hidden else row.content
        if content is not None and "answers" in content:
            yield content


def _pair(
    document: dict[str, Any],
    prompt: list[dict[str, str]],
    chosen: str,
    rejected: str,
    source: str,
    other: str | None = None,
) -> Iterator[dict[str, Any]]:
    if chosen == rejected:
        return
    yield {
        "prompt": prompt,
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "source": source,
        "run": document["id"],
        "rejected_run": other or document["id"],
    }
