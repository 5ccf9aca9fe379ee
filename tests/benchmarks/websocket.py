"""What lies between the model and a client: tokens a second at the websocket against the bare loop of model and sampler, in turns.

    python -m tests.benchmarks.websocket

The server is `python -m app` on the embedded model as it starts by itself; 16 texts are continued at once over one socket. The
bare loop has as many rows, the same sampling and as many threads, and nothing else: no scheduler, no text, no pipe, no record,
no socket. The client runs on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from websockets.asyncio.client import connect

from engine.glm.allocator import with_large_pages
from tests.server import Program

ROWS, NEW = 16, 300
TEXT = "Once upon a time there was a king who had three sons, and the youngest of them"
BARE = """
import sys, time, torch
from engine.glm.allocator import keep_freed_memory
from engine.serving.bench import random_readings
from engine.serving.job import Ask
from engine.serving.runner import Runner
from engine.serving.sampling import Sampler
from engine.serving.speed import load

threads, rows, new = map(int, sys.argv[1:])
torch.set_num_threads(threads)
model = load(None, "embedded", "fp32")
keep_freed_memory()
runner = Runner(model, rows, model.config.positions)
sampler = Sampler(model.config.vocabulary, (), 0, model.device)
asks = [Ask(1.0, 50, 1.0, 1.0, (), (), (row + 0.5) / rows, 0) for row in range(rows)]
for line in sys.stdin:
    state = runner.read(random_readings(model, rows, 24))
    runner.advance(state)
    tokens = [choice.token for choice in sampler(runner.logits(state), asks)]
    began = time.perf_counter()
    for column in range(25, 25 + new - 1):
        state = runner.step(range(rows), tokens, [column] * rows, [column] * rows)
        runner.advance(state)
        tokens = [choice.token for choice in sampler(runner.logits(state), asks)]
    print((time.perf_counter() - began) / (new - 1), flush=True)
"""


async def stream(url: str) -> tuple[float, float]:
    """(tokens a second of all rows, from the first to the last; seconds to the first one)."""
    parameters = {"temperature": 1.0, "top_k": 50, "max_new_tokens": NEW, "min_new_tokens": NEW}
    async with connect(url, max_size=None, compression=None) as socket:
        began = first = time.perf_counter()
        for number in range(ROWS):
            message = {"type": "generate", "id": number, "text": TEXT, "parameters": parameters | {"seed": number}}
            await socket.send(json.dumps(message))
        made = done = 0
        async for raw in socket:
            event = json.loads(raw)
            if event["type"] == "delta" and first == began:
                first = time.perf_counter()
            if event["type"] == "error":
                raise SystemExit(f"the server said {event['kind']}")
            if event["type"] == "done":
                made += event["usage"]["new_tokens"]
                done += 1
                if done == ROWS:
                    break
        return made / (time.perf_counter() - first), first - began


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.websocket", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--threads", type=int, default=1, help="of the model (default: 1, as the server takes on 2 cores)"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        server = Program(Path("embedded"), Path(folder) / "glm.sqlite", "--threads", str(options.threads))
        server.wait_until_ready()
        ready = time.perf_counter() - began
        bare = subprocess.Popen(
            [sys.executable, "-c", BARE, str(options.threads), str(ROWS), str(NEW)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=with_large_pages(os.environ),  # as the server's worker has it
        )
        assert bare.stdin is not None and bare.stdout is not None
        try:
            steps, rates, firsts = [], [], []
            for _ in range(options.rounds):
                bare.stdin.write("\n")
                bare.stdin.flush()
                steps.append(float(bare.stdout.readline()))
                rate, first = asyncio.run(stream(server.ws))
                rates.append(rate)
                firsts.append(first)
        finally:
            bare.kill()
            server.stop()
    loop, socket = ROWS / statistics.median(steps), statistics.median(rates)
    between = ROWS / socket - ROWS / loop
    sys.stdout.write(
        f"start to ready: {ready:.1f} s\nbare loop: {loop:.0f} tokens/s ({1000 * ROWS / loop:.2f} ms a step of {ROWS})\n"
        f"websocket: {socket:.0f} tokens/s, {socket / loop:.0%} of it ({1000 * between:.2f} ms more a step); first token after "
        f"{1000 * statistics.median(firsts):.0f} ms with {ROWS} prompts at once\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
