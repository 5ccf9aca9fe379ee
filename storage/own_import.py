"""Reading the project's own JSON lines back: what `export --format jsonl` wrote, into this or another database.

    result = await import_file(record, Path("runs.jsonl"))       # ImportResult

The whole file is checked before anything is written; a line that is damaged is refused by its number, and nothing is changed. What
is there already stays as it is: a run that the database knows, even one whose texts were erased, is passed over with all that
belongs to it, so that importing twice, or again after a break, does no harm, and deleted texts don't come back. Reviewers go by
name; one whom the database doesn't know becomes a member who can't log in.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Table, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage import search
from storage.errors import StorageError
from storage.identifier import new_id
from storage.models import Blank, Conversation, Feedback, ModelVersion, Run, Vote
from storage.opinions import count_opinions
from storage.own_lines import LINE_BYTES, VERSION, AnyLine, ExportLine, ModelVersionLine, RunLine, damaged, read_line
from storage.record import Record
from storage.review_tables import Review, ReviewTag, SpanCorrection
from storage.staff import staff_name
from storage.staff_tables import Staff

BATCH = 200  # runs in one transaction

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ImportResult:
    """`runs` that were written, `known` that were there already, `votes_left_out`: of runs that aren't in the database."""

    runs: int = 0
    known: int = 0
    votes_left_out: int = 0

    def __add__(self, other: ImportResult) -> ImportResult:
        return ImportResult(
            self.runs + other.runs, self.known + other.known, self.votes_left_out + other.votes_left_out
        )


async def import_file(record: Record, path: Path, progress: Progress | None = None) -> ImportResult:
    """Import a file; `progress(done, of)` in runs. Raises `StorageError`: `bad_request` with the number of a line; OSError."""
    total = await asyncio.to_thread(check, path)
    result = ImportResult()
    with path.open("rb") as file:
        work = _Import(record)
        batch: list[RunLine] = []
        for _, line in _lines(file):
            if isinstance(line, ModelVersionLine):
                await work.model_version(line)
            elif isinstance(line, RunLine):
                batch.append(line)
            if len(batch) == BATCH:
                result += await work.runs(batch)
                batch = []
                if progress is not None:
                    progress(result.runs + result.known, total)
        if batch:
            result += await work.runs(batch)
    return result


def check(path: Path) -> int:
    """How many runs a file has. Raises `StorageError("bad_request")` for a file that can't be imported."""
    versions: set[str] = set()
    runs = 0
    with path.open("rb") as file:
        for number, line in _lines(file):
            if (number == 1) != isinstance(line, ExportLine):
                raise damaged(number, "the first line, and no other, says what file this is")
            if isinstance(line, ExportLine) and line.version != VERSION:
                raise damaged(number, f"this program reads version {VERSION} of the form, not {line.version}")
            if isinstance(line, ModelVersionLine):
                if line.parent is not None and line.parent not in versions:
                    raise damaged(number, "the model version's parent doesn't stand above it")
                versions.add(line.weights_hash)
            elif isinstance(line, RunLine):
                if line.model is not None and line.model not in versions:
                    raise damaged(number, "the run's model version doesn't stand above it")
                runs += 1
    return runs


def _lines(file: BinaryIO) -> Iterator[tuple[int, AnyLine]]:
    number = 0
    while data := file.readline(LINE_BYTES + 1):
        number += 1
        if len(data) > LINE_BYTES:
            raise damaged(number, f"a line may have {LINE_BYTES} bytes")
        yield number, read_line(data, number)
    if not number:
        raise damaged(1, "the file is empty")


