"""Read training rows: JSON lines, plain or compressed (.xz, .gz), by the name of a source below a data folder.

A source is named by its path without extensions, `pretrain/world_factbook`. Rows are documents (`{"text"}`),
conversations (`{"messages": [{"role", "content"}]}`), or texts with blanks and their answers
(`{"text": "... [MASK] ...", "answers": ["..."]}`).
"""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

from engine.errors import GLMError

_OPEN = {".jsonl": open, ".jsonl.xz": lzma.open, ".jsonl.gz": gzip.open}


def find_source(folder: Path, name: str) -> Path:
    """The file of source `name`; GLMError bad_data if there is none."""
    for extension in _OPEN:
        path = folder / (name + extension)
        if path.is_file():
            return path
    raise GLMError("bad_data", f"There is no {name}.jsonl, .jsonl.xz or .jsonl.gz in {folder}.", field="data")


def read_rows(folder: Path, name: str, limit_bytes: int | None = None) -> Iterator[dict]:
    """The rows of a source in file order, at most about `limit_bytes` of JSON. A broken line is an error that names it."""
    path = find_source(folder, name)
    extension = "".join(path.suffixes[-2:]) if path.suffix in (".xz", ".gz") else path.suffix
    read = 0
    with _OPEN[extension](path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise GLMError(
                    "bad_data", f"{path.name}, line {number}: not JSON ({error.msg}).", field="data"
                ) from error
            if not isinstance(row, dict) or not ("text" in row or "messages" in row):
                raise GLMError(
                    "bad_data", f'{path.name}, line {number}: a row needs "text" or "messages".', field="data"
                )
            yield row
            read += len(line.encode())
            if limit_bytes is not None and read >= limit_bytes:
                return


def row_text(row: dict) -> str:
    """All the text of a row, for training a vocabulary."""
    if "messages" in row:
        return "\n".join(message["content"] for message in row["messages"])
    return "\n".join([row["text"], *row.get("answers", ())])
