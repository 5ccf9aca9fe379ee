"""Free slots and the prompts that they still hold; regenerating without reading."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.glm import blanks, checkpoint
from engine.glm.blanks import Prompt
from engine.glm.model import GLM
from engine.glm.tokenizer import Tokenizer
from engine.serving.pool import Pool
from engine.serving.protocol import Limits, Request, Sampling
from engine.serving.runner import Runner
from engine.serving.sampling import Sampler
from engine.serving.scheduler import Plan, Scheduler
from engine.serving.slots import Slots
from engine.serving.text import never_generated
from tests.lively import make_lively_model


def prompt_of(*ids: int) -> Prompt:
    return Prompt(ids, tuple(range(len(ids))), len(ids) - 1, len(ids), 1)


def test_what_holds_nothing_is_taken_first() -> None:
    slots = Slots(3, retain=True)
    a, b, c = prompt_of(1, 2), prompt_of(1, 3), prompt_of(1, 4)
    assert slots.take(1, a) == ((0,), False)
    slots.give(0, a)
    assert slots.take(1, b) == ((1,), False) and slots.take(1, c) == ((2,), False)
    slots.give(2, c)
    slots.give(1, b)
    assert len(slots) == 3
    assert slots.take(1, prompt_of(9)) == ((0,), False), "the one that was left longest ago"
    assert slots.take(1, b) == ((1,), True)
    assert slots.take(1, b) == ((2,), False), "it is in use"
    assert len(slots) == 0


def test_alternatives_begin_with_the_slot_that_holds_the_prompt() -> None:
    slots = Slots(4, retain=True)
    taken, _ = slots.take(3)
    for slot in taken:
        slots.give(slot, prompt_of(5))  # three copies: one is kept
    assert slots.take(4, prompt_of(5)) == ((2, 0, 1, 3), True)


def test_without_retaining_nothing_is_found() -> None:
    slots = Slots(2, retain=False)
    slots.take(1)
    slots.give(0, prompt_of(5))
    assert slots.take(1, prompt_of(5)) == ((0,), False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("lively") / "model", vocabulary_file)


@pytest.fixture(scope="module")
def model(folder: Path) -> GLM:
    return checkpoint.load(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


class Server:
    """Scheduler, runner and sampler of a worker, one request after the other."""

    def __init__(self, model: GLM, tokenizer: Tokenizer, slots: int = 4) -> None:
        config = model.config
        limits = Limits("lively", "", "fp32", "cpu", "", config.positions, slots, config.vocabulary, 1)
        self.scheduler = Scheduler(limits, tokenizer, retain=True)
        self.runner = Runner(model, slots, config.positions)
        never = never_generated(tokenizer, config.vocabulary)
        self.sampler = Sampler(config.vocabulary, never, tokenizer.eop, torch.device("cpu"))
        self.tokenizer = tokenizer

    def ask(self, *requests: Request, until: int | None = None) -> tuple[dict[str, list[tuple[int, ...]]], list[Plan]]:
        """What they made, and the plans. until: steps, then all are cancelled."""
        for request in requests:
            self.scheduler.add(request)
        plans, made = [], {}
        while (plan := self.scheduler.plan()) is not None:
            plans.append(plan)
            step = self.scheduler.book(plan, self.runner.run(plan, self.sampler, self.tokenizer.end_ids))
            made |= {end.id: [result.ids for result in end.results] for end in step.ends}
            if len(plans) == until:
                for request in requests:
                    self.scheduler.cancel(request.id)
        return made, plans


def request(tokenizer: Tokenizer, name: str, text: str, seed: int, alternatives: int = 1) -> Request:
    document = blanks.parse(text, tokenizer)
    prompt = blanks.prompt(document.ids, document.masks[0].index, tokenizer)
    return Request(name, prompt, Sampling(temperature=1.0, max_new_tokens=6, seed=seed), alternatives)


@pytest.mark.parametrize("text", ["The [MASK] is here.", "It was a long [gMASK]", "Once. [sMASK] Then."])
def test_another_answer_without_reading(model: GLM, tokenizer: Tokenizer, text: str) -> None:
    """As if the prompt had been read, for each kind of blank, and for several answers at once."""
    server = Server(model, tokenizer)
    first, plans = server.ask(request(tokenizer, "a", text, seed=1))
    assert len(plans[0].prompts) == 1 and [job.request.id for job in plans[0].begun] == ["a"]
    again, plans = server.ask(request(tokenizer, "b", text, seed=1))
    assert again["b"] == first["a"]
    assert all(not plan.prompts for plan in plans) and [job.request.id for job in plans[0].begun] == ["b"]
    three, plans = server.ask(request(tokenizer, "c", text, seed=7, alternatives=3))
    assert all(not plan.prompts for plan in plans) and len(plans[0].copies) == 2
    fresh, _ = Server(model, tokenizer).ask(request(tokenizer, "c", text, seed=7, alternatives=3))
    assert three == fresh


def test_a_stopped_answer_leaves_its_prompt(model: GLM, tokenizer: Tokenizer) -> None:
    server = Server(model, tokenizer)
    _, plans = server.ask(request(tokenizer, "a", "The [MASK] is here.", seed=1), until=3)
    assert len(plans) == 3
    again, plans = server.ask(request(tokenizer, "b", "The [MASK] is here.", seed=1))
    assert all(not plan.prompts for plan in plans)
    fresh, _ = Server(model, tokenizer).ask(request(tokenizer, "b", "The [MASK] is here.", seed=1))
    assert again == fresh


def test_among_others(model: GLM, tokenizer: Tokenizer) -> None:
    """Known and new prompts together, more than there are slots, are answered as each one alone."""
    server = Server(model, tokenizer)
    texts = [f"The {word} [MASK] is here." for word in ("old", "new", "big", "red", "sad")]
    for number, text in enumerate(texts):
        server.ask(request(tokenizer, f"before {number}", text, seed=number))
    requests = [
        request(tokenizer, f"{round_}-{number}", text, seed=10 * round_ + number, alternatives=1 + number % 2)
        for round_ in range(3)
        for number, text in enumerate(texts)
    ]
    together, plans = server.ask(*requests)
    assert sum(len(plan.begun) for plan in plans) == len(requests)
    assert sum(len(plan.read_jobs()) for plan in plans) < len(requests)
    for one in requests:
        alone, _ = Server(model, tokenizer).ask(one)
        assert alone[one.id] == together[one.id]


async def test_a_pool_regenerates(folder: Path, tokenizer: Tokenizer) -> None:
    """Through a worker's process: the same seed gives the same answer, another one another."""
    async with Pool(folder, threads=1, slots=2) as pool:
        found = []
        for number, seed in enumerate((3, 3, 4)):
            stream = pool.stream(request(tokenizer, f"r{number}", "It was a long [gMASK]", seed=seed))
            found.append([event async for event in stream][-1].results[0].ids)
    assert found[0] == found[1] != found[2]
