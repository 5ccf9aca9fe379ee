"""`python -m engine generate`: fill the blanks of texts, go on with them, or chat.

A text without [MASK], [sMASK] or [gMASK] gets a [gMASK] at its end. The input is `interactive`, a file with one text a line,
or a text. The lines of a file run together in one batch; results come in the order of the lines, and a line that fails
loses no other. Exit status: 0, 1 when something failed, 2 for a mistake in the arguments or in the one text.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.commands.ending import MISTAKES, told
from engine.commands.generate_options import beams, parser, source
from engine.errors import GLMError
from engine.glm import blanks
from engine.glm.config import Config, resolve_model
from engine.glm.size import parse_size
from engine.glm.tokenizer import Tokenizer
from engine.serving import generate, protocol
from engine.serving.events import Beams, Blank, Delta, Done, Error
from engine.serving.pool import Pool
from engine.serving.protocol import Sampling
from engine.serving.run import Run
from engine.serving.run_job import CONFIDENT_BLANKS, check_order

_FILLED, _PLAIN = "\x1b[32;4m", "\x1b[0m"


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    options = parser(__doc__).parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    return told(lambda: _generate(options))


def _generate(options: argparse.Namespace) -> int:
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        session = Session(options)
        runner.run(session.pool.start())
        stack.callback(lambda: runner.run(session.pool.stop()))
        protocol.check_sampling(session.sampling, session.pool.require_limits())
        return session.converse(runner) if session.source is None else runner.run(session.work())


@dataclass(slots=True)
class Input:
    """One text of the input, or why there is none. `name`: its id, or its number, for files."""

    name: str
    text: str
    error: GLMError | None = None


@dataclass(slots=True)
class Output:
    """What came of one input."""

    input: Input
    text: str = ""
    coloured: str = ""
    blanks: list[str] = field(default_factory=list)
    beams: list[Beams] = field(default_factory=list)
    done: Done | None = None
    error: GLMError | None = None


class Session:
    """The options, made ready: `source` is a file, a text, or None for interactive."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.source = source(options.input_source)
        if options.out_seq_length is not None and options.out_seq_length < 1:
            raise GLMError("bad_request", "--out-seq-length must be at least 1.", field="out_seq_length", limit=1)
        folder = resolve_model(options.model)
        self.config = Config.load(folder)
        if options.chat and self.config.chat is None:
            raise GLMError("unsupported", f"The model {self.config.name} has no chat format.", field="chat")
        self.tokenizer = Tokenizer.load(folder)
        self.sampling = Sampling(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            repetition_penalty=options.repetition_penalty,
            no_repeat_ngram=options.no_repeat_ngram_size,
            min_new_tokens=options.min_gen_length,
            max_new_tokens=options.max_new_tokens,
            stop=tuple(options.stop),
            seed=options.seed,
            beams=beams(options),
        )
        if options.chat and options.order != "left":
            raise GLMError("bad_request", "--order is for texts with blanks, not for --chat.", field="order")
        check_order(options.order, 0, self.sampling)
        self.colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        if options.slots < 1:
            raise GLMError("bad_request", "--slots must be at least 1.", field="slots", limit=1)
        # A file's lines wait in this process; the pool's queue only has to hold those that `_in_order` hands in.
        self.pool = Pool(
            folder,
            slots=options.slots,
            queue=4 * options.slots * (1 if options.order == "left" else CONFIDENT_BLANKS),
            threads=options.threads,
            precision=options.precision,
            quantize=options.quantize,
            batch_invariant=options.batch_invariant,
            kv_cache=options.kv_cache,
            eager=options.eager,
            offload=options.offload,
            weights_budget=None if options.weights_budget is None else parse_size(options.weights_budget),
            tensor_parallel=options.tensor_parallel,
            device=options.device,
        )
        self._file = None
        self._prepare_output(options.output_path)

    # The ways to work

    async def work(self) -> int:
        """All texts of a file together, or the one text."""
        failed = False
        try:
            async for output in self._in_order():
                self._write(output)
                if output.error is not None:
                    failed = True
                    if isinstance(self.source, str) and not self.options.json:
                        raise output.error
                    if isinstance(self.source, str) and output.error.kind in MISTAKES:
                        return 2
        finally:
            if self._file is not None:
                self._file.close()
        return 1 if failed else 0

    async def _in_order(self) -> AsyncIterator[Output]:
        """The outputs in the order of the inputs; enough run at the same time to keep every slot busy."""
        tasks: list[asyncio.Task[Output]] = []
        try:
            for entry in self._inputs():
                tasks.append(asyncio.create_task(self._one(entry, [])))
                while tasks and (tasks[0].done() or len(tasks) >= 4 * self.options.slots):
                    yield await tasks.pop(0)
            while tasks:
                yield await tasks.pop(0)
        finally:
            for task in tasks:
                task.cancel()

    def converse(self, runner: asyncio.Runner) -> int:
        """Texts from the terminal (or a pipe) until `stop` or its end. Ctrl-C ends an answer, and at the prompt everything."""
        terminal = sys.stdin.isatty()
        history: list[dict[str, str]] = []
        number = 0
        what = "Message" if self.options.chat else "Text"
        while True:
            if terminal:
                sys.stderr.write(f"{what} ('stop' ends{', `clear` forgets' if self.options.chat else ''}): ")
                sys.stderr.flush()
            line = sys.stdin.readline()
            if not line or line.strip() == "stop":
                return 0
            if not line.strip():
                continue
            if self.options.chat and line.strip() == "clear":
                history.clear()
                continue
            number += 1
            try:
                output = runner.run(self._one(self._input(line.rstrip("\n"), number), history))
            except KeyboardInterrupt:
                sys.stderr.write("\n")
                continue
            self._write(output)
            if output.done is not None:
                history += [
                    {"role": "user", "content": output.input.text},
                    {"role": "assistant", "content": output.text},
                ]

    # One text

    def _inputs(self) -> Iterator[Input]:
        if isinstance(self.source, str):
            yield self._input(self.source, 1)
            return
        assert self.source is not None
        with self.source.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield self._input(line.rstrip("\r\n"), number)

    def _input(self, line: str, number: int) -> Input:
        if not self.options.with_id:
            return Input(f"{number:05d}", line)
        name, tab, text = line.partition("\t")
        name = name.strip()
        if not tab or not name or name in (".", "..") or any(character in name for character in "/\\\0"):
            message = f"Input {number} must be an id, a tab and a text; an id has no slashes."
            return Input(f"{number:05d}", line, GLMError("bad_request", message, field="with_id"))
        return Input(name, text)

    async def _one(self, entry: Input, history: list[dict[str, str]]) -> Output:
        output = Output(entry, error=entry.error)
        if entry.error is not None:
            return output
        try:
            run = self._start(entry.text, history)
            await self._collect(run, output)
        except GLMError as error:
            output.error = error
        return output

    def _start(self, text: str, history: list[dict[str, str]]) -> Run:
        length = self.options.out_seq_length
        if not self.options.chat:
            order = self.options.order
            return generate.fill(self.pool, self.tokenizer, text, self.sampling, order=order, total_length=length)
        messages = [*history, {"role": "user", "content": text}]
        return generate.chat(self.pool, self.tokenizer, messages, self.sampling, self.config.chat, total_length=length)

    async def _collect(self, run: Run, output: Output) -> None:
        fills: dict[int, str] = {}
        live = self.options.chat and self.source is None and not self.options.json and sys.stdout.isatty()
        try:
            async for event in run:
                if isinstance(event, Delta) and live:
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
                elif isinstance(event, Blank):
                    fills[event.index] = event.text
                elif isinstance(event, Beams) and event.final:
                    output.beams.append(event)
                elif isinstance(event, Error):
                    raise GLMError(event.kind, event.message, field=event.field, limit=event.limit)
                elif isinstance(event, Done):
                    output.text, output.done = event.text, event
                    output.blanks = [fills[index] for index in sorted(fills)]  # whatever came first
        except asyncio.CancelledError:
            run.cancel()
            raise
        output.coloured = "" if live else self._colour(output)

    def _colour(self, output: Output) -> str:
        if self.options.chat:
            return output.text
        document = blanks.parse(output.input.text, self.tokenizer)
        text, start = "", 0
        for mask, fill in zip(document.masks, output.blanks, strict=True):
            text += document.text[start : mask.start] + (f"{_FILLED}{fill}{_PLAIN}" if self.colour and fill else fill)
            start = mask.end
        return text + document.text[start:]

    # Results

    def _prepare_output(self, path: Path | None) -> None:
        if path is None:
            return
        try:
            if path.is_dir() or not path.suffix:
                path.mkdir(parents=True, exist_ok=True)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise GLMError("bad_request", f"--output-path {path}: {error.strerror}.", field="output_path") from error

    def _write(self, output: Output) -> None:
        record = json.dumps(self._record(output), ensure_ascii=False)
        if self.options.json:
            sys.stdout.write(record + "\n")
        elif output.error is not None:
            if not isinstance(self.source, str):
                sys.stderr.write(f"{output.input.name}: {output.error}\n")
        else:
            sys.stdout.write((f"{output.input.name}\t" if self.options.with_id else "") + output.coloured + "\n")
            if self.options.print_all_beams:
                sys.stdout.write(_all_beams(output))
        sys.stdout.flush()
        if self.options.output_path is None:
            return
        text = record if self.options.json else output.text if output.error is None else f"error: {output.error}"
        if self._file is not None:
            self._file.write(
                (f"{output.input.name}\t" if self.options.with_id and not self.options.json else "") + text + "\n"
            )
            self._file.flush()
        else:
            ending = "json" if self.options.json else "txt"
            (self.options.output_path / f"{output.input.name}.{ending}").write_text(text + "\n", encoding="utf-8")

    def _record(self, output: Output) -> dict[str, Any]:
        record: dict[str, Any] = {"id": output.input.name} if self.options.with_id else {}
        record["input"] = output.input.text
        if output.error is not None:
            return record | {"error": {"kind": output.error.kind, "message": str(output.error)}}
        assert output.done is not None
        if output.beams:
            record["beams"] = [[asdict(beam) for beam in search.beams] for search in output.beams]
        return record | {
            "text": output.text,
            "blanks": output.blanks,
            "new_tokens": output.done.usage.new_tokens,
            "tokens_per_second": output.done.usage.tokens_per_second,
            "seed": output.done.seed,
            "model": output.done.fingerprint["model"],
        }


def _all_beams(output: Output) -> str:
    """A line for each beam of each blank."""
    lines = []
    for search in output.beams:
        blank = f"blank {search.blank + 1}, " if len(output.beams) > 1 else ""
        for number, beam in enumerate(search.beams):
            unfinished = "" if beam.ended else ", unfinished"
            lines.append(
                f"  {blank}beam {number} ({beam.score:.4f}{unfinished}): {json.dumps(beam.text, ensure_ascii=False)}\n"
            )
    return "".join(lines)
