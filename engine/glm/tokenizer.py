"""Text to token ids and back, from a vocabulary in the icetk package's file format.

The file is a sentencepiece model. Ids are its piece numbers plus `num_image_tokens` (20000 in icetk, whose first ids
are image tokens; 0 in vocabularies trained here); '\\n' is the piece `<n>`; the eight special tokens follow the last
piece, whether the file holds them or not:

    [MASK] [gMASK] [sMASK] eod sop eop ENC dBLOCK        (150000 .. 150007 in GLM-130B; eos `</s>` is 20002 there)

There are two ways from text to ids:

- `encode_plain(text)`: the vocabulary as it is in the file. No special token can come out, whatever the text holds.
  GLM-130B's own code does the same (its special tokens are only numbers, unknown to sentencepiece), except that it
  leaves out the `<n>`, so that icetk's normaliser makes a space of every line break. The right way for everything
  that people, documents and models write.
- `encode(text)`: equal to the icetk package after its `add_special_tokens`, which appends the special tokens as
  ordinary pieces of score 0, the best score there is. Then "[MASK]" in a text is one id, but "eop", "sop" or "ENC"
  inside rarer words is one too ("philosopher" holds "sop"). Only for text that is known to be in that form.

What a vocabulary with `byte_fallback`, no dummy prefix, no space removal and the identity normaliser gives is exact:
`decode(encode_plain(text)) == text`, carriage returns, tabs and control characters included, but for two kinds of text:
a literal "<n>" comes back as a line break (as in icetk), and U+2581 (sentencepiece's own mark for a space) as a space.
Other vocabularies normalise as their file says, like icetk.

Torch-free. A Tokenizer is immutable after construction: threads may share it, and it can be pickled.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from engine.errors import GLMError
from engine.glm import sentencepiece_file
from engine.glm.stream_decoder import SPACE, StreamDecoder

SPECIAL_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "eod", "sop", "eop", "ENC", "dBLOCK")
MASKS = ("[MASK]", "[sMASK]", "[gMASK]")
LINE_BREAK = "<n>"
VOCABULARY_FILE = "tokenizer.model"
ICETK_FILE = "ice_text.model"
ICETK_IMAGE_TOKENS = 20000


class Tokenizer:
    """A vocabulary file's bytes and the number of image tokens before it; see the module for the two encodings.

    Raises GLMError `bad_model` for bytes that are no such vocabulary. `origin` only names the file in messages.
    """

    masks: tuple[str, ...] = MASKS

    def __init__(self, model: bytes, num_image_tokens: int = 0, origin: str = "the vocabulary") -> None:
        if num_image_tokens < 0:
            raise GLMError("bad_model", f"num_image_tokens is {num_image_tokens}; it can't be negative.", field="model")
        try:
            spacing = sentencepiece_file.spacing(model)
            self._plain = SentencePieceProcessor(model_proto=model)
            if self._ends_in_special_tokens():
                model = sentencepiece_file.without_last_pieces(model, len(SPECIAL_TOKENS))
                self._plain = SentencePieceProcessor(model_proto=model)
            appended = b"".join(
                # A name that is a piece of the text already can't be stored twice (icetk fails on such a file): its
                # special token keeps its id under an unused piece, and that name in a text stays an ordinary piece.
                sentencepiece_file.piece(f"<special {name}>", 0.0, sentencepiece_file.UNUSED)
                if self._has_piece(name)
                else sentencepiece_file.piece(name, 0.0, sentencepiece_file.NORMAL)
                for name in SPECIAL_TOKENS
            )
            self._full = SentencePieceProcessor(model_proto=model + appended)
        except (sentencepiece_file.NotAVocabulary, RuntimeError, OSError) as error:
            raise GLMError("bad_model", f"{origin} is no sentencepiece model: {error}", field="model") from error
        if not self._has_piece(LINE_BREAK):
            raise GLMError("bad_model", f"{origin} has no piece {LINE_BREAK} for line breaks.", field="model")
        if self._plain.eos_id() < 0:
            raise GLMError("bad_model", f"{origin} has no end-of-sentence piece.", field="model")

        self.num_image_tokens = num_image_tokens
        self.strips_first_space = spacing.add_dummy_prefix or spacing.remove_extra_whitespaces
        self.strips_all_first_spaces = spacing.remove_extra_whitespaces
        self._model = bytes(model)  # without special tokens
        self._first_special = num_image_tokens + self._plain.piece_size()
        self.special: dict[str, int] = {name: self._first_special + i for i, name in enumerate(SPECIAL_TOKENS)}
        self.mask = self.special["[MASK]"]
        self.gmask = self.special["[gMASK]"]
        self.smask = self.special["[sMASK]"]
        self.eod = self.special["eod"]
        self.sop = self.special["sop"]
        self.eop = self.special["eop"]
        self.eos: int = num_image_tokens + self._plain.eos_id()
        self.end_ids: tuple[int, int] = (self.eop, self.eos)
        self.mask_ids: dict[int, str] = {self.special[name]: name for name in MASKS}
        self.vocabulary_size = self._first_special + len(SPECIAL_TOKENS)

    @classmethod
    def load(cls, path: str | Path, num_image_tokens: int | None = None) -> Tokenizer:
        """From a model folder (`tokenizer.model`, and `num_image_tokens` of its config.json) or from a bare file.

        Without a number, a bare file has no image tokens unless its name is icetk's own, `ice_text.model` (20000).
        GLMError `model_not_found` when there is no such file, `bad_model` when it can't be read.
        """
        path = Path(path)
        file = path / VOCABULARY_FILE if path.is_dir() else path
        try:
            model = file.read_bytes()
            if num_image_tokens is None and path.is_dir() and (path / "config.json").exists():
                num_image_tokens = _num_image_tokens(path / "config.json")
        except FileNotFoundError as error:
            raise GLMError("model_not_found", f"There is no vocabulary at {file}.", field="model") from error
        except OSError as error:
            raise GLMError("bad_model", f"The vocabulary at {file} can't be read: {error}", field="model") from error
        if num_image_tokens is None:
            num_image_tokens = ICETK_IMAGE_TOKENS if file.name == ICETK_FILE else 0
        return cls(model, num_image_tokens, origin=str(file))

    def encode(self, text: str) -> list[int]:
        """Ids as the icetk package gives them with its special tokens added (line breaks kept); for trusted text.

        GLMError `bad_request`, field `text`, for text that has no UTF-8 form (half a surrogate pair).
        """
        return self._ids(self._full, text)

    def encode_plain(self, text: str) -> list[int]:
        """Ids of ordinary text: never a special token nor an end token, even where the text spells its name.

        GLMError `bad_request`, field `text`, for text that has no UTF-8 form (half a surrogate pair).
        """
        return self._ids(self._plain, text)

    def decode(self, ids: Iterable[int], first_of_text: bool = True) -> str:
        """The text of ids; special tokens are shown as their names, `</s>` and `<s>` as nothing.

        `first_of_text` says that the ids begin a text: where the vocabulary puts a space in front of every text, that
        space is taken off. Broken UTF-8 becomes U+FFFD, one for each byte, as in sentencepiece.
        GLMError `bad_request`, field `ids`, for an id that is not in the vocabulary.
        """
        decoder = StreamDecoder(self, first_of_text, skip=())
        return "".join([decoder.push(token) for token in ids]) + decoder.finish()

    def piece(self, token: int) -> str:
        """The raw piece of an id: "▁the", "<0xE4>", "[MASK]", "<image_17>". GLMError as in `decode`."""
        if not 0 <= token < self.vocabulary_size:
            limit = self.vocabulary_size
            raise GLMError("bad_request", f"Token {token} is not one of the {limit} tokens.", field="ids", limit=limit)
        if token < self.num_image_tokens:
            return f"<image_{token}>"
        if token >= self._first_special:
            return SPECIAL_TOKENS[token - self._first_special]
        return self._plain.id_to_piece(token - self.num_image_tokens)

    def byte(self, token: int) -> int | None:
        """The byte 0..255 that a byte piece stands for, None for every other id. GLMError as in `decode`."""
        piece = self.piece(token)
        if not self.num_image_tokens <= token < self._first_special:
            return None
        return int(piece[3:-1], 16) if self._plain.is_byte(token - self.num_image_tokens) else None

    def surface(self, token: int) -> str:
        """What an id other than a byte piece adds to a text, a leading space included. GLMError as in `decode`."""
        piece = self.piece(token)
        if not self.num_image_tokens <= token < self._first_special:
            return piece
        number = token - self.num_image_tokens
        if self._plain.is_control(number):
            return ""
        if self._plain.is_unknown(number):
            return self._plain.decode([number])
        return piece.replace(SPACE, " ").replace(LINE_BREAK, "\n")

    @property
    def model(self) -> bytes:
        """The vocabulary without special tokens: `Tokenizer(model, num_image_tokens)` is this one again."""
        return self._model

    def hash(self) -> str:
        """sha256 (hex) of the text pieces and the number of image tokens: equal hashes, equal ids."""
        return hashlib.sha256(b"%d\n" % self.num_image_tokens + self._model).hexdigest()

    def _has_piece(self, name: str) -> bool:
        return self._plain.id_to_piece(self._plain.piece_to_id(name)) == name

    def _ends_in_special_tokens(self) -> bool:
        size, count = self._plain.piece_size(), len(SPECIAL_TOKENS)
        return size > count and tuple(map(self._plain.id_to_piece, range(size - count, size))) == SPECIAL_TOKENS

    def _ids(self, processor: SentencePieceProcessor, text: str) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise GLMError(
                "bad_request",
                f"The text holds half a character (a lone surrogate) at position {error.start}.",
                field="text",
            ) from error
        offset = self.num_image_tokens
        return [offset + number for number in processor.encode(text.replace("\n", LINE_BREAK))]

    def __reduce__(self):
        return Tokenizer, (self._model, self.num_image_tokens)


def _num_image_tokens(config: Path) -> int:
    try:
        number = json.loads(config.read_text("utf-8")).get("num_image_tokens", 0)
    except (ValueError, AttributeError) as error:
        raise GLMError("bad_model", f"{config} holds no JSON object: {error}", field="model") from error
    if type(number) is not int:
        raise GLMError("bad_model", f"{config}: num_image_tokens is {number!r}, not a whole number.", field="model")
    return number
