"""Whether a run goes well: losses that are no numbers, spikes, and what is to be done about them. No torch.

A spike is a loss whose mean over `patience` steps is above `factor` times the median of the last `window` good ones. The run
then goes back to its last saved state and on with the data behind the spike, as PaLM's did (arXiv 2204.02311, section 5.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import Literal

Verdict = Literal["good", "skip", "rewind"]


class Watch:
    """Ask `before` with what is known before an update, `after` with the loss of a step that was done."""

    def __init__(self, factor: float, window: int, patience: int) -> None:
        self.factor, self.window, self.patience = factor, window, patience
        self.losses: list[float] = []  # of good steps, the last `window`
        self.high: list[float] = []  # of the last steps, as long as each is above the line

    def before(self, loss: float, norm: float | None) -> Verdict:
        """skip: the update would spoil the weights. norm: of the gradient, None if it isn't known yet."""
        return "good" if math.isfinite(loss) and (norm is None or math.isfinite(norm)) else "skip"

    def after(self, loss: float, norm: float | None) -> Verdict:
        """rewind: the weights are spoiled, or the loss has risen for good."""
        if self.before(loss, norm) == "skip":
            return "rewind"
        if len(self.losses) >= self.window // 2 and loss > self.factor * median(self.losses):
            self.high.append(loss)
            spiked = len(self.high) >= self.patience and fmean(self.high) > self.factor * median(self.losses)
            return "rewind" if spiked else "good"
        self.high = []
        self.losses = [*self.losses, loss][-self.window :]
        return "good"

    def forget(self, losses: Sequence[float]) -> None:
        """The run went back to a state with these losses."""
        self.losses, self.high = list(losses), []
