"""What was spooled is written to the database, in order; done twice it does no harm.

An entry is {"op", "moment", ...}: `conversation`, `accept`, `start` and `finalise` with the arguments of the functions of
`Record` that write them. What is there already is left as it is. A run whose conversation was deleted meanwhile, or is another
visitor's, is kept as a row without its texts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from storage.errors import StorageError
from storage.record import FilledBlank, Record
from storage.spool import LOCK, Spool

Entry = dict[str, Any]

logger = logging.getLogger(__name__)


def conversation_entry(id: str, moment: datetime, *, visitor: str, kind: str, title: str) -> Entry:
    return {
        "op": "conversation",
        "moment": moment.isoformat(),
        "id": id,
        "visitor": visitor,
        "kind": kind,
        "title": title,
    }


def accept_entry(run: str, moment: datetime, **values: Any) -> Entry:
    """`values`: keyword arguments of `Record.accept_run`."""
    return {"op": "accept", "moment": moment.isoformat(), "run": run, "values": values}


def start_entry(run: str, moment: datetime) -> Entry:
    return {"op": "start", "moment": moment.isoformat(), "run": run}


def finalise_entry(
    run: str, moment: datetime, status: str, *, blanks: Sequence[FilledBlank] = (), **values: Any
) -> Entry:
    """`values`: the other keyword arguments of `Record.finalise_run`."""
    filled = [
        asdict(blank) | {"token_ids": list(blank.token_ids), "logprobs": list(blank.logprobs)} for blank in blanks
    ]
    return {
        "op": "finalise",
        "moment": moment.isoformat(),
        "run": run,
        "status": status,
        "blanks": filled,
        "values": values,
    }


async def write(record: Record, entry: Entry) -> None:
    """Write one entry; one that is written already changes nothing. Raises `StorageError`, other exceptions for nonsense."""
    moment = datetime.fromisoformat(entry["moment"])
    done, work = {
        "conversation": ("conflict", _conversation),
        "accept": ("", _accept),
        "start": ("", _start),
        "finalise": ("not_found", _finalise),  # of a run that was refused after all
    }[entry["op"]]
    try:
        await work(record, entry, moment)
    except StorageError as error:
        if error.kind != done:
            raise


async def _conversation(record: Record, entry: Entry, moment: datetime) -> None:
    named = {name: entry[name] for name in ("visitor", "kind", "title", "id")}
    await record.create_conversation(**named, moment=moment)


async def _accept(record: Record, entry: Entry, moment: datetime) -> None:
    run, values = entry["run"], entry["values"]
    try:
        await record.accept_run(run, **values, moment=moment)
    except StorageError as error:
        if error.kind == "conflict":
            # Another run of this very moment may have its number: then a second try gives it another one.
            if not await record.has_run(run):
                await record.accept_run(run, **values, moment=moment)
            return
        if error.kind != "not_found":
            raise
        await record.accept_run(run, **{**values, "conversation": None, "texts": False}, moment=moment)


async def _start(record: Record, entry: Entry, moment: datetime) -> None:
    await record.start_run(entry["run"], moment)


async def _finalise(record: Record, entry: Entry, moment: datetime) -> None:
    blanks = [FilledBlank(**blank) for blank in entry["blanks"]]
    await record.finalise_run(entry["run"], entry["status"], blanks=blanks, moment=moment, **entry["values"])


async def replay(record: Record, spool: Spool) -> int:
    """Write all that waits; returns how many entries there were. Entries that make no sense are set aside.

    Raises `StorageError` if the database fails; what waits then goes on waiting, what is written is not lost.
    """
    count = 0
    while entries := await asyncio.to_thread(spool.read):
        for wave in _waves(entries):
            results = await asyncio.gather(*(write(record, entry) for entry in wave), return_exceptions=True)
            for entry, result in zip(wave, results, strict=True):
                if result is None:
                    continue
                if not isinstance(result, Exception) or of_the_database(result):
                    raise result
                logger.error("an unwritten %s can't be written: %s", entry.get("op"), type(result).__name__)
                await asyncio.to_thread(spool.set_aside, entry)
        await asyncio.to_thread(spool.done)
        count += len(entries)
    return count


def of_the_database(error: BaseException) -> bool:
    """Whether it is the database's condition, so that the same write may succeed later."""
    return isinstance(error, StorageError) and error.kind not in ("conflict", "not_found")


def _waves(entries: Sequence[Entry]) -> list[list[Entry]]:
    """The entries, sorted so that each comes behind those before it of the same run or conversation: a part may be written at
    once."""
    waves: list[list[Entry]] = []
    next_wave: dict[Any, int] = {}  # for a run or a conversation
    for entry in entries:
        values = entry.get("values")
        concerned = [
            entry.get("run"),
            entry.get("id"),
            values.get("conversation") if isinstance(values, dict) else None,
        ]
        at = max((next_wave.get(one, 0) for one in concerned if one is not None), default=0)
        next_wave |= {one: at + 1 for one in concerned if one is not None}
        if at == len(waves):
            waves.append([])
        waves[at].append(entry)
    return waves


async def replay_left(record: Record, folder: Path) -> int:
    """Write what ended servers left in the folders below `folder`; returns how many entries there were. Raises `StorageError`.

    A folder that a running process holds is left alone.
    """
    count = 0
    for lock in sorted(folder.glob(f"*/{LOCK}")):
        spool = Spool(lock.parent, limit=0)
        try:
            await asyncio.to_thread(spool.open)
        except StorageError as error:
            logger.debug("%s: %s", lock.parent.name, error)
            continue
        try:
            count += await replay(record, spool)
        finally:
            await asyncio.to_thread(spool.close)
    return count
