"""Rows to Parquet, a group of rows at a time. pyarrow (and the memory that it takes) is loaded only when this is used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.export.flat import COLUMNS

if TYPE_CHECKING:
    import pyarrow


def schema() -> pyarrow.Schema:
    """The columns of `storage.export.flat` as Arrow's types."""
    import pyarrow

    text = pyarrow.string()
    kinds = {
        "text": text,
        "json": text,
        "whole": pyarrow.int64(),
        "number": pyarrow.float64(),
        "truth": pyarrow.bool_(),
        "moment": pyarrow.timestamp("us", tz="UTC"),
        "texts": pyarrow.list_(text),
        "messages": pyarrow.list_(pyarrow.struct([("role", text), ("content", text)])),
    }
    return pyarrow.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])


class ParquetStream:
    """A Parquet file that is made piece by piece: `add` and `close` return the bytes that are ready."""

    def __init__(self) -> None:
        from pyarrow import parquet

        self._sink = _Sink()
        self._schema = schema()
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="zstd")

    def add(self, rows: Sequence[dict[str, Any]]) -> bytes:
        """The bytes of one more group of rows."""
        import pyarrow

        if rows:
            self._writer.write_table(pyarrow.Table.from_pylist(list(rows), self._schema))
        return self._sink.taken()

    def close(self) -> bytes:
        """The end of the file."""
        self._writer.close()
        return self._sink.taken()


def write_piece(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A Parquet file of these rows alone."""
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema()), path, compression="zstd")


def join_pieces(pieces: Iterable[Path], path: Path) -> None:
    """One file from several, whose groups of rows it keeps; only one of them is in memory."""
    from pyarrow import parquet

    with parquet.ParquetWriter(path, schema(), compression="zstd") as writer:
        for piece in pieces:
            writer.write_table(parquet.read_table(piece, memory_map=False))


class _Sink:
    """A file that only grows and hands over what was written."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._position = 0

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._position += len(part)
        return len(part)

    def tell(self) -> int:
        return self._position

    def taken(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        self.closed = True
