"""`python -m storage`: look after the database without starting the web server."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from storage import disk, export_commands, privacy_commands
from storage.database import Database
from storage.errors import StorageError
from storage.record import Record


def parser() -> argparse.ArgumentParser:
    """The command line of this package."""
    top = argparse.ArgumentParser(prog="python -m storage", description="Look after the database of the playground.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    address = argparse.ArgumentParser(add_help=False)
    address.add_argument(
        "--database",
        metavar="URL",
        default=os.environ.get("GLM_DATABASE"),
        help="a SQLite file, sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME (default: variable GLM_DATABASE)",
    )
    commands.add_parser(
        "migrate",
        parents=[address],
        help="create the tables or bring them up to date",
        description="Create the tables or bring them up to date. The server does this at every start. Running it "
        "twice, or from several processes at once, does no harm. A database of a newer program is refused.",
    )
    stats_parser = commands.add_parser(
        "stats",
        parents=[address],
        help="show how much is kept, and when it will be full",
        description="Show how many conversations, runs (by status), blanks, ratings and tokens the database holds, the room that "
        "it takes and is free, and in how many days it will be full, going by the runs of the last week.",
    )
    stats_parser.add_argument(
        "--quota",
        metavar="SIZE",
        type=size,
        default=os.environ.get("GLM_QUOTA") or "0",
        help="room that the database may take, as 200GiB (default: variable GLM_QUOTA, or the whole disk)",
    )
    commands.add_parser(
        "reports",
        parents=[address],
        help="list the shared pages that somebody reported",
        description="List the shared pages that somebody reported and that are still there, the most reported first: "
        "token, title and the reasons that were given. The page itself is at /s/TOKEN.",
    )
    revoke = commands.add_parser(
        "revoke",
        parents=[address],
        help="take a shared page back",
        description="Take a shared page back, whoever published it: its link ends at once and its content is erased.",
    )
    revoke.add_argument("token", metavar="TOKEN", help="the last part of the page's address")
    privacy_commands.add(commands, address)
    export_commands.add(commands, address)
    return top


def size(text: str) -> int:
    """For argparse."""
    try:
        return disk.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


async def migrate(database: Database) -> None:
    revision = await database.migrate()
    sys.stdout.write(f"{database.address} is at revision {revision}\n")


async def stats(database: Database, quota: int) -> None:
    counts = await Record(database).counts()
    for status, number in counts.pop("runs_by_status").items():
        counts[f"runs {status}"] = number
    for name, number in counts.items():
        sys.stdout.write(f"{name.replace('_', ' '):<20}{number:>12,}\n")
    state = await Record(database).disk_state(quota)
    for name, value in disk.lines(state):
        sys.stdout.write(f"{name:<20}{value:>12}\n")
    if state.warning:
        sys.stdout.write(f"{state.warning}\n")


async def reports(database: Database) -> None:
    for page in await Record(database).list_reported_shares():
        sys.stdout.write(f"{page.token}  {page.created:%Y-%m-%d}  {' '.join(page.title.split())}\n")
        for reason in page.reasons:
            sys.stdout.write(f"    {' '.join(reason.split())}\n")


async def revoke(database: Database, token: str) -> None:
    record = Record(database)
    await record.revoke_share(token, None)
    # Not the whole token: a reader of the audit must not be able to follow it.
    await record.audit("command line", "revoke", "share", token[:6])
    sys.stdout.write(f"the page {token} is taken back\n")


async def run(options: argparse.Namespace) -> None:
    """One command on one database. Raises `StorageError`."""
    database = Database(options.database)
    try:
        if work := (privacy_commands.COMMANDS | export_commands.COMMANDS).get(options.command):
            await work(database, options)
        elif options.command == "stats":
            await stats(database, options.quota)
        elif options.command == "revoke":
            await revoke(database, options.token)
        else:
            await {"migrate": migrate, "reports": reports}[options.command](database)
    finally:
        await database.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 after one sentence on the error output."""
    top = parser()
    options = top.parse_args(arguments)
    if not options.database:
        top.error("say which database: --database URL, or the variable GLM_DATABASE")
    try:
        asyncio.run(run(options))
    except StorageError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
