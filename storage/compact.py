"""Compact forms of what a run leaves behind: token ids as int32, log-probabilities as float32, both little-endian.

Four bytes a token each, on every machine; `array` does it without numpy. Float32 keeps a log-probability exactly as the
sampler computed it.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable

_INT32 = "i" if array("i").itemsize == 4 else "l"


def pack_ids(ids: Iterable[int]) -> bytes:
    """Token ids (count,) to count*4 bytes. OverflowError for an id beyond 32 bits."""
    return _little_endian(array(_INT32, ids)).tobytes()


def unpack_ids(data: bytes) -> tuple[int, ...]:
    """The inverse of `pack_ids`. ValueError if the length is not a multiple of 4."""
    return tuple(_from_bytes(_INT32, data))


def pack_floats(values: Iterable[float]) -> bytes:
    """Floats (count,) to count*4 bytes, rounded to float32; infinities and nan are kept."""
    return _little_endian(array("f", values)).tobytes()


def unpack_floats(data: bytes) -> tuple[float, ...]:
    """The inverse of `pack_floats`. ValueError if the length is not a multiple of 4."""
    return tuple(_from_bytes("f", data))


def _from_bytes(code: str, data: bytes) -> array:
    values = array(code)
    values.frombytes(data)
    return _little_endian(values)


def _little_endian(values: array) -> array:
    if sys.byteorder == "big":
        values.byteswap()
    return values
