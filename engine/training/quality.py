"""What quantising costs: perplexity on a text, and questions answered, of a model with its weights in several forms.

As in GLM-130B's own table of quantisation: the same weights, inputs and measures, only the form of the weights differs.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.errors import GLMError
from engine.glm import blanks, checkpoint
from engine.glm.config import Config, check_split
from engine.glm.filling import Filling
from engine.glm.model import GLM
from engine.glm.precision import DTYPES
from engine.glm.prepacked import weight_bytes
from engine.glm.tokenizer import Tokenizer
from engine.serving.pool import Pool
from engine.serving.worker import choose_device
from engine.training.measures import text_nats, text_scores
from engine.training.report import ask, plain


@dataclass(frozen=True, slots=True)
class Quality:
    """Of one form of a model's weights. perplexity: a token's, agreement: the share of the text's tokens in whose place the most
    likely one is that of the first form measured; None without a text. right: None without questions."""

    weights: str
    precision: str
    nbytes: int  # of all weights in memory
    perplexity: float | None
    agreement: float | None
    right: int | None


def compare(
    folder: Path, kinds: Sequence[str | None], precisions: Sequence[str], text: str | None, questions: Sequence[dict]
) -> Iterator[Quality]:
    """Measure a model folder in each precision with its weights as they are (None) and as each of the kinds.

    questions: rows {"question", "answer"} for chat, or {"text", "answers"} with blanks, which are right if all of the words are.
    GLMError: those of checkpoint.load; bad_data for a text of less than two tokens, or a row that is none of both.
    """
    config, tokenizer = Config.load(folder), Tokenizer.load(folder)
    for kind in kinds:
        check_split(config.quantized(kind), 1)
    asked = [_asked(row, config, tokenizer, number) for number, row in enumerate(questions, start=1)]
    ids = None if text is None else tokenizer.encode_plain(text)
    if ids is not None and len(ids) < 2:
        raise GLMError("bad_data", "The text has less than two tokens.", field="text")
    stored = config.quantization.name if config.quantization else "plain"
    first: torch.Tensor | None = None
    for precision in precisions:
        for kind in kinds:
            model = checkpoint.load(folder, dtype=DTYPES[precision], device=choose_device(0, 1), quantize=kind)
            nbytes = weight_bytes(model)
            found = agreement = None
            if ids is not None:
                nats, likeliest = text_scores(model, ids, tokenizer)
                found = math.exp(nats / len(ids))
                first = likeliest if first is None else first
                agreement = float((likeliest == first).double().mean())
            del model
            right = asyncio.run(_right(folder, tokenizer, config, asked, precision, kind)) if asked else None
            yield Quality(kind or stored, precision, nbytes, found, agreement, right)


@torch.inference_mode()
def perplexity(model: GLM, ids: Sequence[int], tokenizer: Tokenizer) -> float:
    """exp of the mean cross-entropy of a text's tokens, read from left to right behind a [gMASK], as many as the model takes."""
    return math.exp(text_nats(model, ids, tokenizer) / len(ids))


@dataclass(frozen=True, slots=True)
class _Asked:
    mode: str
    text: str
    wanted: str


def _asked(row: object, config: Config, tokenizer: Tokenizer, number: int) -> _Asked:
    """GLMError bad_data, unknown_mask."""
    match row:
        case {"question": str(question), "answer": str(answer)}:
            if config.chat is not None:
                return _Asked("chat", question, answer)
            problem = f"is for chat, and {config.name} has no chat format"
        case {"text": str(text), "answers": [*answers]} if all(isinstance(answer, str) for answer in answers):
            document = blanks.parse(text, tokenizer)
            if len(document.masks) == len(answers):
                filling = Filling(document, tokenizer)
                for mask, answer in zip(document.masks, answers, strict=True):
                    filling.place(mask, filling.answer_ids(mask, answer), answer)
                return _Asked("fill", text, filling.text)
            problem = f"has {len(answers)} answers for {len(document.masks)} blanks"
        case _:
            problem = "has neither question and answer nor text and answers"
    raise GLMError("bad_data", f"Row {number} of the questions {problem}.", field="questions")


async def _right(
    folder: Path, tokenizer: Tokenizer, config: Config, asked: Sequence[_Asked], precision: str, kind: str | None
) -> int:
    """How many are answered exactly, by the server's own way."""
    pool = Pool(folder, queue=len(asked), precision=precision, quantize=kind)
    await pool.start()
    try:
        said = await ask(pool, tokenizer, config, [(one.mode, one.text) for one in asked])
    finally:
        await pool.stop()
    return sum(plain(found.answer) == plain(one.wanted) for found, one in zip(said, asked, strict=True))
