"""What an evaluation sends over `/ws`, by an administrator's key only: prompts as ids, with choices to score or answers to make.

    {"type": "evaluate_model", "id": 1}          -> {"type": "evaluate_model", "id": 1, "limits": {…}, "replicas": 2,
                                                     "vocabulary": base64 of a sentencepiece model, "num_image_tokens": 0}
    {"type": "evaluate", "id": 2, "prompt": {…}, "choices": [[5, 7], [9]]}
                                                 -> {"type": "evaluated", "id": 2, "answers": [{"ids": [5, 7], "logprob": -3.1,
                                                     "text": " yes", "reason": "scored"}, …]}

`prompt` is an engine.glm.blanks.Prompt, `sampling` the part of engine.serving.protocol.Sampling that an evaluation uses. With
`choices` there is an answer for each, else those that were made, best first. An error is an `error` event with the message's id.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.glm.blanks import Prompt
from engine.serving import protocol
from engine.serving.protocol import MAX_BANNED, MAX_CHOICES, MAX_PADDING, MAX_STOP_LENGTH, MAX_STOP_STRINGS

MOST_IDS = 65536

Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=MOST_IDS)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class PromptBody(_Body):
    ids: Ids
    positions: Ids
    context_length: int = Field(ge=1)
    next_position: int = Field(ge=0)
    position_step: Literal[0, 1]

    @model_validator(mode="after")
    def _agrees(self) -> PromptBody:
        length = len(self.ids)
        if len(self.positions) != length or max(self.positions) >= length:
            raise ValueError("positions must be one for each id, below their number")
        if self.context_length >= length or self.next_position > length:
            raise ValueError("context_length and next_position must be within the ids")
        return self

    def prompt(self) -> Prompt:
        return Prompt(
            tuple(self.ids), tuple(self.positions), self.context_length, self.next_position, self.position_step
        )


class BeamsBody(_Body):
    count: int = Field(ge=1, le=protocol.MAX_BEAMS)
    length_penalty: float = Field(1.0, ge=-10, le=10)
    padding: int = Field(0, ge=0, le=MAX_PADDING)


class SamplingBody(_Body):
    """The most likely token each time, or a beam search."""

    max_new_tokens: int = Field(ge=1)
    min_new_tokens: int = Field(0, ge=0)
    no_repeat_ngram: int = Field(0, ge=0)
    stop: list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]] = Field([], max_length=MAX_STOP_STRINGS)
    banned_ids: list[int] = Field([], max_length=MAX_BANNED)
    banned_starts: list[Ids] = Field([], max_length=MAX_BANNED)
    beams: BeamsBody | None = None

    def sampling(self) -> protocol.Sampling:
        beams = None if self.beams is None else protocol.Beams(**self.beams.model_dump())
        return protocol.Sampling(
            temperature=1.0 if beams else 0.0,
            no_repeat_ngram=self.no_repeat_ngram,
            min_new_tokens=self.min_new_tokens,
            max_new_tokens=self.max_new_tokens,
            stop=tuple(self.stop),
            seed=0,
            banned_ids=tuple(self.banned_ids),
            banned_starts=tuple(map(tuple, self.banned_starts)),
            beams=beams,
        )


EvaluationId = Annotated[int, Field(ge=0)]


class EvaluateModel(_Body):
    type: Literal["evaluate_model"]
    id: EvaluationId


class Evaluate(_Body):
    type: Literal["evaluate"]
    id: EvaluationId
    prompt: PromptBody
    choices: list[Ids] = Field([], max_length=MAX_CHOICES)
    sampling: SamplingBody | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Evaluate:
        if bool(self.choices) == (self.sampling is not None):
            raise ValueError("either choices or sampling must be given")
        return self

    def request(self, name: str) -> protocol.Request:
        sampling = protocol.Sampling(seed=0) if self.sampling is None else self.sampling.sampling()
        return protocol.Request(name, self.prompt.prompt(), sampling, choices=tuple(map(tuple, self.choices)))
