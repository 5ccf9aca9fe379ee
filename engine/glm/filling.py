"""A document while its blanks are filled, in any order: its ids for the model and its text for people.

A fill goes into the ids as the tokens that were generated, and into the text as their text, so that the next blank's
prompt holds exactly what the model said.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.glm import blanks
from engine.glm.blanks import Document, Mask, Prompt
from engine.glm.tokenizer import Tokenizer


class Filling:
    """`text` and `ids` of the document as it is. Masks keep the places that they had in the document."""

    def __init__(self, document: Document, tokenizer: Tokenizer) -> None:
        self.text = document.text
        self.ids = list(document.ids)
        self._tokenizer = tokenizer
        # Of each filled blank: where it began, and by how much what stands behind it moved, in the text and in the ids.
        self._moves: list[tuple[int, int, int]] = []

    def index(self, mask: Mask) -> int:
        """Where a blank that is not filled yet stands among `ids`."""
        return mask.index + sum(ids for start, _, ids in self._moves if start < mask.start)

    def prompt(self, mask: Mask) -> Prompt:
        """What the model reads to fill a blank."""
        return blanks.prompt(self.ids, self.index(mask), self._tokenizer)

    def left(self, mask: Mask) -> str:
        """The text before a blank."""
        return self.text[: mask.start + self._text_moved(mask)]

    def shown(self, mask: Mask, fill: str) -> str:
        """What a fill adds to the text in this place: the space that it begins with may be there already."""
        left = self.left(mask)
        return blanks.splice(left, len(left), len(left), fill)[len(left) :]

    def with_fill(self, mask: Mask, fill: str) -> str:
        """The text with a fill in place of a mask."""
        moved = self._text_moved(mask)
        return blanks.splice(self.text, mask.start + moved, mask.end + moved, fill)

    def answer_ids(self, mask: Mask, answer: str) -> list[int]:
        """The ids of somebody's own words for a blank: a space before the blank belongs to them."""
        space = " " if self.left(mask).endswith(" ") and not answer.startswith(" ") else ""
        return self._tokenizer.encode_plain(space + answer) if answer else []

    def place(self, mask: Mask, ids: Sequence[int], fill: str) -> None:
        """Fill a blank for good."""
        text = self.with_fill(mask, fill)
        at = self.index(mask)
        was_last = at == len(self.ids) - 1
        self.ids[at : at + 1] = ids
        self._moves.append((mask.start, len(text) - len(self.text), len(ids) - 1))
        self.text = text
        if was_last:  # the document ended in this mask, and blanks before it may still be open
            self.ids = list(blanks.close(self.ids, self._tokenizer))

    def _text_moved(self, mask: Mask) -> int:
        return sum(text for start, text, _ in self._moves if start < mask.start)
