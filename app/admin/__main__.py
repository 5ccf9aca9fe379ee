"""`python -m app.admin reset-password`: the way back in when the last administrator's password is lost.

Whoever can run it can read the database anyway. It prints a link that works once within the hour; no password is printed or set.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
from collections.abc import Sequence
from datetime import timedelta

from app.admin.access import key_hash
from app.admin.people import welcome_path
from app.settings import default_database
from storage import Database, Record, StorageError

LINK_HOURS = 1


def parser() -> argparse.ArgumentParser:
    """The command line of this package."""
    top = argparse.ArgumentParser(prog="python -m app.admin", description="Look after the accounts of a playground.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    reset = commands.add_parser(
        "reset-password",
        help="make a link by which a member chooses a new password",
        description="Print a link by which a member chooses a new password. It works once, within an hour, while the server runs. "
        "The old password works until then. A disabled account is enabled again.",
    )
    reset.add_argument(
        "--database",
        metavar="URL",
        default=os.environ.get("GLM_DATABASE") or default_database(),
        help="as the server's own option (default: variable GLM_DATABASE, else %(default)s)",
    )
    reset.add_argument("--name", help="whose password (default: the administrator who was there first)")
    reset.add_argument(
        "--address", default="http://127.0.0.1:7860/", help="where the server can be opened (default: %(default)s)"
    )
    return top


async def reset_password(database: Database, name: str | None, address: str) -> str:
    """The link for this member, by default the oldest administrator. Raises `StorageError`."""
    record = Record(database)
    members = await record.list_staff()
    if name is not None:
        chosen = await record.find_staff(name)
        if chosen is None:
            known = ", ".join(member.name for member in members) or "nobody yet"
            raise StorageError("not_found", f"There is no member {name}; there is: {known}.")
    else:
        admins = [member for member in members if member.role == "admin"]
        if not admins:
            raise StorageError("not_found", "There is no member yet. Start the server: it makes the first one.")
        chosen = min(admins, key=lambda member: (member.disabled is not None, member.created))
    if chosen.disabled is not None:
        await record.change_staff(chosen.id, disabled=False)
    token = secrets.token_urlsafe(24)
    expires = record.clock() + timedelta(hours=LINK_HOURS)
    await record.invite(key_hash(token), chosen.role, expires, by=None, staff=chosen.id)
    await record.audit("command line", "offer new password", "staff", chosen.id, {"name": chosen.name})
    return f"{address.rstrip('/')}/{welcome_path(token)}"


async def run(options: argparse.Namespace) -> str:
    database = Database(options.database)
    try:
        return await reset_password(database, options.name, options.address)
    finally:
        await database.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 1 after one sentence on the error output."""
    try:
        link = asyncio.run(run(parser().parse_args(arguments)))
    except StorageError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{link}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
