"""From generated ids to text that may be shown: whole characters only, nothing of a stop string, ever.

Torch-free. Also says which ids may never be generated.
"""

from __future__ import annotations

from engine.glm.stream_decoder import StreamDecoder
from engine.glm.tokenizer import Tokenizer


class TextStream:
    """The text of one alternative as it grows.

    `push` and `finish` return text that became certain: the end of the text that might still become a stop string is held
    back. When a stop string is complete, `stopped` is True and the text ends before it. `pieces` has one text for each id.
    """

    __slots__ = ("pieces", "stopped", "_decoder", "_stop", "_text", "_sent")

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = (), first_of_text: bool = False) -> None:
        self.pieces: list[str] = []
        self.stopped = False
        self._decoder = StreamDecoder(tokenizer, first_of_text)
        self._stop = stop
        self._text = ""
        self._sent = 0

    def push(self, token: int) -> str:
        assert not self.stopped
        piece = self._decoder.push(token)
        self.pieces.append(piece)
        if not self._stop:
            return piece
        self._text += piece
        return self._release(final=False)

    def finish(self) -> str:
        """The text is at its end: what was held back and is no stop string."""
        if self.stopped:
            return ""
        rest = self._decoder.finish()
        if rest:
            self.pieces[-1] += rest
        if not self._stop:
            return rest
        self._text += rest
        return self._release(final=True)

    def _release(self, final: bool) -> str:
        # What was sent can't be part of a stop string, so the search need not look there.
        found = [at for at in (self._text.find(stop, self._sent) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            self._cut(min(found))
            until = len(self._text)
        else:
            until = len(self._text) - (0 if final else self._held())
        out = self._text[self._sent : until]
        self._sent = until
        return out

    def _held(self) -> int:
        """The length of the longest end of the text that is the beginning of a stop string."""
        longest = min(max(map(len, self._stop)) - 1, len(self._text) - self._sent)
        for length in range(longest, 0, -1):
            end = self._text[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return length
        return 0

    def _cut(self, length: int) -> None:
        surplus = len(self._text) - length
        self._text = self._text[:length]
        for index in range(len(self.pieces) - 1, -1, -1):
            if not surplus:
                break
            cut = min(surplus, len(self.pieces[index]))
            self.pieces[index] = self.pieces[index][: len(self.pieces[index]) - cut]
            surplus -= cut


def never_generated(tokenizer: Tokenizer, vocabulary: int) -> list[int]:
    """Ids below `vocabulary` that are no text and no end: padding, masks and other special tokens, images, unknown, begin."""
    banned = set(range(tokenizer.vocabulary_size, vocabulary)) | set(range(tokenizer.num_image_tokens))
    banned |= set(tokenizer.special.values())
    first = tokenizer.num_image_tokens
    # sentencepiece's control pieces and its unknown piece stand at the beginning of a vocabulary
    banned |= {token for token in range(first, first + 8) if tokenizer.piece(token) in ("<unk>", "<s>", "<pad>")}
    return sorted(banned - set(tokenizer.end_ids))
