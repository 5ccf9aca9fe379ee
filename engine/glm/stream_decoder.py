"""Token ids to text, one id at a time, never with half a character in it.

Characters outside a vocabulary come as byte pieces, up to four for one character; text sent on token by token would
break them. A StreamDecoder holds bytes back until they are a character, or can't become one (then U+FFFD for
each wrong byte, as sentencepiece does). What `push` and `finish` return, joined, is `Tokenizer.decode` of the same ids
without the skipped ones: `decode` is built on this class.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.glm.tokenizer import Tokenizer

SPACE = "\u2581"  # sentencepiece's mark for a space in a piece


class StreamDecoder:
    """One stream of ids. `first_of_text`: the stream begins a text, so a space that the vocabulary puts in front of
    every text is taken off; False for a fill that follows other text, where a leading space is part of the fill.
    `skip`: ids that give no text, by default the end tokens (eop, eos).
    """

    __slots__ = ("_tokenizer", "_skip", "_pending", "_at_start")

    def __init__(self, tokenizer: Tokenizer, first_of_text: bool = True, skip: Collection[int] | None = None) -> None:
        self._tokenizer = tokenizer
        self._skip = frozenset(tokenizer.end_ids if skip is None else skip)
        self._pending = b""  # at most three bytes: the beginning of a character
        self._at_start = first_of_text and tokenizer.strips_first_space

    def push(self, token: int) -> str:
        """The text that this id completes; "" while a character is unfinished.

        GLMError `bad_request`, field `ids`, for an id that is not in the vocabulary; the stream is unchanged then.
        """
        if token in self._skip:
            return ""
        byte = self._tokenizer.byte(token)
        if byte is not None:
            self._at_start = False
            self._pending += bytes((byte,))
            return self._characters(final=False)
        surface = self._tokenizer.surface(token)
        text = self.finish()
        if self._at_start and surface:
            if self._tokenizer.piece(token).startswith(SPACE):
                surface = surface[1:]
            # One space is the vocabulary's own; more belong to the text, unless the vocabulary trims texts anyway.
            self._at_start = self._tokenizer.strips_all_first_spaces and not surface
        return text + surface

    def finish(self) -> str:
        """What is still held back, as U+FFFD; the decoder may be used on."""
        return self._characters(final=True)

    def _characters(self, final: bool) -> str:
        text = ""
        while self._pending:
            try:
                text, self._pending = text + self._pending.decode("utf-8"), b""
            except UnicodeDecodeError as error:
                whole, rest = self._pending[: error.start].decode("utf-8"), self._pending[error.start :]
                if error.reason == "unexpected end of data" and not final:
                    self._pending = rest
                    return text + whole
                text, self._pending = text + whole + "\ufffd", rest[1:]
        return text
