"""Rows to bytes: JSON lines and CSV. Both are UTF-8; a piece of the file at a time, so that it can be written in parts.

In CSV a text that a spreadsheet would take for a formula gets an apostrophe in front (OWASP, CSV injection), the file begins with
a byte order mark, since spreadsheets take Chinese for something else without one, and lists are JSON.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from storage.database import to_json

BYTE_ORDER_MARK = "\ufeff"
# Also where spaces or line breaks come first, which some programs drop, and in the full-width forms of Chinese keyboards.
_FORMULA = re.compile(r"[\s\u200b\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20\t\r]|[\t\r]")


def json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """One line a row, Chinese as itself."""
    return "".join(f"{to_json(row)}\n" for row in rows).encode()


def csv_head(columns: Iterable[str]) -> bytes:
    """The first line."""
    return (BYTE_ORDER_MARK + _written([list(columns)])).encode()


def csv_lines(rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> bytes:
    """The lines of rows; a missing value is an empty field."""
    return _written([[cell(row[name]) for name in columns] for row in rows]).encode()


def cell(value: Any) -> str | int | float:
    """What stands in a field of a CSV file."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    text = value if isinstance(value, str) else to_json(value)
    return f"'{text}" if _FORMULA.match(text) else text


def _written(lines: Iterable[Sequence[Any]]) -> str:
    written = io.StringIO()
    csv.writer(written, lineterminator="\r\n").writerows(lines)
    return written.getvalue()
