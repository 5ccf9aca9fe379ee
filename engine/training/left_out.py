"""Rows that were drawn and could not be used, by source and reason, with the places of the first few."""

from __future__ import annotations

from collections.abc import Iterable

_EXAMPLES = 5


class LeftOut:
    """Counts of draws: a row that is left out in each of three epochs counts three times. `table` is plain JSON."""

    def __init__(self, table: Iterable[dict] = ()) -> None:
        self._entries: dict[tuple[str, str], dict] = {}
        self.merge(table)

    def add(self, source: str, reason: str, place: str) -> None:
        """One more row; place: its file and line."""
        self.merge([{"source": source, "reason": reason, "rows": 1, "first": [place]}])

    def merge(self, table: Iterable[dict]) -> None:
        """Add the numbers of another table, of another stream say."""
        for other in table:
            key = other["source"], other["reason"]
            entry = self._entries.setdefault(key, {"source": key[0], "reason": key[1], "rows": 0, "first": []})
            entry["rows"] += other["rows"]
            new = [place for place in other["first"] if place not in entry["first"]]
            entry["first"] = (entry["first"] + new)[:_EXAMPLES]

    @property
    def total(self) -> int:
        """Of all sources and reasons."""
        return sum(entry["rows"] for entry in self._entries.values())

    def table(self) -> list[dict]:
        """[{"source", "reason", "rows", "first": [places]}], sorted by source and reason."""
        return [{**entry, "first": list(entry["first"])} for _, entry in sorted(self._entries.items())]
