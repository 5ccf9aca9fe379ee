"""How many runs a second the record takes, each accepted, started and finalised with its text, tokens and log-probabilities.

    python -m tests.benchmarks.record [--seconds 10] [--writers 64] [--rows 100000] [--database URL]

Without `--database`: a new SQLite file, then a PostgreSQL of its own where its programs are installed, both with every promise
of durability kept (fsync on). Texts are English and Chinese in turns, lengths as chats have them. `--rows` measures again when
the database has so many runs more. The writers share the machine's cores with the database, and with what it prints.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from itertools import count
from typing import Any

from sqlalchemy import insert

from storage import Database, FilledBlank, Record
from storage.models import Blank, Run
from tests import postgres

ENGLISH = (
    "Once upon a time there was a king who had three sons, and the youngest of them was thought to be a fool. "
    "The weather in the mountains changes quickly, so take a warm coat even in July. "
    "To sort a list of numbers, compare each with its neighbour and exchange them where they stand the wrong way round. "
)
CHINESE = (
    "从前有一位国王，他有三个儿子，大家都以为最小的那个是傻子。山里的天气变得很快，即使在七月也要带上厚外套。"
    "要把一列数字排好顺序，就把每个数字和它旁边的比较，次序不对就交换位置。"
)
FINGERPRINT = {"weights_hash": "0" * 64, "precision": "fp32", "device": "cpu", "version": "1"}
PARAMETERS = {"temperature": 0.6, "top_k": 40, "top_p": 0.9, "max_new_tokens": 512}
BATCH = 2000


class Texts:
    """Requests and answers of chats: a prompt of up to three messages, an answer of 20 to 400 tokens, drawn with a seed."""

    def __init__(self) -> None:
        self._random = random.Random(1)

    def words(self, tokens: int) -> str:
        source = self._random.choice((ENGLISH, CHINESE))
        begin = self._random.randrange(len(source))
        characters = tokens * (4 if source is ENGLISH else 2)
        return (source[begin:] + source * (characters // len(source) + 1))[:characters]

    def prompt(self) -> list[dict[str, str]]:
        messages = self._random.choice((1, 1, 3))
        roles = ("user", "assistant", "user")
        return [{"role": role, "content": self.words(self._random.randint(10, 120))} for role in roles[:messages]]

    def blank(self) -> FilledBlank:
        tokens = min(400, int(self._random.lognormvariate(4.5, 0.8)) + 20)
        ids = [self._random.randrange(10_000) for _ in range(tokens)]
        logprobs = [-self._random.expovariate(1.0) for _ in range(tokens)]
        return FilledBlank(0, "[gMASK]", self.words(tokens), ids, logprobs)


async def write_runs(
    record: Record, writers: int, seconds: float, run: str
) -> tuple[float, float, list[float], list[float]]:
    """(runs a second, processor seconds of this process a run, seconds that each acceptance took, seconds of each end)."""
    texts = Texts()
    visitors = [f"visitor {number:033d}" for number in range(writers)]
    conversations = [await record.create_conversation(visitor, "chat", "A title") for visitor in visitors]
    # Drawn before: what it costs to make up a text is no cost of the record.
    prompts = [texts.prompt() for _ in range(512)]
    blanks = [texts.blank() for _ in range(512)]
    accepts: list[float] = []
    ends: list[float] = []
    numbers = count()
    deadline = time.perf_counter() + seconds

    async def write(visitor: str, conversation: str) -> None:
        while time.perf_counter() < deadline:
            number = next(numbers)
            id, blank = f"{run}-{number:015d}", blanks[number % 512]
            began = time.perf_counter()
            await record.accept_run(
                id,
                visitor=visitor,
                mode="chat",
                prompt=prompts[number % 512],
                parameters=PARAMETERS,
                conversation=conversation,
                seed=number,
            )
            accepts.append(time.perf_counter() - began)
            await record.start_run(id)
            began = time.perf_counter()
            await record.finalise_run(
                id,
                "done",
                output=blank.text,
                blanks=[blank],
                finish_reason="stop",
                prompt_tokens=50,
                new_tokens=len(blank.token_ids),
                largest_batch=16,
                queue_milliseconds=3.5,
                first_token_milliseconds=20.25,
                total_milliseconds=900.5,
                fingerprint=FINGERPRINT,
            )
            ends.append(time.perf_counter() - began)

    began, busy = time.perf_counter(), time.process_time()
    await asyncio.gather(*map(write, visitors, conversations))
    busy = (time.process_time() - busy) / len(ends)
    return len(ends) / (time.perf_counter() - began), busy, accepts, ends


async def fill(record: Record, rows: int) -> None:
    """Add finished runs of past days, quickly."""
    texts = Texts()
    prompts, blanks, now = [texts.prompt() for _ in range(512)], [texts.blank() for _ in range(512)], record.clock()

    async def some(session: Any, begin: int, end: int) -> None:
        made: list[dict[str, Any]] = []
        for number in range(begin, end):
            blank, moment = blanks[number % 512], now - timedelta(seconds=60 * (rows - number))
            made.append(
                {
                    "id": f"past-{number:019d}",
                    "visitor": f"visitor {number % 5000:033d}",
                    "client": "web",
                    "server": "server",
                    "mode": "chat",
                    "prompt": prompts[number % 512],
                    "parameters": PARAMETERS,
                    "seed": number,
                    "fingerprint": FINGERPRINT,
                    "repaired": False,
                    "status": "done",
                    "output": blank.text,
                    "finish_reason": "stop",
                    "prompt_tokens": 50,
                    "new_tokens": len(blank.token_ids),
                    "mean_logprob": -1.0,
                    "created": moment,
                    "finished": moment,
                }
            )
        await session.execute(insert(Run.__table__), made)
        columns = ("index", "kind", "text", "token_ids", "logprobs", "alternatives")
        filled = [
            {name: getattr(blanks[number % 512], name) for name in columns} | {"run_id": f"past-{number:019d}"}
            for number in range(begin, end)
        ]
        await session.execute(insert(Blank.__table__), filled)

    for begin in range(0, rows, BATCH):
        await record.database.write(lambda session, begin=begin: some(session, begin, min(rows, begin + BATCH)))


def shown(seconds: list[float]) -> str:
    percentiles = statistics.quantiles(seconds, n=100)
    return f"p50 {percentiles[49] * 1000:6.1f} ms  p95 {percentiles[94] * 1000:6.1f} ms  p99 {percentiles[98] * 1000:6.1f} ms"


async def measure(address: str, options: argparse.Namespace) -> None:
    record = Record(Database(address))
    await record.database.migrate()
    for rows in (0, options.rows) if options.rows else (0,):
        if rows:
            began = time.perf_counter()
            await fill(record, rows)
            print(f"  {rows:,} runs added in {time.perf_counter() - began:.0f} s")
        speed, busy, accepts, ends = await write_runs(record, options.writers, options.seconds, f"run{rows}")
        print(f"  {rows:,} runs before: {speed:.0f} runs/s, {busy * 1000:.1f} ms of one core a run")
        print(f"    accept    {shown(accepts)}\n    finalise  {shown(ends)}", flush=True)
    await record.database.close()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.record",
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--writers", type=int, default=64, help="runs under way at the same time")
    parser.add_argument("--rows", type=int, default=100_000, help="runs that are there before the second measurement")
    parser.add_argument("--database", help="an empty database of your own instead")
    options = parser.parse_args(arguments)
    if options.database:
        print(options.database.partition(":")[0])
        asyncio.run(measure(options.database, options))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        print("SQLite")
        asyncio.run(measure(f"{folder}/glm.sqlite3", options))
    if postgres.installed() is None:
        print(postgres.NO_SERVER)
        return 0
    server = postgres.Server(postgres.installed(), durable=True)
    try:
        print("PostgreSQL")
        asyncio.run(measure(server.url.render_as_string(hide_password=False), options))
    finally:
        server.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
