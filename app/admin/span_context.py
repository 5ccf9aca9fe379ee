"""A span of a run's output as a blank for the model: all that stood around it, with a mask in its place.

The text is what the model read and wrote itself (the conversation in its own format, or the prompt, then the output), so that it
is a training row as it is. Whatever looks like a mask among the visitor's words becomes a line, since it is no blank to fill here.
What the model can't read at once is left out: the oldest messages first, then what is farthest from the blank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import GLMError
from engine.glm import blanks
from engine.glm.config import CHAT, ChatFormat
from engine.glm.tokenizer import Tokenizer
from storage.models import Run
from storage.review_tables import SpanCorrection

LINE = "____"


@dataclass(frozen=True, slots=True)
class SpanContext:
    """`text` has exactly one blank, `mask`; `left`: of the output, before it."""

    text: str
    mask: str
    left: str


def span_context(
    run: Run,
    start: int,
    end: int,
    chat: ChatFormat | None,
    *,
    corrected: Sequence[SpanCorrection] = (),
    fits: Callable[[str], bool] = lambda text: True,
) -> SpanContext:
    """The characters [start, end) of the run's output as a blank. `corrected`: spans whose chosen words stand in the text already.

    fits(text) tells whether the model can read a text.
    """
    output = run.output or ""
    left = _unmasked(_with_corrections(output, 0, start, corrected))
    right = _unmasked(_with_corrections(output, end, len(output), corrected))
    mask = "[MASK]" if right else "[gMASK]"
    messages = [_message(one) for one in run.prompt] if isinstance(run.prompt, list) else []
    before = _before(run, messages, chat)
    while not fits(before + left + mask + right) and len(messages) > 1:
        messages = messages[1:]
        before = _before(run, messages, chat)
    while before and not fits(before + left + mask + right):
        before = before[(len(before) + 1) // 2 :]
    while (left or right) and not fits(left + mask + right):
        if len(left) >= len(right):
            left = left[(len(left) + 1) // 2 :]
        else:
            right = right[: len(right) // 2]
    return SpanContext(before + left + mask + right, mask, left)


def readable(tokenizer: Tokenizer, room: int) -> Callable[[str], bool]:
    """Whether a text with its blank has at most `room` tokens."""

    def fits(text: str) -> bool:
        if len(text) > 64 * room:
            return False
        try:
            return len(blanks.parse(text, tokenizer).ids) <= room
        except GLMError:
            return False

    return fits


def _before(run: Run, messages: list[tuple[str, str]], chat: ChatFormat | None) -> str:
    if messages:
        return blanks.chat_text(messages, chat or CHAT).removesuffix("[gMASK]")
    if run.mode == "fill" or not isinstance(run.prompt, str):
        return ""  # the output is the whole text
    return _unmasked(run.prompt.removesuffix("[gMASK]"))


def _message(message: dict[str, Any]) -> tuple[str, str]:
    return str(message.get("role")), _unmasked(str(message.get("content", "")))


def _with_corrections(output: str, start: int, end: int, corrected: Sequence[SpanCorrection]) -> str:
    parts, at = [], start
    for span in sorted(corrected, key=lambda span: (span.start, span.end)):
        if start <= span.start and span.end <= end:
            parts += [output[at : span.start], span.chosen]
            at = span.end
    return "".join([*parts, output[at:end]])


def _unmasked(text: str) -> str:
    return blanks.LOOKS_LIKE_MASK.sub(LINE, text)
