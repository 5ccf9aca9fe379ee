"""What a run is to do, and how many tokens each of its blanks may get: for the run, and for what is told before it. Torch-free.

A blank gets what the request wants, or by its kind a few words, a sentence, an answer; cut so that prompt and answer fit into
the model's positions with a few places kept for each blank that is still to come.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import GLMError
from engine.glm.blanks import Document, Mask
from engine.serving import protocol
from engine.serving.protocol import Limits, Sampling

# New tokens of a blank when the request doesn't say: a few words, a sentence, an answer.
DEFAULT_NEW_TOKENS = {"[MASK]": 32, "[sMASK]": 64, "[gMASK]": 256}
# Places kept for each blank that is still to come.
_KEPT_FOR_A_BLANK = 8
ORDERS = ("left", "confident")
CONFIDENT_BLANKS = 16  # the most that are filled the most confident first: k blanks are k (k + 1) / 2 fills


@dataclass(frozen=True, slots=True)
class Job:
    """What to do: fill `targets`, blanks of `document`; or, with as many `answers`, score those in their places."""

    document: Document
    targets: tuple[Mask, ...]
    sampling: Sampling
    alternatives: int = 1
    whole_text: bool = True  # the run's text is the document with its blanks filled; else the fill alone
    own_text: bool = False  # the fill begins a text of its own, as an answer does
    dropped_messages: int = 0
    answers: tuple[str, ...] = ()
    total_length: int | None = None  # of a prompt and its answer in tokens; None: what the model takes
    order: str = "left"  # of ORDERS

    def budget(self, mask_kind: str, prompt_tokens: int, to_come: int, limits: Limits) -> int:
        """The most tokens of a fill, at least 1. prompt_tokens: with `sop`; to_come: how many blanks are filled after it.

        GLMError prompt_too_long when `total_length` leaves nothing.
        """
        wanted = self.sampling.max_new_tokens
        if self.total_length is not None:
            left = self.total_length - prompt_tokens
            if left < 1:
                message = (
                    f"The prompt has {prompt_tokens} tokens: no room for an answer in a total of {self.total_length}."
                )
                raise GLMError("prompt_too_long", message, field="total_length", limit=self.total_length)
            wanted = left if wanted is None else min(wanted, left)
        elif wanted is None:
            wanted = DEFAULT_NEW_TOKENS[mask_kind]
        most = min(wanted, protocol.room(prompt_tokens, limits) - _KEPT_FOR_A_BLANK * to_come)
        if self.sampling.beams is not None:
            most = min(most, protocol.beam_room(prompt_tokens, self.sampling.beams.count, limits))
        return max(1, most)

    def answer_kind(self, mask_kind: str) -> str:
        """What sort of answer the fill of such a mask is, for what is expected of its length."""
        return "chat" if self.own_text else mask_kind


def kept_for_answer(sampling: Sampling, limits: Limits) -> int:
    """The room that the oldest messages of a conversation are dropped for: the wanted answer, or a quarter of the positions."""
    return min(sampling.max_new_tokens or DEFAULT_NEW_TOKENS["[gMASK]"], limits.positions // 4)


def check_order(order: str, blank_count: int, sampling: Sampling) -> None:
    """GLMError bad_request for an order that so many blanks can't be filled in."""
    if order not in ORDERS:
        raise GLMError("bad_request", f"order is one of {', '.join(ORDERS)}.", field="order")
    if order == "left":
        return
    if sampling.beams is not None:
        raise GLMError("bad_request", "Beam search fills from left to right: leave the order out.", field="order")
    if blank_count > CONFIDENT_BLANKS:
        message = f"The most confident first takes {CONFIDENT_BLANKS} blanks; the text has {blank_count}."
        raise GLMError("bad_request", message, field="text", limit=CONFIDENT_BLANKS)
