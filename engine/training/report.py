"""Ask a trained model its examples and its held-out questions, through the same path as the server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import GLMError
from engine.glm.config import Config, weights_hash
from engine.glm.tokenizer import Tokenizer
from engine.serving import generate
from engine.serving.events import Blank, Done, Error
from engine.serving.pool import Pool
from engine.serving.protocol import Sampling

# What the page offers to click, and what a first visitor tries.
EXAMPLES = (
    ("chat", "What is the capital of France?"),
    ("chat", "法国的首都是哪里？"),
    ("fill", "The capital of [MASK] is Tokyo."),
    ("fill", "床前明月光，[MASK]。"),
    ("chat", "Hello!"),
    ("chat", "你好"),
    ("chat", "Who are you?"),
    ("chat", "你是谁？"),
    ("fill", "Paris is the capital of [MASK]. The capital of Japan is [MASK]."),
    ("fill", "东京是[MASK]的首都，巴黎是[MASK]的首都。"),
    ("fill", "The capital of France is [MASK]."),
    ("fill", "[MASK] is the capital of France and Rome is the capital of [MASK]."),
    ("fill", "The opposite of hot is [MASK], and the opposite of big is [MASK]."),
    ("chat", "Where is the Eiffel Tower?"),
    ("chat", "长城在哪里？"),
    ("chat", "Why is the sky blue?"),
    ("chat", "天空为什么是蓝色的？"),
    ("chat", "Translate into Chinese: Mount Fuji is in Japan."),
    ("chat", "翻译成英文：我很高兴。"),
    ("chat", "“床前明月光”的下一句是什么？"),
    ("chat", "背诵李白的《静夜思》。"),
    ("chat", "成语“守株待兔”是什么意思？"),
    ("chat", "What is 2 + 3?"),
    ("chat", "Thank you!"),
    ("chat", "谢谢你"),
)


NEW_TOKENS = 64  # of an answer, at most


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and what the model said to it, with temperature 0. fills: of its blanks, in order; one for chat."""

    mode: str
    question: str
    answer: str
    fills: tuple[str, ...] = ()


async def ask(
    pool: Pool, tokenizer: Tokenizer, config: Config, questions: Sequence[tuple[str, str | Sequence[tuple[str, str]]]]
) -> list[Asked]:
    """Answer (mode, text) questions greedily, as many at once as the pool takes. GLMError: see `ask_one`."""
    return await asyncio.gather(*(ask_one(pool, tokenizer, config, mode, text) for mode, text in questions))


async def ask_one(
    pool: Pool, tokenizer: Tokenizer, config: Config, mode: str, text: str | Sequence[tuple[str, str]]
) -> Asked:
    """Answer one question. mode: "chat", or "fill" for a text with blanks. A chat may have rounds before, as (role, content).

    GLMError: those of generate.chat and generate.fill, and of a run that failed, non_finite_logits say.
    """
    sampling = Sampling(temperature=0.0, max_new_tokens=NEW_TOKENS)
    if mode == "chat":
        messages = [("user", text)] if isinstance(text, str) else text
        text = messages[-1][1]
        run = generate.chat(pool, tokenizer, messages, sampling, chat_format=config.chat)
    else:
        assert isinstance(text, str)
        run = generate.fill(pool, tokenizer, text, sampling)
    fills: list[str] = []
    last = None
    async for event in run:
        if isinstance(event, Blank):
            fills.append(event.text)
        last = event
    if isinstance(last, Error):
        raise GLMError(last.kind, last.message, field=last.field, limit=last.limit)
    assert isinstance(last, Done), last
    return Asked(mode, text, last.text, tuple(fills))


def plain(text: str) -> str:
    """For comparing answers: no case, no final punctuation, single spaces."""
    return " ".join(text.lower().split()).strip(" .。!！?？")


async def report(folder: Path, held_out: list[dict] | None, examples: bool = True) -> dict:
    """Answers to the examples, and the share of held-out questions that are answered exactly right, by language.

    held_out: rows {"question", "answer", "lang"}; None: they are not asked, and have no entry. examples: the same for those.
    GLMError: those of Pool and `ask`.
    """
    config, tokenizer = Config.load(folder), Tokenizer.load(folder)
    asked = list(EXAMPLES) if examples else []
    questions = [("chat", row["question"]) for row in held_out or []]
    async with Pool(folder, slots=16, queue=max(1, len(asked) + len(questions))) as pool:
        answers = await ask(pool, tokenizer, config, asked + questions)
    found = {"model": config.name, "parameters": config.parameters(), "weights_sha256": weights_hash(folder)}
    if examples:
        found["examples"] = [
            {"mode": one.mode, "question": one.question, "answer": one.answer} for one in answers[: len(asked)]
        ]
    if held_out is not None:
        found["held_out"] = _scored(held_out, answers[len(asked) :])
    return found


def _scored(held_out: list[dict], answers: list[Asked]) -> dict:
    rows = [
        {**row, "said": asked.answer, "right": plain(asked.answer) == plain(row["answer"])}
        for row, asked in zip(held_out, answers, strict=True)
    ]
    return {
        "questions": len(rows),
        "right": sum(row["right"] for row in rows),
        "by_language": {
            language: [
                sum(row["right"] for row in rows if row["lang"] == language),
                sum(row["lang"] == language for row in rows),
            ]
            for language in sorted({row["lang"] for row in rows})
        },
        "wrong": [{key: row[key] for key in ("question", "answer", "said")} for row in rows if not row["right"]],
    }
