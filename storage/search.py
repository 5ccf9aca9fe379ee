"""The full-text index of runs: what was asked, what was answered, what staff made of it, in words and pairs of characters.

SQLite: an FTS5 table `run_search` with `rowid` = `Run.number`, one column of terms in their order and one of single characters;
PostgreSQL: a table of tsvectors with a GIN index. Both hold terms that `storage.words` made, so that both find the same; what a
person types reaches the database only as such terms, never as the syntax of its search.

A run is indexed when it ends (`finalise_run`) and again when its correction changes: `entry`. Its entry goes by a trigger of the
database itself as soon as the run is deleted, marked as deleted or loses its prompt, whoever does that; nobody has to call
anything. Rows that were written in another way (an import) are indexed by `index_runs`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Executable,
    Select,
    bindparam,
    cast,
    column,
    false,
    func,
    select,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, TSQUERY
from sqlalchemy.ext.asyncio import AsyncSession

from storage.models import Run
from storage.review_tables import Review
from storage.words import PART_TERMS, characters, language, query, terms

#: Between two texts of a run, so that no phrase goes across; no letter and no digit, so that nobody can type it.
BREAK = "¶"
POSITIONS = 256  # of one term, that PostgreSQL keeps
BATCH = 200

INDEX = table("run_search", column("number"), column("terms"), column("rowid"))
#: Where FTS5 keeps the texts that it was given: c0 the terms with a space on either side of each, c1 the characters.
CONTENT = table("run_search_content", column("id"), column("c0"), column("c1"))

_SQLITE_REMOVE = text("DELETE FROM run_search WHERE rowid = :number")
_SQLITE_INSERT = text("INSERT INTO run_search (rowid, words, characters) VALUES (:number, :words, :characters)")
_POSTGRES_INSERT = text(
    "INSERT INTO run_search (number, terms) VALUES (:number, CAST(:terms AS tsvector)) "
    "ON CONFLICT (number) DO UPDATE SET terms = excluded.terms"
)
_NOTE_LANGUAGE = text("UPDATE run SET language = :language WHERE id = :run")


def texts_of(prompt: Any, output: str | None, corrected: str | None = None) -> list[str]:
    """What of a run is searched: the messages one after the other, or the text, then the output and its correction."""
    if isinstance(prompt, list):
        prompt = "\n".join(str(message.get("content", "")) for message in prompt if isinstance(message, dict))
    return [part for part in (prompt, output, corrected) if isinstance(part, str) and part]


def language_of(texts: Iterable[str]) -> str:
    """The language of a run with these texts."""
    return language("\n".join(part[: 8 * PART_TERMS] for part in texts))


def entry(dialect: str, number: int, texts: Sequence[str], *, new: bool) -> list[tuple[Executable, dict[str, Any]]]:
    """The statements, with their values, that index the run of this number; `new` if it surely has no entry yet."""
    words: list[str] = []
    alone: set[str] = set()
    for part in texts:
        words += [*terms(part), BREAK]
        alone |= characters(part)
    if dialect == "sqlite":
        values = {"number": number, "words": f" {' '.join(words)} ", "characters": f" {' '.join(sorted(alone))} "}
        insert = (_SQLITE_INSERT, values)
        return [insert] if new else [(_SQLITE_REMOVE, {"number": number}), insert]
    return [(_POSTGRES_INSERT, {"number": number, "terms": tsvector(words, alone)})]


def tsvector(words: list[str], alone: set[str]) -> str:
    positions: dict[str, list[int]] = {character: [] for character in alone}
    for position, word in enumerate(words, 1):
        if word != BREAK:
            places = positions.setdefault(word, [])
            if len(places) < POSITIONS:
                places.append(position)
    return " ".join(f"'{word}':{','.join(map(str, at))}" if at else f"'{word}'" for word, at in positions.items())


async def index_runs(session: AsyncSession, ids: Sequence[str], *, new: bool = False) -> None:
    """Index these runs anew and note their language; `new` if they have no entries yet. Runs without texts are passed over."""
    dialect = session.get_bind().dialect.name
    for start in range(0, len(ids), BATCH):
        statement = select(Run.id, Run.number, Run.prompt, Run.output, Review.corrected).outerjoin(Review)
        statement = statement.where(Run.id.in_(ids[start : start + BATCH]), Run.deleted.is_(None))
        for run in (await session.execute(statement)).all():
            texts = texts_of(run.prompt, run.output, run.corrected)
            await session.execute(_NOTE_LANGUAGE, {"run": run.id, "language": language_of(texts)})
            for executable, values in entry(dialect, run.number, texts, new=new):
                await session.execute(executable, values)


# Asking


def check(words: str) -> None:
    """Raises `StorageError("bad_request")` for a search that is too long."""
    query(words)


def condition(dialect: str, words: str) -> ColumnElement[bool]:
    """That a row of `Run` has all of these words."""
    found = matching(dialect, words)
    return false() if found is None else Run.number.in_(found)


def is_among(dialect: str, numbers: Select[Any]) -> ColumnElement[bool]:
    """That a row of `Run` has one of these few numbers, which are to be found first."""
    if dialect == "sqlite":
        return Run.number.in_(numbers)
    # As an array: PostgreSQL's planner would rather go through an order and look each run up.
    return Run.number == func.any(func.array(numbers.scalar_subquery()))


def matching(dialect: str, words: str) -> Select[Any] | None:
    """The numbers of the runs with all of these words; None if there is nothing to look for."""
    asked = expression(dialect, words)
    if asked is None:
        return None
    if dialect == "sqlite":
        return select(INDEX.c.rowid).where(text("run_search MATCH :asked").bindparams(asked=asked))
    return select(INDEX.c.number).where(_meets(asked))


def among(dialect: str, words: str, numbers: Sequence[int]) -> Select[Any]:
    """Those of these numbers whose runs have all of the words; for runs that come first in some order, when the words are common.

    There must be something to look for.
    """
    phrases, alone = query(words)
    if dialect == "postgresql":
        asked = expression(dialect, words)
        assert asked is not None
        return select(INDEX.c.number).where(INDEX.c.number == func.any(array_of(numbers)), _meets(asked))
    # Reading what was indexed is ten times as fast as asking the index about one row after the other.
    given = text("run_search_content.id IN (SELECT value FROM json_each(:given))").bindparams(given=json.dumps(numbers))
    held = [func.instr(CONTENT.c.c0, f" {' '.join(phrase)} ") > 0 for phrase in phrases]
    held += [func.instr(CONTENT.c.c1, f" {character} ") > 0 for character in alone]
    return select(CONTENT.c.id).where(given, *held)


def array_of(numbers: Sequence[int]) -> ColumnElement[Any]:
    """Numbers as one value of PostgreSQL."""
    return bindparam(None, list(numbers), type_=ARRAY(BigInteger), unique=True)


def _meets(asked: str) -> ColumnElement[bool]:
    return INDEX.c.terms.op("@@")(cast(bindparam(None, asked, unique=True), TSQUERY))


def expression(dialect: str, words: str) -> str | None:
    """The search in the database's own language, made of nothing but terms; None if there is nothing to look for."""
    phrases, alone = query(words)
    if not phrases and not alone:
        return None
    if dialect == "sqlite":
        parts = [f'words : "{" ".join(phrase)}"' for phrase in phrases]
        return " AND ".join(parts + [f'characters : "{character}"' for character in alone])
    parts = [f"({' <-> '.join(map(_quoted, phrase))})" for phrase in phrases]
    return " & ".join(parts + [_quoted(character) for character in alone])


def _quoted(term: str) -> str:
    return f"'{term}'"
