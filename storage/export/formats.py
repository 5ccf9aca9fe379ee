"""The formats of an export, by name: what a line says, which runs give one, how it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from storage.export import chats, flat, learning, own
from storage.export.walk import Item


@dataclass(frozen=True, slots=True)
class Format:
    """`rows(item)` gives what a run becomes; `encoding`: jsonl, csv or parquet; `needs`: see `storage.export.walk.Related`."""

    name: str
    description: str
    rows: Callable[[Item], Iterator[dict[str, Any]]]
    encoding: str = "jsonl"
    needs: frozenset[str] = frozenset()

    @property
    def extension(self) -> str:
        """Of a file's name."""
        return f".{self.encoding}"

    @property
    def media_type(self) -> str:
        """For a browser."""
        return {
            "jsonl": "application/x-ndjson",
            "csv": "text/csv; charset=utf-8",
            "parquet": "application/vnd.apache.parquet",
        }[self.encoding]


FORMATS = {
    format.name: format
    for format in (
        Format(
            "jsonl",
            "everything: runs with conversations, blanks, ratings, votes, reviews; `import` reads it back",
            own.lines,
            needs=frozenset({"votes"}),
        ),
        Format("csv", "a table for spreadsheets, one row a run", flat.rows, "csv"),
        Format("parquet", "the same table for pandas, DuckDB and Spark", flat.rows, "parquet"),
        Format(
            "sharegpt",
            "whole conversations, a line each: from human, from gpt",
            chats.sharegpt,
            needs=frozenset({"last", "corrections"}),
        ),
        Format("alpaca", "instruction, input, output, history", chats.alpaca),
        Format("openai", "chat fine-tuning: messages; earlier answers with weight 0", chats.openai),
        Format(
            "preferences",
            "pairs of prompt, chosen, rejected from corrections, thumbs and comparisons",
            learning.preferences,
            needs=frozenset({"rivals"}),
        ),
        Format("glm", "texts with blanks and what fills them, as the project's trainer reads them", learning.blanks),
    )
}
