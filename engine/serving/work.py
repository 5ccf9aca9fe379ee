"""What all ranks of a replica do in one pass: made by rank 0 from a plan, sent to the others on a pipe. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from engine.glm.blanks import Prompt


class Reading(NamedTuple):
    """A prompt to read: into a slot, for going on; or with choices behind it, to score them."""

    prompt: Prompt
    slot: int | None = None
    choices: tuple[tuple[int, ...], ...] = ()


class Tree(NamedTuple):
    """The last tokens of a search's live beams, read at the same position. The columns of `slots`, one slot behind the other,
    hold the prompt's tokens, then all that the search has read: token i goes to place `first` + i behind the prompt, and
    sees the prompt and the places in paths[i], its own among them."""

    slots: tuple[int, ...]
    prompt: int
    first: int
    position: int
    tokens: tuple[int, ...]
    paths: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Work:
    """First `clears` (slots) and `copies` (source slot, target slot, columns) in the cache; then prompts to read, or one
    token of each row: token i goes to columns[i] of slots[i] (ascending), read at positions[i]; then those of the trees.

    again: those of the rows whose token ends a prompt that its slot holds already.
    layers: prompts are read through so many only, None for all that are left; resume: go on with those of an earlier work.
    """

    clears: tuple[int, ...] = ()
    copies: tuple[tuple[int, int, int], ...] = ()
    readings: tuple[Reading, ...] = ()
    resume: bool = False
    layers: int | None = None
    slots: tuple[int, ...] = ()
    tokens: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()
    trees: tuple[Tree, ...] = ()
    again: tuple[int, ...] = ()
