"""`python -m storage`: look after the database without starting the web server."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

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
    commands.add_parser(
        "stats",
        parents=[address],
        help="show how much is kept",
        description="Show how many conversations, runs (by status), blanks, ratings and tokens the database holds.",
    )
    return top


async def migrate(database: Database) -> None:
    revision = await database.migrate()
    sys.stdout.write(f"{database.address} is at revision {revision}\n")


async def stats(database: Database) -> None:
    counts = await Record(database).counts()
    for status, number in counts.pop("runs_by_status").items():
        counts[f"runs {status}"] = number
    for name, number in counts.items():
        sys.stdout.write(f"{name.replace('_', ' '):<20}{number:>12,}\n")


async def run(command: str, address: str) -> None:
    """One command on one database. Raises `StorageError`."""
    database = Database(address)
    try:
        await {"migrate": migrate, "stats": stats}[command](database)
    finally:
        await database.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 after one sentence on the error output."""
    top = parser()
    options = top.parse_args(arguments)
    if not options.database:
        top.error("say which database: --database URL, or the variable GLM_DATABASE")
    try:
        asyncio.run(run(options.command, options.database))
    except StorageError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
