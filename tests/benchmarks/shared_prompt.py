"""What several answers to one prompt cost against one: alternatives share its reading, another answer later needs none.

    python -m tests.benchmarks.shared_prompt

At 330M parameters with random weights, scheduler, runner and sampler in a loop as a worker has them: a prompt of 512 tokens, 16
tokens an answer; each case three times, in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch

from engine.glm.allocator import keep_freed_memory, with_large_pages
from engine.glm.blanks import Prompt
from engine.glm.config import EMBEDDED, resolve_model
from engine.glm.tokenizer import Tokenizer
from engine.serving.protocol import Limits, Request, Sampling
from engine.serving.runner import Runner
from engine.serving.sampling import Sampler
from engine.serving.scheduler import Scheduler
from engine.serving.speed import load

PROMPT, NEW, ALTERNATIVES = 512, 16, 8


class Worker:
    def __init__(self, preset: str, precision: str) -> None:
        self.tokenizer = Tokenizer.load(resolve_model(EMBEDDED))
        model = load(preset, None, precision)
        config = model.config
        limits = Limits(config.name, "", "", "", "", PROMPT + NEW + 2, ALTERNATIVES, config.vocabulary, 1)
        self.scheduler = Scheduler(limits, self.tokenizer, retain=True)
        self.runner = Runner(model, ALTERNATIVES, PROMPT + NEW + 2)
        self.sampler = Sampler(config.vocabulary, (), self.tokenizer.eop, model.device)
        self.number = 0

    def seconds(self, alternatives: int, prompt: int) -> float:
        """To answer a prompt of a number: the same number, the same prompt."""
        random = torch.Generator().manual_seed(prompt)
        ids = tuple(torch.randint(300, 9000, (PROMPT + 1,), generator=random).tolist())
        self.number += 1
        sampling = Sampling(temperature=1.0, max_new_tokens=NEW, min_new_tokens=NEW, seed=self.number)
        asked = Prompt(ids, tuple(range(PROMPT + 1)), PROMPT, PROMPT, 1)
        began = time.perf_counter()
        self.scheduler.add(Request(str(self.number), asked, sampling, alternatives))
        while (plan := self.scheduler.plan()) is not None:
            self.scheduler.book(plan, self.runner.run(plan, self.sampler, self.tokenizer.end_ids))
        return time.perf_counter() - began


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.shared_prompt", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--preset", default="glm-330m")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if os.environ.get("GLIBC_TUNABLES") != with_large_pages(os.environ)["GLIBC_TUNABLES"]:  # a worker starts with them
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.benchmarks.shared_prompt", *arguments],
            with_large_pages(os.environ),
        )
    torch.set_num_threads(options.threads)
    worker = Worker(options.preset, options.precision)
    keep_freed_memory()
    worker.seconds(1, 0)
    cases: dict[str, Callable[[int], float]] = {
        "one answer": lambda number: worker.seconds(1, 2 * number),
        f"{ALTERNATIVES} alternatives": lambda number: worker.seconds(ALTERNATIVES, 2 * number + 1),
        "another answer": lambda number: worker.seconds(1, 2 * number + 1),
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(1, options.rounds + 1):
        for name, case in cases.items():
            found[name].append(case(number))
    one = statistics.median(found["one answer"])
    for name, seconds in found.items():
        sys.stdout.write(f"{name}: {statistics.median(seconds):.2f} s, {statistics.median(seconds) / one:.2f}x\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
