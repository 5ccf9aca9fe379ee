"""Read rows one by one from JSON lines (.jsonl, .jsonl.xz, .jsonl.gz, .jsonl.zst) or Parquet, never the whole file at once.

Rows come as they are in the file; what they must hold is the matter of sources.py. Zstandard and Parquet need pyarrow.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from engine.errors import GLMError

EXTENSIONS = (".jsonl", ".jsonl.xz", ".jsonl.gz", ".jsonl.zst", ".parquet")
# Of a Parquet file's columns only these are read.
COLUMNS = ("text", "answers", "messages", "prompt", "response", "lang")
_PARQUET_ROWS = 256  # read at once
_BROKEN = (OSError, EOFError, lzma.LZMAError, zlib.error)


class RowFile:
    """A file of rows. `size`: its bytes; `done`: how many of them were read so far, for showing progress.

    GLMError `unsupported` where pyarrow is needed and missing, `bad_data` for a file that can't be read, naming the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.done = 0
        self.columnar = path.suffix == ".parquet"

    def place(self, number: int) -> str:
        """How messages name row `number`, as `rows` counts."""
        return f"{self.path.name}, {'row' if self.columnar else 'line'} {number}"

    def rows(self, limit_bytes: int | None = None, after: int = 0) -> Iterator[tuple[int, dict]]:
        """(number of the line or row, from 1; the row) in file order, of at most about `limit_bytes` of JSON or text.

        after: the lines up to this one are passed over, but count for the limit; blank lines are no rows.
        """
        return self._parquet(limit_bytes, after) if self.columnar else self._lines(limit_bytes, after)

    def _lines(self, limit_bytes: int | None, after: int) -> Iterator[tuple[int, dict]]:
        number = read = 0
        with self.path.open("rb") as raw:
            lines = _decompressed(raw, self.path)
            while True:
                try:
                    line = lines.readline()
                except _BROKEN as error:
                    message = f"{self.path.name} can't be read behind line {number}: {error}"
                    raise GLMError("bad_data", message, field="data") from error
                if not line:
                    return
                number += 1
                self.done = raw.tell()
                if line.isspace():
                    continue
                if number > after:
                    yield number, self._parsed(line, number)
                read += len(line)
                if limit_bytes is not None and read >= limit_bytes:
                    return

    def _parsed(self, line: bytes, number: int) -> dict:
        try:
            row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise GLMError("bad_data", f"{self.place(number)}: not UTF-8 ({error.reason}).", field="data") from error
        except json.JSONDecodeError as error:
            raise GLMError("bad_data", f"{self.place(number)}: not JSON ({error.msg}).", field="data") from error
        except RecursionError as error:
            raise GLMError("bad_data", f"{self.place(number)}: JSON that is too deep.", field="data") from error
        if not isinstance(row, dict):
            raise GLMError("bad_data", f"{self.place(number)}: a row is a JSON object.", field="data")
        return row

    def _parquet(self, limit_bytes: int | None, after: int) -> Iterator[tuple[int, dict]]:
        pyarrow = _pyarrow(self.path)
        from pyarrow import parquet

        number = read = 0
        try:
            # A row group may be as large as the file: a buffer that moves along, instead of the group at once.
            file = parquet.ParquetFile(self.path, buffer_size=1 << 20, pre_buffer=False)
            columns = [name for name in COLUMNS if name in file.schema_arrow.names]
            if not columns:
                raise GLMError(
                    "bad_data", f"{self.path.name} has none of the columns {', '.join(COLUMNS)}.", field="data"
                )
            with file:
                for batch in file.iter_batches(_PARQUET_ROWS, columns=columns):
                    if limit_bytes is None and number + len(batch) <= after:
                        number += len(batch)
                        continue
                    for row in batch.to_pylist():
                        number += 1
                        self.done = self.size * number // file.metadata.num_rows
                        row = {name: value for name, value in row.items() if value is not None}
                        if number > after:
                            yield number, row
                        read += (
                            len(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")) if limit_bytes else 0
                        )
                        if limit_bytes is not None and read >= limit_bytes:
                            return
        except (pyarrow.ArrowException, OSError) as error:
            message = f"{self.path.name} can't be read behind row {number}: {error}"
            raise GLMError("bad_data", message, field="data") from error


def _decompressed(raw: BinaryIO, path: Path) -> BinaryIO:
    suffix = path.suffix
    if suffix == ".xz":
        return lzma.open(raw)
    if suffix == ".gz":
        return gzip.open(raw)
    if suffix == ".zst":
        pyarrow = _pyarrow(path)
        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd"), 1 << 18)
    return raw


def _pyarrow(path: Path):
    try:
        import pyarrow
    except ImportError as error:
        message = f"{path.name} needs the package pyarrow: pip install pyarrow"
        raise GLMError("unsupported", message, field="data") from error
    return pyarrow