class _Import:
    """One import; remembers the rows that the runs refer to."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.versions: dict[str, int] = {}
        self.staff: dict[str, str] = {}

    async def model_version(self, line: ModelVersionLine) -> None:
        """Write a model version if it isn't there."""

        async def work(session: AsyncSession) -> int:
            known = select(ModelVersion.id).where(ModelVersion.weights_hash == line.weights_hash)
            if (found := await session.scalar(known)) is not None:
                return found
            version = ModelVersion(
                **line.model_dump(exclude={"kind", "parent"}), parent_id=self.versions.get(line.parent or "")
            )
            session.add(version)
            await session.flush()
            return version.id

        self.versions[line.weights_hash] = await self.record.database.write(work)

    async def runs(self, lines: Sequence[RunLine]) -> ImportResult:
        """Write a batch of runs with all that belongs to them, in one transaction."""

        async def work(session: AsyncSession) -> ImportResult:
            return await self._write(session, lines)

        return await self.record.database.write(work)

    async def _write(self, session: AsyncSession, lines: Sequence[RunLine]) -> ImportResult:
        fresh = await self._fresh(session, lines)
        if not fresh:
            return ImportResult(known=len(lines))
        await self._members(session, fresh)
        await self._conversations(session, fresh)
        await _insert(session, Run.__table__, [self._run(line) for line in fresh])
        await _insert(session, Blank.__table__, [row for line in fresh for row in _blanks(line)])
        await _insert(session, Feedback.__table__, [row for line in fresh for row in _feedback(line)])
        await _insert(session, Review.__table__, [self._review(line) for line in fresh if line.review])
        await _insert(session, ReviewTag.__table__, [row for line in fresh for row in _tags(line)])
        await _insert(session, SpanCorrection.__table__, await self._spans(session, fresh))
        votes = [vote for line in fresh for vote in line.votes]
        kept = await self._votes(session, votes)
        ids = [line.id for line in fresh]
        await search.index_runs(session, ids, new=True)
        judged = {line.id for line in fresh if line.review or line.feedback}
        judged |= {id for vote in kept for id in (vote["first_run_id"], vote["second_run_id"])}
        await count_opinions(session, sorted(judged))
        return ImportResult(len(fresh), len(lines) - len(fresh), len(votes) - len(kept))

    async def _fresh(self, session: AsyncSession, lines: Sequence[RunLine]) -> list[RunLine]:
        """Those that aren't there, each once; none of a conversation that was deleted here."""
        known = set(await session.scalars(select(Run.id).where(Run.id.in_([line.id for line in lines]))))
        conversations = {line.conversation.id for line in lines if line.conversation and not line.conversation.deleted}
        deleted = select(Conversation.id).where(Conversation.id.in_(conversations), Conversation.deleted.is_not(None))
        gone = set(await session.scalars(deleted))
        fresh: dict[str, RunLine] = {}
        for line in lines:
            if line.id not in known and not (line.conversation and line.conversation.id in gone):
                fresh.setdefault(line.id, line)
        return list(fresh.values())

    async def _members(self, session: AsyncSession, lines: Sequence[RunLine]) -> None:
        names = {span.reviewer for line in lines if line.review for span in line.review.spans}
        names |= {line.review.reviewer for line in lines if line.review}
        for name in sorted({staff_name(name) for name in names if name} - set(self.staff)):
            found = await session.scalar(select(Staff.id).where(Staff.name == name))
            if found is None:
                found, now = new_id(9), self.record.clock()
                session.add(Staff(id=found, name=name, role="reviewer", password=None, created=now, disabled=now))
                await session.flush()
            self.staff[name] = found

    def _member(self, name: str | None) -> str | None:
        return self.staff[staff_name(name)] if name else None

    async def _conversations(self, session: AsyncSession, lines: Sequence[RunLine]) -> None:
        wanted = {line.conversation.id: line.conversation for line in lines if line.conversation}
        known = set(await session.scalars(select(Conversation.id).where(Conversation.id.in_(wanted))))
        rows = [conversation.model_dump() for id, conversation in wanted.items() if id not in known]
        await _insert(session, Conversation.__table__, rows)

    def _run(self, line: RunLine) -> dict[str, Any]:
        apart = {"kind", "prompt", "messages", "model", "conversation", "blanks", "feedback", "votes", "review"}
        values = line.model_dump(exclude=apart)
        messages = None if line.messages is None else [message.model_dump() for message in line.messages]
        return values | {
            "prompt": line.prompt if messages is None else messages,
            "model_version_id": self.versions[line.model] if line.model else None,
            "conversation_id": line.conversation.id if line.conversation else None,
            "server": "",
            "uncertainty": -1.0 if line.mean_logprob is None else -line.mean_logprob,
        }

    def _review(self, line: RunLine) -> dict[str, Any]:
        assert line.review is not None
        values = line.review.model_dump(exclude={"reviewer", "tags", "spans"})
        return values | {"run_id": line.id, "reviewer_id": self._member(line.review.reviewer)}

    async def _spans(self, session: AsyncSession, lines: Sequence[RunLine]) -> list[dict[str, Any]]:
        """Their ids are kept unless the database has them already."""
        rows = []
        for line in lines:
            for span in line.review.spans if line.review else ():
                values = span.model_dump(exclude={"reviewer"})
                rows.append(values | {"run_id": line.id, "reviewer_id": self._member(span.reviewer)})
        ids = [row["id"] for row in rows]
        taken = set(await session.scalars(select(SpanCorrection.id).where(SpanCorrection.id.in_(ids))))
        for row in rows:
            if row["id"] in taken:
                row["id"] = new_id(9)
            taken.add(row["id"])
        return rows

    async def _votes(self, session: AsyncSession, votes: Sequence[Any]) -> list[dict[str, Any]]:
        """Write the votes of which both runs are there; those that were written."""
        ids = {id for vote in votes for id in (vote.first_run_id, vote.second_run_id)}
        there = set(await session.scalars(select(Run.id).where(Run.id.in_(ids), Run.deleted.is_(None))))
        rows = {}
        for vote in votes:
            if {vote.first_run_id, vote.second_run_id} <= there:
                rows.setdefault((vote.first_run_id, vote.second_run_id, vote.visitor), vote.model_dump())
        known = select(Vote.first_run_id, Vote.second_run_id, Vote.visitor).where(Vote.first_run_id.in_(there))
        for key in (await session.execute(known)).tuples():
            rows.pop(tuple(key), None)
        await _insert(session, Vote.__table__, list(rows.values()))
        return list(rows.values())


async def _insert(session: AsyncSession, table: Table, rows: list[dict[str, Any]]) -> None:
    if rows:
        await session.execute(insert(table), rows)


def _blanks(line: RunLine) -> Iterator[dict[str, Any]]:
    for blank in line.blanks:
        logprobs = [math.nan if value is None else value for value in blank.logprobs]
        yield blank.model_dump() | {"run_id": line.id, "logprobs": logprobs}


def _feedback(line: RunLine) -> Iterator[dict[str, Any]]:
    for one in line.feedback:
        yield one.model_dump() | {"run_id": line.id}


def _tags(line: RunLine) -> Iterator[dict[str, Any]]:
    for tag in line.review.tags if line.review else ():
        yield {"run_id": line.id, "tag": tag}


def refuse_missing(path: Path) -> None:
    """Raises `StorageError("not_found")` for a file that isn't there."""
    if not path.is_file():
        raise StorageError("not_found", f"There is no file {path}.")
