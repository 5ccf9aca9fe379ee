"""`python -m engine evaluate`: measure a model on tasks in GLM-130B's format.

Rows are asked on a model that is loaded here, or on a running server's replicas, whose administrator's key is needed then. Every
answer is kept in --out as it comes: a run that was interrupted goes on where it stopped when the same command is given again, and
what was finished with the same weights, task and rows is not run again. At the end report.md and report.html in --out compare
all that it holds.

    python -m engine evaluate bloom/glue_cola.yaml --data DIR              a task that comes with the program
    python -m engine evaluate my_task.yaml folder_of_tasks --data DIR      tasks of your own
    python -m engine evaluate mmlu --data DIR --server http://host:8000    asked on a running server
    python -m engine evaluate --prepare list                               benchmarks whose published files can be read
    python -m engine evaluate --prepare cola CoLA_FOLDER --data DIR        make the rows of one

Exit status: 0, 1 when a task or the machine failed, 2 for a mistake in the arguments, 130 when it was interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from engine.commands.ending import status
from engine.commands.evaluate_options import KEY_VARIABLE, check, parser, pool_options
from engine.commands.evaluate_printer import JsonPrinter, Printer, TerminalPrinter
from engine.errors import GLMError
from engine.evaluation.asker import Asker, PoolAsker
from engine.evaluation.result import TaskResult
from engine.evaluation.runner import Evaluation
from engine.evaluation.task import Task, find_task_files, load_task
from engine.glm.config import EMBEDDED, resolve_model
from engine.glm.tokenizer import Tokenizer
from engine.serving.pool import Pool


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = parser(__doc__).parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    printer = JsonPrinter() if options.json else TerminalPrinter()
    try:
        check(options)
        if options.prepare is not None:
            return _prepare(options)
        if options.report:
            printer.say(_report(options.out))
            return 0
        return asyncio.run(_evaluate(options, printer))
    except GLMError as error:
        printer.fail(error)
        return status(error)
    except (KeyboardInterrupt, asyncio.CancelledError):
        printer.interrupted(f"Interrupted. What is done is kept in {options.out}; the same command goes on from there.")
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        printer.fail(GLMError("internal", f"{error.filename or 'output'}: {error.strerror or error}"))
        return 1


async def _evaluate(options: argparse.Namespace, printer: Printer) -> int:
    paths = find_task_files(options.tasks)
    tasks = [(path, load_task(path)) for path in paths]
    printer.loaded([(task.name, str(path)) for path, task in tasks])
    current = asyncio.current_task()
    assert current is not None
    if threading.current_thread() is threading.main_thread():  # others get no signals
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, current.cancel)  # as Ctrl-C
    async with _asker(options) as asker:
        printer.model(asker)
        evaluation = Evaluation(
            asker, options.data, options.out, printer.tell, limit=options.limit, parallel=options.parallel
        )
        results, failed = await _run(evaluation, tasks, printer)
    printer.end(results, failed)
    if results:
        printer.say(_report(options.out))
    return 1 if failed else 0


async def _run(
    evaluation: Evaluation, tasks: list[tuple[Path, Task]], printer: Printer
) -> tuple[list[TaskResult], int]:
    """The results, and how many tasks could not be run because of their rows; the others are."""
    results: list[TaskResult] = []
    failed = 0
    for path, task in tasks:
        try:
            results.append(await evaluation.run(task, str(path)))
        except GLMError as error:
            if error.kind != "bad_data":
                raise
            failed += 1
            printer.fail(error, task.name)
    return results, failed


@contextlib.asynccontextmanager
async def _asker(options: argparse.Namespace) -> AsyncIterator[Asker]:
    if options.server is not None:
        from engine.evaluation.server import ServerAsker

        async with ServerAsker(options.server, _key(options)) as server:
            yield server
        return
    folder = resolve_model(options.model or EMBEDDED)
    tokenizer = Tokenizer.load(folder)
    async with Pool(folder, queue=100_000, **pool_options(options)) as pool:
        yield PoolAsker(pool, tokenizer)


def _key(options: argparse.Namespace) -> str:
    if options.key_file is not None:
        try:
            key = options.key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            message = f"--key-file {options.key_file} can't be read: {error}."
            raise GLMError("bad_request", message, field="key_file") from error
    else:
        key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        message = (
            f"A server asks for an administrator's key: put it into the variable {KEY_VARIABLE} or give --key-file."
        )
        raise GLMError("bad_request", message, field="key_file")
    return key


def _prepare(options: argparse.Namespace) -> int:
    from engine.evaluation.prepare import converters, prepare

    if options.prepare == ["list"]:
        for each in converters().values():
            sys.stdout.write(f"{each.name:16}{each.source}\n")
        return 0
    name, source = options.prepare
    prepared = prepare(name, Path(source), options.data, options.limit)
    for path, count in prepared.files.items():
        sys.stdout.write(f"{path}: {count} rows\n")
    for note in prepared.notes:
        sys.stdout.write(f"{note}\n")
    return 0


def _report(out: Path) -> str:
    from engine.evaluation.reports import write_report

    return "Report: " + ", ".join(map(str, write_report(out)))
