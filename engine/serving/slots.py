"""Which cache slots are free, and which prompts they still hold: a prompt that comes again needn't be read again. Torch-free.

A context is bidirectional, so only a whole prompt can be found again, not a beginning of one: asked for another answer, or for the
same one with other parameters, a slot's keys and values stand until another prompt is read over them.
"""

from __future__ import annotations

import heapq

from engine.glm.blanks import Prompt


class Slots:
    """retain: remember what is in free slots. The lowest slot that holds nothing is taken first, which keeps the running ones in
    few contiguous pieces; then the one that was left longest ago."""

    def __init__(self, count: int, *, retain: bool) -> None:
        self._retain = retain
        self._empty = list(range(count))  # a heap
        self._held: dict[int, Prompt] = {}  # free, with a prompt; the oldest first

    def __len__(self) -> int:
        """How many are free."""
        return len(self._empty) + len(self._held)

    def take(self, count: int, prompt: Prompt | None = None) -> tuple[tuple[int, ...], bool]:
        """So many free slots, and whether the first one holds the prompt."""
        assert count <= len(self)
        found = (
            next((slot for slot, held in self._held.items() if held == prompt), None) if prompt is not None else None
        )
        taken = [] if found is None else [found]
        if found is not None:
            del self._held[found]
        while len(taken) < count:
            if self._empty:
                taken.append(heapq.heappop(self._empty))
            else:
                oldest = next(iter(self._held))
                del self._held[oldest]
                taken.append(oldest)
        return tuple(taken), found is not None

    def give(self, slot: int, prompt: Prompt | None = None) -> None:
        """A slot is free again; it holds a prompt that was read to its end, or nothing of use."""
        if self._retain and prompt is not None:
            for other in [other for other, held in self._held.items() if held == prompt]:
                del self._held[other]  # one is enough
                heapq.heappush(self._empty, other)
            self._held[slot] = prompt
        else:
            heapq.heappush(self._empty, slot)
