"""How well a model does on rows that it was not trained on: text in bits per byte, blanks and questions by their answers.

Rows have the forms of sources.py. Of a document every byte counts, read from left to right behind a [gMASK], in windows of the
model's length. Of a text with blanks, and of a conversation's last answer, an answer is right if the greedy one is the row's,
but for case and the point at its end; where the row has words that are "wanted", if it has them in it. `perplexity` is that of the
rows' answers' tokens, their end included, by the model's own probability.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.errors import GLMError
from engine.glm import blanks, checkpoint
from engine.glm.attention import MaskedAttention, prefix_visible
from engine.glm.blanks import Sample
from engine.glm.config import Config
from engine.glm.model import GLM
from engine.glm.tokenizer import Tokenizer
from engine.serving.pool import Pool
from engine.serving.worker import choose_device
from engine.training.objective import blank_samples, chat_sample
from engine.training.report import Asked, ask, plain
from engine.training.sources import is_document


async def measure(folder: Path, splits: dict[str, list[dict]]) -> dict[str, dict]:
    """Of each split: documents, bytes, bits_per_byte; blanks (texts), blanks_right; questions, questions_right; perplexity of
    the answers; too_long: rows that this model has no room for. What a split has none of is left out. GLMError: those of
    checkpoint.load, Pool and `ask`; bad_data."""
    config, tokenizer = Config.load(folder), Tokenizer.load(folder)
    whole, splits = splits, {name: _fitting(rows, config, tokenizer) for name, rows in splits.items()}
    model = checkpoint.load(folder, device=choose_device(0, 1))
    found = {name: _by_probability(model, tokenizer, rows) for name, rows in splits.items()}
    for name, rows in splits.items():
        if missing := len(whole[name]) - len(rows):
            found[name]["too_long"] = missing
    del model
    asked = [(name, row, *_question(row)) for name, rows in splits.items() for row in rows if not is_document(row)]
    if not asked:
        return found
    async with Pool(folder, queue=len(asked)) as pool:
        answers = await ask(pool, tokenizer, config, [(mode, text) for _, _, mode, text, _ in asked])
    for (name, row, mode, _, wanted), said in zip(asked, answers, strict=True):
        what = "blanks" if mode == "fill" else "questions"
        found[name][what] = found[name].get(what, 0) + 1
        found[name][f"{what}_right"] = found[name].get(f"{what}_right", 0) + _is_right(row, wanted, said)
    return found


def _fitting(rows: list[dict], config: Config, tokenizer: Tokenizer) -> list[dict]:
    return [
        row
        for row in rows
        if is_document(row) or all(len(sample.ids) <= config.positions for sample in _samples(row, config, tokenizer))
    ]


def _is_right(row: dict, answers: list[str], said: Asked) -> bool:
    if "wanted" in row:
        return plain(row["wanted"]) in plain(said.answer)
    given = said.fills if said.mode == "fill" else [said.answer]
    return list(map(plain, given)) == list(map(plain, answers))


def table(found: dict[str, dict]) -> str:
    """What `measure` found, as Markdown."""
    lines = ["| rows | text | blanks right | questions right | perplexity of the answers |", "|---|---|---|---|---:|"]
    for name, one in found.items():
        text = f"{one['bits_per_byte']:.3f} bits per byte of {one['bytes']:,}" if "bytes" in one else ""
        right = [f"{one[f'{what}_right']} of {one[what]}" if what in one else "" for what in ("blanks", "questions")]
        lines.append(f"| {name} | {text} | {right[0]} | {right[1]} | {one.get('perplexity', '')} |")
    return "\n".join(lines) + "\n"


def _question(row: dict) -> tuple[str, str | list[tuple[str, str]], list[str]]:
    """mode, text or messages, and the answers: of a conversation the last one."""
    if "answers" in row:
        return "fill", row["text"], row["answers"]
    *messages, (_, answer) = [(message["role"], message["content"]) for message in row["messages"]]
    if len(messages) == 1 and messages[0][1].count("[MASK]") == 1:
        return "fill", messages[0][1], [answer]
    return "chat", messages, [answer]


@torch.inference_mode()
def _by_probability(model: GLM, tokenizer: Tokenizer, rows: Iterable[dict]) -> dict:
    found: dict[str, float] = {}
    bits, count, nats, tokens = 0.0, 0, 0.0, 0
    for row in rows:
        if is_document(row):
            bits += text_nats(model, tokenizer.encode_plain(row["text"]), tokenizer) / math.log(2)
            count += len(row["text"].encode())
            found["documents"] = found.get("documents", 0) + 1
            continue
        for sample in _samples(row, model.config, tokenizer):
            nats += sample_nats(model, sample)
            tokens += sum(target >= 0 for target in sample.targets)
    if count:
        found |= {"bytes": count, "bits_per_byte": round(bits / count, 4)}
    if tokens:
        found["perplexity"] = round(math.exp(nats / tokens), 2)
    return found


def _samples(row: dict, config: Config, tokenizer: Tokenizer) -> list[Sample]:
    _, text, wanted = _question(row)
    if isinstance(text, str):
        return blank_samples(text, wanted, tokenizer)
    if config.chat is None:
        raise GLMError("bad_data", "Conversations need a model with a chat format.", field="messages")
    return [chat_sample([*text, ("assistant", wanted[0])], config.chat, tokenizer)]


def text_nats(model: GLM, ids: Sequence[int], tokenizer: Tokenizer) -> float:
    """-log of the probability of a text's ids, see `text_scores`."""
    return text_scores(model, ids, tokenizer)[0]


def text_scores(model: GLM, ids: Sequence[int], tokenizer: Tokenizer) -> tuple[float, Tensor]:
    """-log of the probability of a text's ids, in windows of as many as the model takes, each behind a [gMASK] of its own; and the
    model's most likely id in the place of each."""
    room = model.config.positions - 2  # [gMASK] and sop
    windows = (ids[first : first + room] for first in range(0, len(ids), room))
    samples = (_without_end(blanks.layout((tokenizer.gmask,), [(0, ids)], tokenizer)) for ids in windows)
    nats, likeliest = zip(*(_scores(model, sample) for sample in samples), strict=True)
    return sum(nats), torch.cat(likeliest)


def _without_end(sample: Sample) -> Sample:
    """Without the prediction of `eop` behind the last token."""
    return Sample(sample.ids[:-1], sample.positions[:-1], sample.targets[:-1], sample.context_length)


def sample_nats(model: GLM, sample: Sample) -> float:
    """-log of the probability of a sequence's targets."""
    return _scores(model, sample)[0]


@torch.inference_mode()
def _scores(model: GLM, sample: Sample) -> tuple[float, Tensor]:
    ids, positions, targets = (
        torch.tensor(numbers, device=model.device) for numbers in (sample.ids, sample.positions, sample.targets)
    )
    context = torch.tensor([sample.context_length], device=model.device)
    attention = MaskedAttention(prefix_visible(len(sample.ids), context))
    hidden = model.run(model.embed(ids[None]), model.rotary(positions[None]), attention)[0]
    asked = targets >= 0
    logits = model.logits(hidden[asked]).float()
    return float(F.cross_entropy(logits, targets[asked], reduction="sum")), logits.argmax(dim=-1)
