"""GLM-130B's evaluation as its own code lays it out and runs it, rebuilt: what ours is compared with, in numbers and in time.

A question's choices stand in one sequence, each behind a `sop` of its own, or behind one where every choice of the file is a
single token; micro-batches are made in the file's order and padded to a multiple of 32; logits are computed for every token;
texts are generated one prompt at a time, with a cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.evaluation.kinds import Question
from engine.evaluation.prompts import TILE
from engine.glm.attention import attend
from engine.glm.blanks import Prompt
from engine.glm.model import GLM
from engine.serving.protocol import Sampling


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence. visible: (length, length), True where a row sees a column. places: of each choice, the rows that its tokens'
    log-probabilities are read from."""

    tokens: list[int]
    positions: list[int]
    visible: Tensor
    places: list[list[int]]


def choice_sample(question: Question, single: bool) -> Sample:
    """single: every choice of the file is one token, so that one `sop` serves them all."""
    prompt = question.prompt
    context = prompt.context_length
    tokens, positions = list(prompt.ids[:context]), list(prompt.positions[:context])
    places: list[list[int]] = []
    for choice in question.choices:
        start = len(tokens)
        tokens += [prompt.ids[context], *choice[:-1]]
        positions += [prompt.positions[context], *(prompt.position(index) for index in range(len(choice) - 1))]
        places.append(list(range(start, len(tokens))))
        if single:
            places *= len(question.choices)
            break
    visible = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    visible[:, :context] = True
    for rows in places:
        for row in rows:
            visible[row, rows[0] : row + 1] = True
    return Sample(tokens, positions, visible, places)


def prompt_sample(prompt: Prompt) -> Sample:
    """A prompt to go on from."""
    length = len(prompt.ids)
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    visible[:, : prompt.context_length] = True
    return Sample(list(prompt.ids), list(prompt.positions), visible, [])


def padded(samples: Sequence[Sample], tile: int = TILE) -> tuple[Tensor, Tensor, Tensor]:
    """tokens, positions (batch, length), visible (batch, 1, length, length), the length a multiple of `tile`. What is padded sees
    nothing there; here it sees itself, for a row that sees nothing is no number in some kernels."""
    length = -(-max(len(sample.tokens) for sample in samples) // tile) * tile
    tokens = torch.zeros(len(samples), length, dtype=torch.long)
    positions = torch.zeros(len(samples), length, dtype=torch.long)
    visible = torch.eye(length, dtype=torch.bool).repeat(len(samples), 1, 1)
    for row, sample in enumerate(samples):
        own = len(sample.tokens)
        tokens[row, :own] = torch.tensor(sample.tokens)
        positions[row, :own] = torch.tensor(sample.positions)
        visible[row, :own, :own] = sample.visible
    return tokens, positions, visible[:, None]


@torch.inference_mode()
def choice_logprobs(model: GLM, questions: Sequence[Question], micro_batch: int) -> list[list[float]]:
    """Sums of the log-probabilities of every question's choices."""
    single = all(len(choice) == 1 for question in questions for choice in question.choices)
    found = []
    for start in range(0, len(questions), micro_batch):
        batch = questions[start : start + micro_batch]
        samples = [choice_sample(question, single) for question in batch]
        tokens, positions, visible = padded(samples)
        logprobs = model(tokens, positions, visible=visible).float().log_softmax(dim=-1)
        for row, question, sample in zip(logprobs, batch, samples, strict=True):
            pairs = zip(question.choices, sample.places, strict=True)
            found.append([float(row[places, list(choice)].sum()) for choice, places in pairs])
    return found


class _Growing:
    """Attention with a cache that grows by concatenation, for one sequence. visible: of the tokens at hand, over all columns."""

    def __init__(self, layers: int) -> None:
        self._cache: list[tuple[Tensor, Tensor] | None] = [None] * layers
        self.visible = torch.empty(0)

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        before = self._cache[layer]
        if before is not None:
            key, value = torch.cat((before[0], key), dim=1), torch.cat((before[1], value), dim=1)
        self._cache[layer] = key, value
        return attend(query, key, value, self.visible)


@torch.inference_mode()
def generate(model: GLM, prompt: Prompt, sampling: Sampling, ends: Sequence[int], never: Tensor) -> list[int]:
    """The most likely token each time, to an end token, which is left out. never: ids that are not chosen."""
    assert sampling.max_new_tokens is not None
    most = sampling.max_new_tokens
    tokens, positions, visible = padded([prompt_sample(prompt)])
    attention = _Growing(model.config.layers)
    attention.visible = visible
    length, own = tokens.shape[1], len(prompt.ids)
    hidden = model.run(model.embed(tokens), model.rotary(positions), attention)
    logits = model.logits(hidden)[0, own - 1]
    seen = torch.ones(1, 1, 1, length + most, dtype=torch.bool)
    seen[..., own:length] = False
    made: list[int] = []
    while True:
        logits[never] = float("-inf")
        if len(made) < sampling.min_new_tokens:
            logits[list(ends)] = float("-inf")
        token = int(logits.argmax())
        if token in ends:
            return made
        made.append(token)
        if len(made) == most:
            return made
        attention.visible = seen[..., : length + len(made)]
        place = torch.tensor([[prompt.position(len(made) - 1)]])
        hidden = model.run(model.embed(torch.tensor([[token]])), model.rotary(place), attention)
        logits = model.logits(hidden)[0, -1]
