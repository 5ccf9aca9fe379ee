"""Autoregressive blank infilling: from a row of data to training sequences (GLM-130B, arXiv 2210.02414, section 2.3).

Documents get either one long span to the end under [gMASK], or several short spans under [MASK]: lengths Poisson, about
15% of the tokens, each span ending in `eop`, in shuffled order behind one context. Conversations and texts with blanks
keep the blanks they have. All sequences are built by engine/glm/blanks.py, as at inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from engine.errors import GLMError
from engine.glm import blanks
from engine.glm.blanks import Sample
from engine.glm.config import ChatFormat
from engine.glm.filling import Filling
from engine.glm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Objective:
    """Shares and sizes of the pre-training spans."""

    mask_share: float = 0.3  # of documents under [MASK]; the others under [gMASK]
    masked_tokens: float = 0.15  # of a document's tokens, under [MASK]
    mean_span: float = 3.0  # Poisson's lambda


def poisson(random: Random, mean: float) -> int:
    """A Poisson number by inversion (Knuth): fine for small means."""
    limit, product, count = 2.718281828459045**-mean, random.random(), 0
    while product > limit:
        product *= random.random()
        count += 1
    return count


def spans(length: int, objective: Objective, random: Random) -> list[tuple[int, int]]:
    """Short spans [start, end) of a document of `length` tokens, in order, never touching each other."""
    wanted = max(1, round(length * objective.masked_tokens))
    longest = max(1, length // 3)  # a short sentence keeps enough context to tell what is missing
    chosen: list[tuple[int, int]] = []
    for _ in range(4 * wanted):
        if wanted <= 0:
            break
        size = min(max(1, poisson(random, objective.mean_span)), longest, max(1, wanted) if chosen else longest)
        start = random.randrange(0, length - size + 1)
        if all(start + size < a or b < start for a, b in chosen):
            chosen.append((start, start + size))
            wanted -= size
    return sorted(chosen)


def document_sample(
    ids: Sequence[int], ended: bool, tokenizer: Tokenizer, objective: Objective, random: Random
) -> Sample:
    """A pre-training sequence from a document's ids. ended: whether the document really ends here, so that `eop` is true."""
    if random.random() < objective.mask_share and len(ids) >= 4:
        return _short_spans(ids, tokenizer, objective, random)
    # The square leans to short prefixes: more tokens are predicted for the same cost.
    prefix = int(len(ids) * random.random() ** 2)
    sample = blanks.layout((*ids[:prefix], tokenizer.gmask), [(prefix, ids[prefix:])], tokenizer)
    if ended:
        return sample
    return Sample(sample.ids, sample.positions, (*sample.targets[:-1], -1), sample.context_length)


def _short_spans(ids: Sequence[int], tokenizer: Tokenizer, objective: Objective, random: Random) -> Sample:
    context: list[int] = []
    answers = []
    last = 0
    for start, end in spans(len(ids), objective, random):
        context += ids[last:start]
        answers.append((len(context), ids[start:end]))
        context.append(tokenizer.mask)
        last = end
    context += ids[last:]
    random.shuffle(answers)
    return blanks.layout(blanks.close(context, tokenizer), answers, tokenizer)


def blank_samples(text: str, answers: Sequence[str], tokenizer: Tokenizer) -> list[Sample]:
    """One sequence for each blank of a text, with those before it filled, as at inference. Error: bad_data."""
    document = blanks.parse(text, tokenizer)
    if len(document.masks) != len(answers):
        raise GLMError("bad_data", f"{len(answers)} answers for {len(document.masks)} blanks.", field="answers")
    filling, samples = Filling(document, tokenizer), []
    for mask, answer in zip(document.masks, answers, strict=True):
        ids = filling.answer_ids(mask, answer)
        samples.append(blanks.layout(filling.ids, [(filling.index(mask), ids)], tokenizer))
        filling.place(mask, ids, answer)
    return samples


def chat_sample(messages: Sequence[tuple[str, str]], chat: ChatFormat, tokenizer: Tokenizer) -> Sample:
    """The sequence that answers the last message, an assistant's, given those before it."""
    role, answer = messages[-1]
    if role != "assistant" or len(messages) < 2:
        raise GLMError(
            "bad_data", "A conversation must end in an assistant's message with a user's before it.", field="messages"
        )
    document = blanks.parse(blanks.chat_text(messages[:-1], chat), tokenizer, strict=False)
    return blanks.layout(document.ids, [(document.masks[-1].index, tokenizer.encode_plain(answer))], tokenizer)


def row_samples(
    row: dict, chat: ChatFormat | None, tokenizer: Tokenizer, objective: Objective, length: int, random: Random
) -> list[Sample]:
    """The sequences of one row, each at most `length` tokens; an empty list where the row is too long or empty.

    A document longer than `length` gives one piece of it, chosen at random; a conversation one of its answers, but none with
    `"weight": 0`; a question that is itself a text with one blank is a blank to fill, not a conversation.
    """
    return fitting_samples(row, chat, tokenizer, objective, length, random)[0]


def fitting_samples(
    row: dict, chat: ChatFormat | None, tokenizer: Tokenizer, objective: Objective, length: int, random: Random
) -> tuple[list[Sample], str | None]:
    """`row_samples`, and why the row, or some of its blanks, gave none: "empty", "no answer", "too long", or None.

    empty: a document of under two tokens. no answer: a conversation in which the assistant says nothing after a user, a text
    with blanks and not one answer.
    """
    if "answers" in row:
        samples = blank_samples(row["text"], row["answers"], tokenizer) if row["answers"] else []
    elif "messages" in row:
        messages = [(message["role"], message["content"]) for message in row["messages"]]
        turns = [
            index
            for index, (role, content) in enumerate(messages)
            if role == "assistant" and index and content.strip() and row["messages"][index].get("weight", 1)
        ]
        if len(messages) == 2 and turns and messages[0][1].count("[MASK]") == 1:
            samples = blank_samples(messages[0][1], [messages[1][1]], tokenizer)
        elif chat is None:
            raise GLMError("bad_data", "Conversations need a model with a chat format.", field="messages")
        else:
            samples = [chat_sample(messages[: random.choice(turns) + 1], chat, tokenizer)] if turns else []
    else:
        ids = row["ids"] if "ids" in row else tokenizer.encode_plain(row["text"])
        # A span adds at least a mask, `sop`, and perhaps `eos`; under [MASK] each span costs two tokens more.
        room = int((length - 4) / (1 + objective.masked_tokens))
        start = random.randrange(0, len(ids) - room + 1) if len(ids) > room else 0
        piece = [int(token) for token in ids[start : start + room]]
        if len(piece) < 2:
            return [], "empty"
        samples = [document_sample(piece, start + room >= len(ids), tokenizer, objective, random)]
    if not samples:
        return [], "no answer"
    fitting = [sample for sample in samples if len(sample.ids) <= length]
    return fitting, None if len(fitting) == len(samples) else "too long"
