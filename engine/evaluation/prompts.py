"""What the model reads for a row: the layouts of GLM-130B's evaluation, without its padding. Torch-free.

    mul   text [MASK] sop | choice          each choice behind a `sop` of its own, none sees another
    gen   text [MASK] sop | answer          unidirectional: [gMASK] sop text | answer
    lm    before [gMASK] sop | text         a window's text is judged; unidirectional: [gMASK] sop | text

A mask in the text is the place of the answer; then nothing is added. With [MASK], `sop` and the answer have the mask's position,
with [gMASK] positions run on. In windows of text they always do, as there. Text that is too long loses its beginning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import GLMError
from engine.evaluation.rows import Row
from engine.evaluation.task import GenerationTask, LanguageModelTask, MultipleChoiceTask
from engine.glm.blanks import Prompt
from engine.glm.tokenizer import Tokenizer

TILE = 32  # GLM-130B's batches are padded to a multiple: a beam's length penalty counts that


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a document: `prompt`, and the ids that are judged behind it."""

    prompt: Prompt
    text: tuple[int, ...]


def masked(text: Sequence[int], tokenizer: Tokenizer, *, gmask: bool, unidirectional: bool = False) -> Prompt:
    """The prompt whose answer is the text's mask, or comes after the text. GLMError bad_data for a mask that can't be there."""
    mask = tokenizer.gmask if gmask else tokenizer.mask
    if mask in text:
        if unidirectional:
            raise GLMError("bad_data", "A text that is read from left to right can't have a [gMASK].", field="inputs")
        context, place = tuple(text), text.index(mask)
    elif unidirectional:
        ids = (mask, tokenizer.sop, *text)
        return Prompt(ids, tuple(range(len(ids))), 1, len(ids), 1)
    else:
        context, place = (*text, mask), len(text)
    length = len(context)
    ids = (*context, tokenizer.sop)
    if gmask:
        return Prompt(ids, tuple(range(length + 1)), length, length + 1, 1)
    return Prompt(ids, (*range(length), place), length, place, 0)


def choice_text(row: Row, task: MultipleChoiceTask, longest: int) -> tuple[int, ...]:
    """The row's text, cut at its beginning so that it fits `longest` tokens with a mask, `sop` and all choices; where these alone
    don't fit, which GLM-130B's code stops at, with the longest choice. GLMError bad_data if that doesn't fit either."""
    sizes = [len(choice) for choice in row.choices]
    target = 1 if sum(sizes) == len(sizes) else sum(sizes)
    if target + 2 >= longest:
        target = max(sizes)
    return _cut(row.inputs, longest - target - 2, task.name)


def answer_text(row: Row, task: GenerationTask, longest: int) -> tuple[int, ...]:
    """The same with room for the longest answer."""
    return _cut(row.inputs, longest - task.max_gen_length - 2, task.name)


def _cut(text: tuple[int, ...], length: int, name: str) -> tuple[int, ...]:
    if length < 1:
        message = f"Task {name}: the answers leave no room for a text in the model's positions or in max-seq-length."
        raise GLMError("bad_data", message, field="max_seq_length")
    return text[-length:] if len(text) > length else text


def windows(ids: Sequence[int], task: LanguageModelTask, tokenizer: Tokenizer, longest: int) -> list[Window]:
    """A document in windows of up to `longest` tokens, mask included, that begin generation-length tokens after each other.

    The first is judged whole; a later one on its last generation-length tokens, given those before. From left to right every
    window is judged whole, as GLM-130B's code does it: tokens count once for each window that they are in.
    """
    step = min(task.generation_length, longest - 1) if not task.unidirectional else task.generation_length
    count = max(math.ceil(max(len(ids) - (longest - 1), 0) / step) + 1, 1)
    mask = tokenizer.gmask if task.use_task_mask else tokenizer.mask
    found = []
    for number in range(count):
        part = tuple(ids[number * step : number * step + longest - 1])
        known = 0 if number == 0 or task.unidirectional else longest - 1 - step
        before, text = part[:known], part[known:]
        if text:
            head = (*before, mask, tokenizer.sop)
            found.append(Window(Prompt(head, tuple(range(len(head))), len(head) - 1, len(head), 1), text))
    return found


def padding(prompt: Prompt) -> int:
    """Tokens that GLM-130B's evaluation pads a single prompt with."""
    return -len(prompt.ids) % TILE
