"""The commands of `python -m storage` that take the record away as data and bring it back: export, import."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from storage.database import Database
from storage.errors import StorageError
from storage.export import FORMATS, Export, Selection, write_export
from storage.export.job import Tally
from storage.own_import import import_file, refuse_missing
from storage.record import Record
from storage.run_filter import RunFilter

ACTOR = "command line"
#: Option -> (field of RunFilter, metavar, help); those that may be given more than once.
MANY = {
    "--mode": ("modes", "MODE", "chat, generate, fill ..."),
    "--status": ("statuses", "STATUS", "done, cancelled, error, interrupted"),
    "--language": ("languages", "LANGUAGE", "as the review desk tells them: en, zh ..."),
    "--model-version": ("model_versions", "NUMBER", "the model version's number"),
    "--tag": ("tags", "TAG", "with this tag"),
    "--reviewer": ("reviewers", "ID", "last reviewed by this member"),
    "--client": ("clients", "CLIENT", "web, api ..."),
    "--id": ("ids", "RUN", "this run"),
}
ONE = {
    "--words": ("words", "TEXT", "with these words, in either language"),
    "--from": ("created_from", "MOMENT", "accepted then or later, as 2026-01-31"),
    "--to": ("created_to", "MOMENT", "accepted before; a day alone is included"),
    "--stars-from": ("rating_from", "STARS", "a reviewer's stars, 1 to 5"),
    "--stars-to": ("rating_to", "STARS", "the same, at most"),
    "--thumbs": ("thumbs", "up|down|any", "a visitor's thumb"),
    "--visitor": ("visitor", "ID", "of this visitor"),
}
TRUTHS = {
    "--reviewed": ("reviewed", "whose review is done"),
    "--corrected": ("corrected", "that were corrected"),
    "--flagged": ("flagged", "that are flagged"),
}


def add(commands: argparse._SubParsersAction, address: argparse.ArgumentParser) -> None:
    """Add the commands to those of `python -m storage`."""
    export = commands.add_parser(
        "export",
        parents=[address],
        help="write runs to a file, in one of eight formats",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write the selected runs to FILE, and FILE.manifest.json beside it: filters, counts, SHA-256, versions.\n"
        "Any number of runs takes the same memory. An export that was broken off goes on when the same command is given\n"
        "again: until it is complete, it is FILE.part. A server may run meanwhile.\n\n"
        "formats:\n" + "\n".join(f"  {format.name:<13}{format.description}" for format in FORMATS.values()),
    )
    export.add_argument("file", metavar="FILE", type=Path, help="where to; it must not be there yet")
    export.add_argument("--format", choices=FORMATS, default="jsonl", help="see above (default: jsonl)")
    export.add_argument(
        "--no-redaction",
        action="store_true",
        help="leave e-mail addresses, phone, card and identity numbers, keys and likely names in the texts. Without this they are "
        "replaced by [hidden], alike in all of a conversation. Give such a file only to who may read the visitors' own words",
    )
    export.add_argument("--restart", action="store_true", help="throw away what there is of a former FILE.part")
    export.add_argument("--quiet", action="store_true", help="don't tell how far it is")
    filters = export.add_argument_group("only runs")
    for option, (field, metavar, help) in MANY.items():
        filters.add_argument(option, dest=field, metavar=metavar, action="append", help=f"{help}; may be repeated")
    for option, (field, metavar, help) in ONE.items():
        filters.add_argument(option, dest=field, metavar=metavar, help=help)
    for option, (field, help) in TRUTHS.items():
        filters.add_argument(option, dest=field, action=argparse.BooleanOptionalAction, default=None, help=help)
    reading = commands.add_parser(
        "import",
        parents=[address],
        help="read a jsonl export back",
        description="Read a file that `export --format jsonl` wrote into this database. It is checked as a whole first: a damaged "
        "line is refused by its number, and nothing is changed. Runs that are there already stay as they are, so doing it twice "
        "does no harm. Only an export made with --no-redaction brings everything back.",
    )
    reading.add_argument("file", metavar="FILE", type=Path, help="what to read")
    reading.add_argument("--quiet", action="store_true", help="don't tell how far it is")


def filter_of(options: argparse.Namespace) -> RunFilter:
    """The filter that the options describe. Raises `StorageError("bad_request")`."""
    fields = [field for field, *_ in (*MANY.values(), *ONE.values(), *TRUTHS.values())]
    return RunFilter.parse({field: getattr(options, field) for field in fields if getattr(options, field) is not None})


async def export(database: Database, options: argparse.Namespace) -> None:
    """Write the file, and tell how far it is on the error output."""
    record = Record(database)
    job = Export(
        database,
        FORMATS[options.format],
        Selection(filter_of(options), record.clock(), redact=not options.no_redaction),
    )
    total = 0 if options.quiet else await job.count()

    def progress(tally: Tally) -> None:
        sys.stderr.write(f"{tally.runs:,} of {total:,} runs\n")

    try:
        manifest = await write_export(
            job, options.file, restart=options.restart, progress=None if options.quiet else progress
        )
    except OSError as error:
        raise StorageError("bad_request", f"{options.file} can't be written: {error.strerror or error}.") from error
    await record.audit(ACTOR, "export", "export", manifest["file"], manifest)
    sys.stdout.write(f"{options.file}: {manifest['rows']:,} rows from {manifest['runs']:,} runs\n")


async def import_(database: Database, options: argparse.Namespace) -> None:
    """Read the file, and tell how far it is on the error output."""
    refuse_missing(options.file)
    record = Record(database)

    def progress(done: int, total: int) -> None:
        sys.stderr.write(f"{done:,} of {total:,} runs\n")

    try:
        result = await import_file(record, options.file, None if options.quiet else progress)
    except OSError as error:
        raise StorageError("bad_request", f"{options.file} can't be read: {error.strerror or error}.") from error
    await record.audit(ACTOR, "import", "runs", "", {"runs": result.runs, "known": result.known})
    sys.stdout.write(f"{result.runs:,} runs imported, {result.known:,} were there already or deleted here\n")
    if result.votes_left_out:
        sys.stdout.write(f"{result.votes_left_out:,} votes left out: the other run isn't in this database\n")


COMMANDS: dict[str, Callable[[Database, argparse.Namespace], Awaitable[None]]] = {"export": export, "import": import_}
