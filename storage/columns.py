"""Column types that mean the same on SQLite and on PostgreSQL.

`Moment` keeps the time zone, which SQLite drops. `CleanText` and `CleanJSON` never fail on what visitors type: a NUL,
which PostgreSQL can't hold, becomes U+2400 (the visible symbol for NUL); half of a surrogate pair, which UTF-8 can't
encode, becomes U+FFFD. `is_clean` tells whether that would happen, so that a row can say so. Token ids are not touched.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, DateTime, Dialect, LargeBinary, Text
from sqlalchemy.types import TypeDecorator

from storage import compact

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def clean_text(text: str) -> str:
    """`text` with NUL replaced by U+2400 and lone surrogates by U+FFFD; the same object if there are none."""
    return _UNSTORABLE.sub(lambda match: "\u2400" if match.group() == "\x00" else "\ufffd", text)


def clean_json(value: Any) -> Any:
    """A copy of JSON-like `value` with every string cleaned and every nan or infinity, which JSON lacks, as null."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {clean_text(str(key)): clean_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean_json(item) for item in value]
    return value


def is_clean(value: Any) -> bool:
    """Whether no string in JSON-like `value` holds a character that would be replaced."""
    if isinstance(value, str):
        return _UNSTORABLE.search(value) is None
    if isinstance(value, dict):
        return all(is_clean(key) and is_clean(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(is_clean(item) for item in value)
    return True


class CleanText(TypeDecorator[str]):
    """Text of any length; see the module's docstring for the two replacements."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else clean_text(value)


class CleanJSON(TypeDecorator[Any]):
    """Any JSON value, as text on both databases so that the order of keys survives; None is SQL NULL."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return clean_json(value)


class Moment(TypeDecorator[datetime]):
    """A moment in UTC, microseconds kept; a datetime without a time zone is refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment needs a time zone")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Seed(TypeDecorator[int]):
    """An unsigned 64-bit number in a signed 64-bit column (two's complement)."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> int | None:
        if value is None:
            return None
        assert 0 <= value < 1 << 64, value
        return value - (1 << 64) if value >= 1 << 63 else value

    def process_result_value(self, value: int | None, dialect: Dialect) -> int | None:
        return value if value is None or value >= 0 else value + (1 << 64)


class TokenIds(TypeDecorator[tuple[int, ...]]):
    """Token ids (count,) as little-endian int32 bytes."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: tuple[int, ...] | None, dialect: Dialect) -> bytes | None:
        return None if value is None else compact.pack_ids(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> tuple[int, ...] | None:
        return None if value is None else compact.unpack_ids(value)


class Logprobs(TypeDecorator[tuple[float, ...]]):
    """Log-probabilities (count,) as little-endian float32 bytes."""

    impl = LargeBinary
    cache_ok = True

    def process_bind_param(self, value: tuple[float, ...] | None, dialect: Dialect) -> bytes | None:
        return None if value is None else compact.pack_floats(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> tuple[float, ...] | None:
        return None if value is None else compact.unpack_floats(value)
