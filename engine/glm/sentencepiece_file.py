"""The little of sentencepiece's model file that a tokenizer must know beyond what the library tells.

The file is one protocol buffer message (sentencepiece_model.proto, `ModelProto`): field 1, repeated, a piece
{1: text, 2: score, 3: type}; field 3 the normaliser {3: add_dummy_prefix, 4: remove_extra_whitespaces}, both true when
absent. Reading these by hand keeps the protobuf package out of the requirements. Since field 1 is repeated,
bytes from `piece()` joined to a whole file append pieces to it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

NORMAL, UNUSED = 1, 5  # types of pieces
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class NotAVocabulary(ValueError):
    """The bytes are no sentencepiece model."""


@dataclass(frozen=True, slots=True)
class Spacing:
    """What the vocabulary's normaliser does to spaces: one put in front of each text; runs shortened, ends trimmed."""

    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def spacing(model: bytes) -> Spacing:
    """The normaliser's two switches for spaces. NotAVocabulary for bytes that can't be read."""
    if not model:
        raise NotAVocabulary("the file is empty")
    fields: dict[int, int | bytes] = {}
    for number, value, _, _ in _fields(model):
        if number == 3 and isinstance(value, bytes):
            fields.update((number, value) for number, value, _, _ in _fields(value))
    return Spacing(bool(fields.get(3, 1)), bool(fields.get(4, 1)))


def piece(text: str, score: float, type: int) -> bytes:
    """One piece as bytes that can be joined to the end of a model file."""
    name = text.encode("utf-8")
    body = b"\x0a" + _varint(len(name)) + name + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(type)
    return b"\x0a" + _varint(len(body)) + body


def without_last_pieces(model: bytes, count: int) -> bytes:
    """The same file without its last `count` pieces."""
    spans = [(start, end) for number, _, start, end in _fields(model) if number == 1][-count:]
    kept, position = bytearray(), 0
    for start, end in spans:
        kept += model[position:start]
        position = end
    return bytes(kept + model[position:])


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes, int, int]]:
    """(field number, value, start, end) of a message; numbers of a fixed width come as unsigned integers."""
    position = 0
    while position < len(message):
        start = position
        key, position = _read_varint(message, position)
        wire = key & 7
        value: int | bytes
        if wire == _VARINT:
            value, position = _read_varint(message, position)
        elif wire in (_FIXED32, _FIXED64):
            width = 4 if wire == _FIXED32 else 8
            value, position = int.from_bytes(message[position : position + width], "little"), position + width
        elif wire == _BYTES:
            length, position = _read_varint(message, position)
            value, position = message[position : position + length], position + length
        else:
            raise NotAVocabulary(f"wire type {wire} at byte {start}")
        if position > len(message):
            raise NotAVocabulary("it ends in the middle of a field")
        yield key >> 3, value, start, position


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise NotAVocabulary(f"bad number at byte {position}")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
