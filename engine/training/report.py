"""Ask a trained model its examples and its held-out questions, through the same path as the server; draw its loss."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

from engine.glm.config import Config, weights_hash
from engine.glm.tokenizer import Tokenizer
from engine.serving import generate
from engine.serving.events import Done
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


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and what the model said to it, with temperature 0."""

    mode: str
    question: str
    answer: str


async def ask(pool: Pool, tokenizer: Tokenizer, config: Config, questions: list[tuple[str, str]]) -> list[Asked]:
    """Answer (mode, text) questions greedily, as many at once as the pool takes."""

    async def one(mode: str, text: str) -> Asked:
        sampling = Sampling(temperature=0.0, max_new_tokens=64)
        if mode == "chat":
            run = generate.chat(pool, tokenizer, [("user", text)], sampling, chat_format=config.chat)
        else:
            run = generate.fill(pool, tokenizer, text, sampling)
        last = None
        async for event in run:
            last = event
        assert isinstance(last, Done), last
        return Asked(mode, text, last.text)

    return await asyncio.gather(*(one(mode, text) for mode, text in questions))


def plain(text: str) -> str:
    """For comparing answers: no case, no final punctuation, single spaces."""
    return " ".join(text.lower().split()).strip(" .。!！?？")


async def report(folder: Path, held_out: list[dict]) -> dict:
    """Answers to the examples, and the share of held-out questions that are answered exactly right, by language."""
    config, tokenizer = Config.load(folder), Tokenizer.load(folder)
    pool = Pool(folder, slots=16)
    await pool.start()
    try:
        examples = await ask(pool, tokenizer, config, list(EXAMPLES))
        answers = await ask(pool, tokenizer, config, [("chat", row["question"]) for row in held_out])
    finally:
        await pool.stop()
    rows = [
        {**row, "said": asked.answer, "right": plain(asked.answer) == plain(row["answer"])}
        for row, asked in zip(held_out, answers, strict=True)
    ]
    languages = sorted({row["lang"] for row in rows})
    return {
        "model": config.name,
        "parameters": config.parameters(),
        "weights_sha256": weights_hash(folder),
        "examples": [{"mode": asked.mode, "question": asked.question, "answer": asked.answer} for asked in examples],
        "held_out": {
            "questions": len(rows),
            "right": sum(row["right"] for row in rows),
            "by_language": {
                language: [
                    sum(row["right"] for row in rows if row["lang"] == language),
                    sum(row["lang"] == language for row in rows),
                ]
                for language in languages
            },
            "wrong": [{key: row[key] for key in ("question", "answer", "said")} for row in rows if not row["right"]],
        },
    }


def draw_loss(metrics: Path, picture: Path) -> dict:
    """Draw the loss over training tokens into an image file; returns totals of the run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    tokens, total = [], 0
    for line in lines:
        total += line["tokens"]
        tokens.append(total / 1e6)
    losses = [line["loss"] for line in lines]
    smooth = [sum(losses[max(0, i - 24) : i + 1]) / len(losses[max(0, i - 24) : i + 1]) for i in range(len(losses))]
    figure, axes = pyplot.subplots(figsize=(7, 3.5))
    axes.plot(tokens, losses, linewidth=0.4, alpha=0.4, color="tab:blue")
    axes.plot(tokens, smooth, linewidth=1.5, color="tab:blue", label="loss (mean of 25 steps)")
    changes = [i for i in range(1, len(lines)) if lines[i]["stage"] != lines[i - 1]["stage"]]
    for i in changes:
        axes.axvline(tokens[i], color="gray", linewidth=0.8, linestyle="--")
        axes.annotate(
            lines[i]["stage"], (tokens[i], max(losses) * 0.9), xytext=(4, 0), textcoords="offset points", fontsize=8
        )
    axes.set_xlabel("million tokens read")
    axes.set_ylabel("cross-entropy per target token")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
    return {
        "steps": len(lines),
        "tokens": total,
        "targets": sum(line["targets"] for line in lines),
        "hours": round(sum(line["seconds"] for line in lines) / 3600, 2),
        "last_loss": round(smooth[-1], 3),
    }
