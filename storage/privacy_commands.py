"""The commands of `python -m storage` that erase what visitors wrote: prune, delete-visitor, receipt."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta

from storage.database import Database
from storage.models import FINAL
from storage.record import Record
from storage.retention import Rule, parse_age
from storage.visitors import visitor_id

ACTOR = "command line"


def _age(text: str) -> timedelta:
    try:
        return parse_age(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add(commands: argparse._SubParsersAction, address: argparse.ArgumentParser) -> None:
    """Add the commands to those of `python -m storage`."""
    prune = commands.add_parser(
        "prune",
        parents=[address],
        help="erase the texts of old runs",
        description="Erase prompts, outputs, comments, corrections and shared pages of runs older than an age; rows with counts "
        "and timings stay. Rows of frozen datasets become tombstones with their hash, and models trained on them are marked. The "
        "server does this by itself, as its settings --retention… say. It may run meanwhile: the work is done in small steps.",
    )
    prune.add_argument("--older-than", type=_age, required=True, metavar="AGE", help="as 90d, 12h, 30m or 8w")
    prune.add_argument(
        "--status",
        choices=FINAL,
        action="append",
        help="only runs that ended so; may be given more than once (default: however they ended)",
    )
    prune.add_argument(
        "--reviewed",
        action="store_true",
        help="those too that were reviewed or corrected or stand in a dataset, which are kept otherwise",
    )
    prune.add_argument("--dry-run", action="store_true", help="only tell how many there are, and erase nothing")
    visitor = commands.add_parser(
        "delete-visitor",
        parents=[address],
        help="erase all that one visitor wrote, and print a receipt",
        description="Erase all that one visitor wrote, got, shared or commented, as on the visitor's own request, and print a "
        "receipt as JSON. Say who it is in one of four ways. If a server runs, ask it instead (the page's own button, or POST "
        "/api/admin/visitors/delete): it ends the visitor's runs first and forgets those that it has in memory.",
    )
    who = visitor.add_mutually_exclusive_group(required=True)
    who.add_argument("--cookie", metavar="VALUE", help="the value of the browser's cookie glm_visitor")
    who.add_argument("--visitor", metavar="ID", help="the visitor's id, as it stands with a run")
    who.add_argument("--share", metavar="TOKEN", help="a page that the visitor shared: the last part of its address")
    who.add_argument("--run", metavar="ID", help="a run of the visitor's")
    receipt = commands.add_parser(
        "receipt",
        parents=[address],
        help="check the receipt of a deletion",
        description="Show a receipt that was given for a deletion, and count what is left of the texts: 0.",
    )
    receipt.add_argument("id", metavar="ID", help="the receipt's id")


async def prune(database: Database, options: argparse.Namespace) -> None:
    rule = Rule(options.older_than, tuple(options.status or FINAL), None if options.reviewed else False)
    record = Record(database)
    if options.dry_run:
        counts = await record.count_due([rule])
        for status in FINAL:
            if status in counts:
                sys.stdout.write(f"{'runs ' + status:<20}{counts[status]:>12,}\n")
        sys.stdout.write(f"{'would be erased':<20}{sum(counts.values()):>12,}\n")
        return
    for name, number in (await record.prune([rule], by=ACTOR)).as_dict().items():
        sys.stdout.write(f"{name.replace('_', ' '):<20}{number:>12,}\n")


async def delete_visitor(database: Database, options: argparse.Namespace) -> None:
    record = Record(database)
    visitor = options.visitor
    if options.cookie is not None:
        visitor = visitor_id(options.cookie)
    elif visitor is None:
        visitor = await record.find_visitor(share=options.share, run=options.run)
    receipt = await record.delete_visitor(visitor, by=ACTOR)
    sys.stdout.write(json.dumps(receipt.as_dict(), indent=2) + "\n")


async def receipt(database: Database, options: argparse.Namespace) -> None:
    found, left = await Record(database).check_receipt(options.id)
    sys.stdout.write(json.dumps(found.as_dict(), indent=2) + f"\n{left} texts are left of what it names\n")


COMMANDS: dict[str, Callable[[Database, argparse.Namespace], Awaitable[None]]] = {
    "prune": prune,
    "delete-visitor": delete_visitor,
    "receipt": receipt,
}
