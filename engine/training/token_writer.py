"""Tokenise the documents of a source into the files that tokens.py reads.

A source appears whole or not at all. Until then it grows in `NAME.tokens.part`, whose progress.json says how far it is sure
to have come; the next run goes on from there. Several processes tokenise, what comes out is the same for any number.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy

from engine.errors import GLMError
from engine.glm.tokenizer import Tokenizer
from engine.training.row_files import RowFile
from engine.training.source_options import SourceOptions
from engine.training.sources import is_document
from engine.training.tokens import ABOUT, KINDS, NUMBERS, file_sizes, folder_of, kind_of, made_from, open_tokens

_PROGRESS = "progress.json"
_BATCH_CHARACTERS, _BATCH_ROWS = 1 << 18, 4096  # tokenised at once by one process


class OtherRows(Exception):
    """The source has rows that are no documents. place: the first of them."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


@dataclass(frozen=True, slots=True)
class Tokenised:
    """A source's folder, what is in it, and how much of it this run made (text in bytes of UTF-8, and seconds)."""

    folder: Path
    rows: int
    tokens: int
    text_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows of whole lines. last: the last of the lines."""

    texts: list[str]
    lines: list[int]
    last: int
    done: int  # bytes of the file that were read


class TokenWriter:
    """Writes to folder `tokens`. workers: processes; 1: this one. save_every: seconds between the points to go on from.

    report(what, bytes of the source's file done) is called often. Use it as a context manager: it holds the processes.
    """

    def __init__(
        self,
        tokens: Path,
        tokenizer: Tokenizer,
        workers: int = 1,
        report: Callable[[str, int], None] = lambda what, done: None,
        save_every: float = 15.0,
    ) -> None:
        self._tokens, self._tokenizer, self._report, self._save_every = tokens, tokenizer, report, save_every
        self._workers = workers
        self._pool: Executor | None = None

    def __enter__(self) -> TokenWriter:
        if self._workers > 1:
            self._pool = ProcessPoolExecutor(
                self._workers,
                multiprocessing.get_context("spawn"),
                initializer=_begin_worker,
                initargs=(self._tokenizer,),
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def write(self, name: str, file: RowFile, options: SourceOptions) -> Tokenised:
        """Tokenise a source, or go on with it; nothing is done if it is there already.

        OtherRows if it isn't all documents; GLMError bad_data for a broken row, worker_died for a process that was killed.
        """
        started = time.monotonic()
        for number, row in options.rows(file):
            if not is_document(row):
                raise OtherRows(file.place(number))
            break
        else:
            raise GLMError("bad_data", f"{name} has no rows.", field="data")
        with file.path.open("rb") as source:
            sha256 = hashlib.file_digest(source, "sha256").hexdigest()
        wanted = {**made_from(file, options.shape, self._tokenizer), "sha256": sha256}
        folder = folder_of(self._tokens, name)
        if (about := _read(folder / ABOUT, wanted)) is not None and self._is_whole(name, file, options):
            return Tokenised(folder, about["rows"], about["tokens"], 0, 0.0)
        part = folder.with_name(folder.name + ".part")
        try:
            about, text_bytes = self._fill(part, wanted, name, file, options)
        except OtherRows:
            shutil.rmtree(part)
            raise
        (part / ABOUT).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
        (folder / _PROGRESS).unlink()
        return Tokenised(folder, about["rows"], about["tokens"], text_bytes, time.monotonic() - started)

    def _is_whole(self, name: str, file: RowFile, options: SourceOptions) -> bool:
        try:
            return open_tokens(self._tokens, name, self._tokenizer, options.shape, file) is not None
        except GLMError:
            return False  # damaged: it is made anew

    def _fill(self, part: Path, wanted: dict, name: str, file: RowFile, options: SourceOptions) -> tuple[dict, int]:
        part.mkdir(parents=True, exist_ok=True)
        known = _resumed(part, wanted)
        rows, tokens, line = known["rows"], known["tokens"], known["line"]
        text_bytes, saved = 0, time.monotonic()
        began = saved
        with ExitStack() as stack:
            files = []
            for path, size in file_sizes(known).items():
                files.append(stack.enter_context((part / path).open("r+b" if rows else "wb")))
                files[-1].truncate(size if rows else 0)
                files[-1].seek(0, os.SEEK_END)
            ids, offsets, lines = files
            if not rows:
                offsets.write(numpy.zeros(1, NUMBERS).tobytes())
            for batch, (lengths, numbers) in self._encoded(_batches(options, file, line)):
                ids.write(numbers)
                ends = tokens + numpy.cumsum(lengths, dtype=NUMBERS)
                offsets.write(ends.tobytes())
                lines.write(numpy.array(batch.lines, NUMBERS).tobytes())
                rows, tokens, line = rows + len(lengths), int(ends[-1]), batch.last
                text_bytes += sum(len(text.encode()) for text in batch.texts)
                now = time.monotonic()
                self._report(f"{name}, {rows:,} rows, {text_bytes / 1e6 / max(now - began, 1e-9):.1f} MB/s", batch.done)
                if now - saved >= self._save_every:
                    _save(part, files, {**wanted, "rows": rows, "tokens": tokens, "line": line})
                    saved = now
            about = {**wanted, "rows": rows, "tokens": tokens}
            _save(part, files, {**about, "line": line})
        return about, text_bytes

    def _encoded(self, batches: Iterator[_Batch]) -> Iterator[tuple[_Batch, tuple[numpy.ndarray, bytes]]]:
        """The batches in order, each with its rows' lengths and all their ids; a few wait so that no process does."""
        if self._pool is None:
            yield from ((batch, _encode(self._tokenizer, batch.texts)) for batch in batches)
            return
        waiting: deque[tuple[_Batch, Future]] = deque()
        try:
            for batch in batches:
                waiting.append((batch, self._pool.submit(_encode_in_worker, batch.texts)))
                if len(waiting) > 2 * self._workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            message = "A process that tokenises was killed; memory may be short. The same command goes on."
            raise GLMError("worker_died", message) from error


def _batches(options: SourceOptions, file: RowFile, after: int) -> Iterator[_Batch]:
    texts: list[str] = []
    lines: list[int] = []
    size = 0
    for number, row in options.rows(file, after):
        if not is_document(row):
            raise OtherRows(file.place(number))
        if (size >= _BATCH_CHARACTERS or len(texts) >= _BATCH_ROWS) and number != lines[-1]:
            yield _Batch(texts, lines, lines[-1], file.done)
            texts, lines, size = [], [], 0
        texts.append(row["text"])
        lines.append(number)
        size += len(row["text"])
    if texts:
        yield _Batch(texts, lines, lines[-1], file.done)


def _resumed(part: Path, wanted: dict) -> dict:
    """The rows, tokens and lines that an earlier run is sure to have written; zeros where it made something else."""
    known = _read(part / _PROGRESS, wanted)
    if known is not None:
        sizes = {part / name: size for name, size in file_sizes(known).items()}
        if all(path.is_file() and path.stat().st_size >= size for path, size in sizes.items()):
            return known
    return {**wanted, "rows": 0, "tokens": 0, "line": 0}


def _read(path: Path, wanted: dict) -> dict | None:
    """A file about tokens that says all that is wanted; None if it is missing, damaged, or about others."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return known if isinstance(known, dict) and wanted.items() <= known.items() else None


def _save(part: Path, files: list[BinaryIO], progress: dict) -> None:
    """First the data to the disk, then the word that it is there."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    new = part / (_PROGRESS + ".new")
    new.write_text(json.dumps(progress), encoding="utf-8")
    new.replace(part / _PROGRESS)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> tuple[numpy.ndarray, bytes]:
    kind = KINDS[kind_of(tokenizer)]
    rows = [numpy.array(tokenizer.encode_plain(text), kind) for text in texts]
    return numpy.array([len(row) for row in rows], NUMBERS), b"".join(row.tobytes() for row in rows)


_tokenizer: Tokenizer  # of a process of the pool


def _begin_worker(tokenizer: Tokenizer) -> None:
    global _tokenizer
    _tokenizer = tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process of a pool waits for work forever, even where the one that gives it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_in_worker(texts: list[str]) -> tuple[numpy.ndarray, bytes]:
    return _encode(_tokenizer, texts)
