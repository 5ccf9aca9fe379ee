"""Instruction-tuning formats: OpenAI chat fine-tuning, ShareGPT, Alpaca. Each takes the best answer that is known: the corrected
output, else the output of a run that ended by itself.

A completion or a text with blanks is asked by the user as it is; the answer is what was added, or the whole filled text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from storage.export.walk import Item

ROLES = {"user": "human", "assistant": "gpt"}


def openai(item: Item) -> Iterator[dict[str, Any]]:
    """{"messages"}, one line a run. `weight` 0: not learnt, since it was answered before, in a line of its own."""
    answer = best_answer(item.document)
    if answer is not None:
        messages = [{"role": "assistant", "content": answer, "weight": 1}]
        for message in reversed(question(item.document)):
            weight = 0 if message["role"] == "assistant" else None
            messages.insert(0, message | ({} if weight is None else {"weight": weight}))
        yield {"messages": messages}


def sharegpt(item: Item) -> Iterator[dict[str, Any]]:
    """{"id", "conversations"}: a whole conversation in one line, as its last round saw it, with the answers that were corrected in
    their corrected form; other runs in a line each."""
    answer = best_answer(item.document)
    if answer is None or not item.related.last:
        return
    corrections = item.related.corrections
    if item.hidden:
        corrections = {item.clean(output): item.clean(corrected) for output, corrected in corrections.items()}
    turns = []
    for message in question(item.document):
        content = message["content"]
        if message["role"] == "assistant":
            content = corrections.get(content, content)
        turns.append({"from": ROLES[message["role"]], "value": content})
    turns.append({"from": "gpt", "value": answer})
    conversation = item.document["conversation"]
    yield {"id": conversation["id"] if conversation else item.document["id"], "conversations": turns}


def alpaca(item: Item) -> Iterator[dict[str, Any]]:
    """{"instruction", "input", "output", "history"}, one line a run; `history`: [question, answer] of the rounds before."""
    answer = best_answer(item.document)
    if answer is None:
        return
    messages = question(item.document)
    history: list[list[str]] = []
    for first, second in zip(messages, messages[1:], strict=False):
        if (first["role"], second["role"]) == ("user", "assistant"):
            history.append([first["content"], second["content"]])
    yield {"instruction": messages[-1]["content"], "input": "", "output": answer, "history": history}


def best_answer(document: dict[str, Any]) -> str | None:
    """The corrected output, else the output of a run that ended by itself; None for none, or an empty one."""
    review = document["review"]
    if review is not None and review["corrected"] is not None:
        answer = review["corrected"]
    elif document["status"] == "done" and document["mode"] != "score":
        answer = document["output"]
    else:
        answer = None
    return answer if answer and answer.strip() else None


def question(document: dict[str, Any]) -> list[dict[str, str]]:
    """What was asked, as messages."""
    messages = document["messages"]
    if messages is None:
        return [{"role": "user", "content": document["prompt"] or ""}]
    return [{"role": message["role"], "content": message["content"]} for message in messages]
