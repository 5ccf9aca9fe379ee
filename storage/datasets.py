"""Datasets: selections of reviewed runs, frozen as the rows that the trainer reads.

    preview = await record.preview_dataset(filter, held_out_share=0.1)           # what would be frozen, and what not and why
    dataset = await record.freeze_dataset("corrections", filter, by=staff.id, held_out_share=0.1)
    await record.write_dataset(dataset.id, "train", path)                        # JSON lines for the trainer

Rows stand in the order of their runs (created, id); a row that comes twice is kept once. Each has the SHA-256 of its content, and
the dataset one over "PART HASH\\n" of all rows in order; both stay when a row becomes a tombstone. The held-out part is chosen by
hash of what the run was asked: all rows of one prompt are in the same part, in every dataset with the same share. If that leaves
one of the parts empty, the prompt with the smallest or largest hash goes there.

Personal data is hidden in what the model reads; a row in which it would be learnt is left out. Freezing holds the rows of its runs
(FOR SHARE) until it is written, so that an erasure beside it comes wholly before or wholly after.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import case, func, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from storage.conversations import Conversations, Page
from storage.database import to_json
from storage.dataset_rows import Collected, ProposedRow, dataset_hash, worth_a_look
from storage.errors import StorageError
from storage.hidden_words import HiddenWords
from storage.identifier import new_id
from storage.models import Run
from storage.run_batches import run_batches
from storage.training_rows import SOURCES
from storage.training_tables import PARTS, Dataset, DatasetRow

if TYPE_CHECKING:
    from storage.run_filter import RunFilter

MOST_ROWS = 100_000
NAME_CHARACTERS = 80
SHOWN = 20  # rows of a preview
CHUNK = 500  # rows in one statement


@dataclass(frozen=True, slots=True)
class DatasetPreview:
    """What freezing would give: the first rows, how many there are, and how many are `left_out` for which reason
    (`storage.training_rows.REASONS`). `runs`: selected ones."""

    runs: int
    rows: int
    train: int
    held_out: int
    sources: dict[str, int]
    left_out: dict[str, int]
    hash: str
    first: list[ProposedRow] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class DatasetSummary:
    """A dataset and how its rows are divided; `removed` of them are tombstones."""

    dataset: Dataset
    train: int
    held_out: int
    removed: int


class Datasets(Conversations):
    """The datasets kept in `database`; `clock` gives moments with a time zone."""

    async def preview_dataset(
        self,
        filter: RunFilter,
        *,
        held_out_share: float = 0.1,
        sources: Sequence[str] = ("span", "answer"),
        redact: bool = True,
        shown: int = SHOWN,
    ) -> DatasetPreview:
        """What `freeze_dataset` with the same arguments would freeze now. Raises `StorageError("too_large")`."""
        return await self._preview(await self._collect(filter, held_out_share, sources, redact), shown)

    async def freeze_dataset(
        self,
        name: str,
        filter: RunFilter,
        *,
        by: str | None,
        held_out_share: float = 0.1,
        sources: Sequence[str] = ("span", "answer"),
        redact: bool = True,
    ) -> Dataset:
        """Freeze a selection as the next version of the dataset `name`. `sources`: of SOURCES; "good" are outputs that nobody
        corrected, with 4 or 5 stars, or with a thumb up and no stars. `by`: id of the member of staff.

        Raises `StorageError`: `bad_request` (no name, or not one row), `too_large` (over MOST_ROWS rows), `conflict` (a run was
        erased meanwhile, or somebody froze the same version: try again).
        """
        name = " ".join(name.split())
        if not 0 < len(name) <= NAME_CHARACTERS:
            raise StorageError("bad_request", f"name: a dataset's name has 1 to {NAME_CHARACTERS} characters.")
        collected = await self._collect(filter, held_out_share, sources, redact)
        if not collected.rows:
            raise StorageError("bad_request", "Nothing of this selection can be trained on.")
        preview = await self._preview(collected, 0)
        row = {
            "id": new_id(9),
            "name": name,
            "hash": preview.hash,
            "rows": preview.rows,
            "filters": filter.as_dict(),
            "parameters": {
                "held_out_share": held_out_share,
                "sources": list(sources),
                "redact": redact,
                "runs": preview.runs,
                "rows_by_source": preview.sources,
                "left_out": preview.left_out,
            },
            "created": self.clock(),
            "created_by": by,
        }

        async def work(session: AsyncSession) -> Dataset:
            last = await session.scalar(select(func.max(Dataset.version)).where(Dataset.name == name))
            dataset = Dataset(**row, version=(last or 0) + 1)
            session.add(dataset)
            await session.flush()
            for start in range(0, len(collected.rows), CHUNK):
                chunk = collected.rows[start : start + CHUNK]
                ids = sorted({item.run_id for item in chunk})
                kept = select(Run.id).where(Run.id.in_(ids), Run.deleted.is_(None)).order_by(Run.id)
                found = await session.scalars(kept.with_for_update(read=True))
                if len(found.all()) != len(ids):
                    raise StorageError("conflict", "A run of this selection was deleted meanwhile. Freeze it again.")
                values = [
                    {
                        "dataset_id": dataset.id,
                        "index": start + place,
                        "run_id": item.run_id,
                        "reviewer_id": item.reviewer_id,
                        "part": item.part,
                        "hash": item.hash,
                        "content": item.content,
                    }
                    for place, item in enumerate(chunk)
                ]
                await session.execute(insert(DatasetRow.__table__), values)
            return dataset

        return await self.database.write(work)

    async def get_dataset(self, id: str) -> DatasetSummary:
        """Raises `StorageError("not_found")`."""

        async def work(session: AsyncSession) -> list[DatasetSummary]:
            return await _summaries(session, list(await session.scalars(select(Dataset).where(Dataset.id == id))))

        found = await self.database.read(work)
        if not found:
            raise _no_dataset()
        return found[0]

    async def list_datasets(self, *, limit: int = 50, after: str | None = None) -> Page[DatasetSummary]:
        """The newest first; `after` is the `next` of the page before, the id of its last dataset. StorageError("not_found")."""
        statement = select(Dataset).order_by(Dataset.created.desc(), Dataset.id.desc()).limit(limit + 1)

        async def work(session: AsyncSession) -> Page[DatasetSummary]:
            wanted = statement
            if after is not None:
                last = await session.get(Dataset, after)
                if last is None:
                    raise _no_dataset()
                older = Dataset.created < last.created
                wanted = wanted.where(or_(older, (Dataset.created == last.created) & (Dataset.id < last.id)))
            found = list(await session.scalars(wanted))
            rows = await _summaries(session, found[:limit])
            return Page(rows, rows[-1].dataset.id if len(found) > limit else None)

        return await self.database.read(work)

    async def dataset_rows(
        self, id: str, part: str | None = None, *, limit: int = 100, after: int = -1
    ) -> Page[DatasetRow]:
        """Rows behind number `after` in their order, tombstones too; `next` is the number of the last, as a string.
        Raises `StorageError("not_found")`."""
        assert part is None or part in PARTS, part
        statement = select(DatasetRow).where(DatasetRow.dataset_id == id, DatasetRow.index > after)
        if part is not None:
            statement = statement.where(DatasetRow.part == part)
        statement = statement.order_by(DatasetRow.index).limit(limit + 1)

        async def work(session: AsyncSession) -> Page[DatasetRow]:
            if await session.get(Dataset, id) is None:
                raise _no_dataset()
            rows = list(await session.scalars(statement))
            return Page(rows[:limit], str(rows[limit - 1].index) if len(rows) > limit else None)

        return await self.database.read(work)

    async def write_dataset(self, id: str, part: str, path: Path) -> int:
        """Write the rows of a part as JSON lines, without tombstones; the file is there whole or not at all. How many rows it has.

        Raises `StorageError`: `not_found`; `OSError` for the file.
        """
        unfinished = path.with_name(path.name + ".part")
        count, after = 0, -1
        try:
            with unfinished.open("w", encoding="utf-8") as file:
                while True:
                    page = await self.dataset_rows(id, part, limit=CHUNK, after=after)
                    rows = [to_json(row.content) for row in page.rows if row.content is not None]
                    count += len(rows)
                    await asyncio.to_thread(file.write, "".join(f"{row}\n" for row in rows))
                    if page.next is None:
                        break
                    after = int(page.next)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
        return count

    # How rows are collected

    async def _collect(
        self, filter: RunFilter, held_out_share: float, sources: Sequence[str], redact: bool
    ) -> Collected:
        _check(held_out_share, sources)
        now = self.clock()
        conditions = [*filter.conditions(self.database.dialect), Run.created < now]
        worth = worth_a_look(sources)
        collected = Collected()

        async def count(session: AsyncSession) -> tuple[int, int]:
            every = await session.scalar(select(func.count()).select_from(Run).where(*conditions))
            looked_at = await session.scalar(select(func.count()).select_from(Run).where(*conditions, worth))
            return every or 0, looked_at or 0

        collected.runs, candidates = await self.database.read(count)
        collected.left_out["uncorrected"] += collected.runs - candidates
        if candidates > MOST_ROWS:
            raise StorageError(
                "too_large", f"The selection has {candidates} runs to learn from; a dataset takes {MOST_ROWS} at most."
            )
        words = HiddenWords(self.database)
        async for batch in run_batches(self.database, [*conditions, worth]):
            hidden = await words.of(batch) if redact else [()] * len(batch)
            await asyncio.to_thread(collected.add, batch, hidden, set(sources))
        if len(collected.rows) > MOST_ROWS:
            raise StorageError("too_large", f"A dataset takes {MOST_ROWS} rows at most.")
        collected.divide(held_out_share)
        return collected

    async def _preview(self, collected: Collected, shown: int) -> DatasetPreview:
        parts = Counter(row.part for row in collected.rows)
        return DatasetPreview(
            runs=collected.runs,
            rows=len(collected.rows),
            train=parts["train"],
            held_out=parts["held_out"],
            sources=dict(Counter(row.source for row in collected.rows)),
            left_out={reason: number for reason, number in collected.left_out.items() if number},
            hash=dataset_hash([(row.part, row.hash) for row in collected.rows]),
            first=collected.rows[:shown],
        )


def _check(held_out_share: float, sources: Sequence[str]) -> None:
    if not 0 <= held_out_share <= 0.5:
        raise StorageError("bad_request", "held_out_share: it lies between 0 and 0.5.")
    if not sources or not set(sources) <= set(SOURCES):
        raise StorageError("bad_request", f"sources: one or more of {', '.join(SOURCES)}.")


async def _summaries(session: AsyncSession, datasets: list[Dataset]) -> list[DatasetSummary]:
    held_out = func.sum(case((DatasetRow.part == "held_out", 1), else_=0))
    removed = func.sum(case((DatasetRow.removed.is_not(None), 1), else_=0))
    ids = [dataset.id for dataset in datasets]
    statement = select(DatasetRow.dataset_id, func.count(), held_out, removed).where(DatasetRow.dataset_id.in_(ids))
    counts = {row[0]: row[1:] for row in await session.execute(statement.group_by(DatasetRow.dataset_id))}
    summaries = []
    for dataset in datasets:
        every, kept_apart, gone = counts.get(dataset.id, (0, 0, 0))
        summaries.append(DatasetSummary(dataset, every - kept_apart, kept_apart, gone))
    return summaries


def _no_dataset() -> StorageError:
    return StorageError("not_found", "There is no such dataset.")
