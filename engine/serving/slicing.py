"""How many layers of new prompts are run before the running rows get their next token. Torch-free; the clock is the caller's.

A bidirectional context can't be read in chunks of tokens: every token of it sees all others. But a pass can stop between two
layers: some layers of the new prompts, a step for everybody else, the next layers. It is exact, and costs a step between
slices (layered prefill, Lee et al., arXiv 2510.08055).
"""

from __future__ import annotations


class Slicer:
    """gap: seconds that a running row may wait from one token to the next while prompts are read; a slice is one layer at
    least, however long that takes, and may take as long as a step: where steps alone are near the gap, or above it, prompts
    would hardly get on, and their slots stay idle all that time.

    `begin` a reading, then ask `until` before each slice and tell `measured` after it; `stepped` tells what a step takes.
    """

    def __init__(self, layers: int, gap: float) -> None:
        self.layers, self._gap = layers, gap
        self._step = 0.0  # seconds of the last step
        self._tokens = 0  # of the reading at hand
        self._layer_seconds: float | None = None  # of the reading at hand; a guess until it was measured
        self._token_seconds: float | None = None  # a layer's, for a token, of the reading before

    def begin(self, tokens: int) -> None:
        """A reading of so many tokens is next."""
        self._tokens = max(1, tokens)
        self._layer_seconds = None if self._token_seconds is None else self._token_seconds * self._tokens

    def until(self, layer: int) -> int:
        """Where the slice ends that begins at `layer`. Nothing is known of the first reading: its first slice is one layer."""
        if self._layer_seconds is None:
            return min(self.layers, layer + 1)
        seconds = max(self._gap - self._step, self._step)
        count = seconds / self._layer_seconds if self._layer_seconds > 0 else self.layers
        return min(self.layers, layer + max(1, int(count)))

    def measured(self, layers: int, seconds: float) -> None:
        """So many layers of the reading at hand took so long."""
        self._layer_seconds = seconds / layers
        self._token_seconds = self._layer_seconds / self._tokens

    def stepped(self, seconds: float) -> None:
        """A step of the running rows took so long."""
        self._step = seconds
