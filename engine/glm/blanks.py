"""The layout of a GLM sequence: the only place that knows it, for inference and for training.

A document is a text with blanks: `[MASK]` (a few words), `[sMASK]` (a sentence), `[gMASK]` (everything that follows). To
fill one blank a GLM reads `context ... sop` and then makes tokens one by one until `eop`:

    tokens     The capital of [MASK] is Tokyo . eos | sop Japan eop
    positions   0    1      2    3    4   5   6  7  |  3    3
    targets                                         | Japan eop

All tokens before `sop` are visible to every row (the context is bidirectional; their number is `context_length`), `sop`
and later rows are causal. Under [MASK] and [sMASK] `sop` and all that follows carry the position of the mask; under
[gMASK] positions run on. `eos` closes a document that does not end in a mask. Several blanks are several prompts at
inference; in training several spans may stand behind one context, in any order. (GLM-130B, arXiv 2210.02414, and its
generate.py.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import GLMError
from engine.glm.tokenizer import MASKS

if TYPE_CHECKING:
    from engine.glm.config import ChatFormat
    from engine.glm.tokenizer import Tokenizer

_MASK = re.compile(r"\[[sg]?MASK\]")
# What a person most likely meant as a mask: any short word that ends in "mask" in square brackets.
LOOKS_LIKE_MASK = re.compile(r"\[\s*[A-Za-z]{0,3}\s*mask\s*\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Mask:
    """One blank of a document: its kind, its index among the ids, its characters [start, end) in the text."""

    kind: str
    index: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """A text with at least one blank. `text` may have gained a [gMASK]; `ids` are the context without `sop`."""

    text: str
    ids: tuple[int, ...]
    masks: tuple[Mask, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads to fill one blank. `ids` and `positions` end with `sop`; `context_length` counts what is before.

    A prompt that is read from left to right has its text behind `[gMASK] sop`: all but the mask is causal.

    Generated token j (0-based) is read at position `next_position + j * position_step`.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    context_length: int
    next_position: int
    position_step: int

    def position(self, generated: int) -> int:
        """The position of generated token number `generated` (0-based)."""
        return self.next_position + generated * self.position_step


@dataclass(frozen=True, slots=True)
class Sample:
    """A training sequence. `targets[i]` is what row i predicts, or -1 where nothing is asked."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    targets: tuple[int, ...]
    context_length: int


def parse(text: str, tokenizer: Tokenizer, *, strict: bool = True) -> Document:
    """Tokenise a text with blanks. A text without any gets a [gMASK] at its end.

    Error: unknown_mask for what looks like a mask and is none, [mask] say; not strict, as in chat, it is ordinary text.
    """
    for found in LOOKS_LIKE_MASK.finditer(text) if strict else ():
        if found.group() not in MASKS:
            raise GLMError(
                "unknown_mask", f"{found.group()} is not a mask. Masks are {', '.join(MASKS)}.", field="text"
            )
    if not _MASK.search(text):
        text += "[gMASK]"
    ids: list[int] = []
    masks: list[Mask] = []
    start = 0
    for found in _MASK.finditer(text):
        # A space before a blank belongs to the word that fills it: pieces carry their leading space.
        ids += tokenizer.encode_plain(_without_space(text[start : found.start()]))
        masks.append(Mask(found.group(), len(ids), found.start(), found.end()))
        ids.append(tokenizer.special[found.group()])
        start = found.end()
    ids += tokenizer.encode_plain(text[start:])
    return Document(text, close(ids, tokenizer), tuple(masks))


def _without_space(text: str) -> str:
    return text[:-1] if text.endswith(" ") else text


def close(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The context of a document: `eos` is added unless it ends in a mask."""
    ends_in_mask = bool(ids) and ids[-1] in (tokenizer.mask, tokenizer.smask, tokenizer.gmask)
    return tuple(ids) if ends_in_mask else (*ids, tokenizer.eos)


def prompt(context: Sequence[int], mask_index: int, tokenizer: Tokenizer) -> Prompt:
    """The prompt that fills the blank at `mask_index` of a context (ids without `sop`)."""
    ids, positions, next_position, step = _begin(tuple(context), mask_index, tokenizer)
    return Prompt(ids, positions, len(ids) - 1, next_position, step)


def _begin(
    context: tuple[int, ...], mask_index: int, tokenizer: Tokenizer
) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
    length = len(context)
    ids = (*context, tokenizer.sop)
    if context[mask_index] == tokenizer.gmask:
        return ids, tuple(range(length + 1)), length + 1, 1
    assert context[mask_index] in (tokenizer.mask, tokenizer.smask), "not a mask"
    return ids, (*range(length), mask_index), mask_index, 0


def layout(context: Sequence[int], answers: Sequence[tuple[int, Sequence[int]]], tokenizer: Tokenizer) -> Sample:
    """A training sequence: a context and, behind it, the spans that fill its blanks, in the order given.

    answers: (mask_index, ids of the answer) of each span; each ends in `eop`. [gMASK] spans must come alone, as their
    positions run on from the end of the context. With one answer the sequence begins with exactly `prompt(...)`.
    """
    context = tuple(context)
    assert answers and (len(answers) == 1 or all(context[index] != tokenizer.gmask for index, _ in answers))
    ids, positions = list(context), list(range(len(context)))
    targets = [-1] * len(context)
    for mask_index, answer in answers:
        _, _, next_position, step = _begin(context, mask_index, tokenizer)
        ids += [tokenizer.sop, *answer]
        # The position of `sop` is one step before that of the first generated token.
        positions += [next_position + (j - 1) * step for j in range(len(answer) + 1)]
        targets += [*answer, tokenizer.eop]
    return Sample(tuple(ids), tuple(positions), tuple(targets), len(context))


def splice(text: str, start: int, end: int, fill: str) -> str:
    """Put `fill` in place of the blank at characters [start, end); no space is lost or doubled or begins the text."""
    left, right = text[:start], text[end:]
    if fill.startswith(" ") and (not left or left[-1].isspace()):
        fill = fill[1:]
    return left + fill + right


def chat_text(messages: Sequence[tuple[str, str]], chat: ChatFormat) -> str:
    """Write (role, content) messages, the last one a user's, as one text that ends in the [gMASK] of the answer.

    A mask inside a message stays a blank of the text; only the last [gMASK] is to be filled.
    """
    text = "".join(getattr(chat, role).format(content=content) for role, content in messages)
    return text + chat.answer + "[gMASK]"
