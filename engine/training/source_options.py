"""What a recipe says of a single source, and the rows that it makes of the source's rows: the same, tokenised or not."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from random import Random
from typing import Literal, TypeVar

import numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from engine.errors import GLMError
from engine.training.row_files import RowFile
from engine.training.sources import is_document, numbered_rows

Row = TypeVar("Row")


class SourceOptions(BaseModel):
    """limit_megabytes: of JSON, from the beginning; split: "sentences" (each also as a document of its own) or "couplets"
    (verse lines also as blanks and as questions for the next line); boost: rows that contain a text are repeated so often; reword:
    a question that matches a pattern, all of it, is also asked in these words, where \\1 is what the pattern's first group
    found; chain: share of the single rounds that get one or two others of the same language before them; cap: at most so many
    of the rows that come of it, chosen by the seed."""

    model_config = ConfigDict(extra="forbid")

    limit_megabytes: float | None = Field(None, gt=0)
    split: Literal["sentences", "couplets"] | None = None
    boost: dict[str, int] = {}
    reword: dict[str, list[str]] = {}
    chain: float = Field(0.0, ge=0, le=1)
    cap: int | None = Field(None, ge=1)

    @staticmethod
    def parse(name: str, options: dict) -> SourceOptions:
        """GLMError bad_data, naming the source and the key."""
        try:
            return SourceOptions.model_validate(options)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            known = (
                f" Options are {', '.join(SourceOptions.model_fields)}." if first["type"] == "extra_forbidden" else ""
            )
            raise GLMError("bad_data", f"{name}: {key}: {first['msg']}.{known}", field=key) from error

    @property
    def shape(self) -> dict:
        """The options that decide which documents there are, without `cap`, which only chooses among them."""
        return self.model_dump(mode="json", exclude={"cap", "reword", "chain"})

    @field_validator("reword")
    @classmethod
    def _check_reword(cls, reword: dict[str, list[str]]) -> dict[str, list[str]]:
        for pattern, wordings in reword.items():
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"{pattern!r} is no pattern: {error}") from error
            most = max((int(number) for wording in wordings for number in re.findall(r"\\(\d)", wording)), default=0)
            if most > groups:
                raise ValueError(f"{pattern!r} has {groups} groups, and a wording wants number {most}")
        return reword

    def rows(self, file: RowFile, after: int = 0) -> Iterator[tuple[int, dict]]:
        """(line, row) in order, of the lines behind `after`; one line may give several rows or none."""
        limit = None if self.limit_megabytes is None else int(self.limit_megabytes * 1e6)
        for number, row in numbered_rows(file, limit, after):
            if self.split is not None and not is_document(row):
                raise GLMError("bad_data", f"{file.place(number)}: only documents can be split.", field="split")
            text = str(row.get("text", row)) if self.boost else ""
            times = max([1, *(count for part, count in self.boost.items() if part in text)])
            made = self.made(row)
            for _ in range(times):
                yield from ((number, one) for one in made)

    def made(self, row: dict) -> list[dict]:
        """What is made of a row, once."""
        made = _split(row, self.split)
        if self.reword and "messages" in row and len(row["messages"]) == 2:
            made += _reworded(row, self.reword)
        return made

    def chained(self, rows: list[dict], seed: int, name: str) -> list[dict]:
        """The rows of a source, some of them behind other rounds."""
        if not self.chain:
            return rows
        random = Random(f"{seed}/{name}/chain")
        rounds: dict[str, list[dict]] = defaultdict(list)
        for row in rows:
            if _is_round(row):
                rounds[row.get("lang", "")].append(row)
        return [
            _behind(random.choices(rounds[row.get("lang", "")], k=random.choice((1, 2))), row)
            if _is_round(row) and random.random() < self.chain
            else row
            for row in rows
        ]


def _split(row: dict, how: str | None) -> list[dict]:
    if how is None:
        return [row]
    text = row["text"]
    if how == "sentences":
        ends = text.replace("。", "。\n").replace(". ", ".\n").split("\n")
        return [row, *({"text": sentence.strip()} for sentence in ends if sentence.strip())]
    made = [row]
    for line in text.split("\n"):
        halves = line.split("，")
        if len(halves) == 2 and halves[0] and len(halves[1]) > 1 and halves[1][-1] in "。？！；":
            made.append({"text": f"{halves[0]}，[MASK]{halves[1][-1]}", "answers": [halves[1][:-1]]})
            made.append({"text": f"[MASK]，{halves[1]}", "answers": [halves[0]]})
            question = {"role": "user", "content": f"“{halves[0]}”的下一句是什么？"}
            made.append({"messages": [question, {"role": "assistant", "content": f"{halves[1][:-1]}。"}]})
    return made


def _reworded(row: dict, reword: dict[str, list[str]]) -> list[dict]:
    question, answer = row["messages"]
    found = ((re.fullmatch(pattern, question["content"]), wordings) for pattern, wordings in reword.items())
    return [
        row | {"messages": [question | {"content": match.expand(wording)}, answer]}
        for match, wordings in found
        if match is not None
        for wording in wordings
    ]


def _is_round(row: dict) -> bool:
    """A question and its answer; a blank that stands as a question is none."""
    return "messages" in row and len(row["messages"]) == 2 and "[MASK]" not in row["messages"][0]["content"]


def _behind(before: list[dict], row: dict) -> dict:
    return row | {"messages": [message for one in (*before, row) for message in one["messages"]]}


def capped(rows: Iterable[Row], cap: int, seed: int, name: str) -> list[Row]:
    """At most `cap` rows in their order, chosen by the seed; no more than `cap` are held at a time."""
    numbers = _generator(seed, name)
    kept: list[tuple[float, int, Row]] = []  # a heap with the largest number on top; the smallest numbers stay
    for index, row in enumerate(rows):
        entry = (-numbers.random(), index, row)
        if len(kept) < cap:
            heapq.heappush(kept, entry)
        elif entry > kept[0]:
            heapq.heapreplace(kept, entry)
    return [row for _, _, row in sorted(kept, key=lambda entry: entry[1])]


def capped_indices(count: int, cap: int | None, seed: int, name: str) -> numpy.ndarray | None:
    """Which of `count` rows `capped` would keep, rising, int64; None for all."""
    if cap is None or cap >= count:
        return None
    numbers = _generator(seed, name).random(count)
    return numpy.sort(numpy.argpartition(numbers, cap - 1)[:cap]).astype(numpy.int64)


def _generator(seed: int, name: str) -> numpy.random.Generator:
    digest = hashlib.sha256(f"{seed}/{name}/cap".encode()).digest()
    return numpy.random.default_rng(int.from_bytes(digest[:8], "little"))
