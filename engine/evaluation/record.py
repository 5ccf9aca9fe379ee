"""The answer to one question, as a line of a rows file keeps it (see result.py)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine.errors import GLMError


@dataclass(slots=True)
class Record:
    """row: number in its file; part: of a document, its window, else 0. mul: choice, logprobs (sum of each choice's). gen: ids and
    text, best answer first where all beams are kept (`others`). lm: loss (nats) over `tokens`. scores: of this row alone."""

    row: int
    part: int = 0
    choice: int | None = None
    logprobs: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    text: str | None = None
    others: list[list[int]] = field(default_factory=list)
    reason: str | None = None
    loss: float = 0.0
    tokens: int = 0
    words: int = 0
    bytes: int = 0
    read: int = 0  # tokens that went through the model
    truncated: bool = False
    scores: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Without what this kind of task has not."""
        line: dict[str, Any] = {"row": self.row, "part": self.part}
        if self.choice is not None:
            line |= {"prediction": self.choice, "logprobs": self.logprobs}
        elif self.text is not None:
            line |= {"prediction": self.ids, "text": self.text, "reason": self.reason}
            line |= {"others": self.others} if self.others else {}
        else:
            line |= {"loss": self.loss, "tokens": self.tokens, "words": self.words, "bytes": self.bytes}
        return line | {"scores": self.scores, "read": self.read, "truncated": self.truncated}

    @staticmethod
    def from_json(line: dict[str, Any]) -> Record:
        """GLMError bad_data for what `to_json` did not write."""
        try:
            rest = {key: value for key, value in line.items() if key != "prediction"}
            if "logprobs" in line:
                rest["choice"] = line["prediction"]
            elif "text" in line:
                rest["ids"] = line["prediction"]
            return Record(**rest)
        except (KeyError, TypeError) as error:
            raise GLMError("bad_data", f"This is no line of a rows file: {error}.", field="rows") from error
