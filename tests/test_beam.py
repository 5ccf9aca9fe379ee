"""Beam search: against a search without a cache, what the beams share, how it ends, and what is refused."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from engine.errors import GLMError
from engine.glm import blanks, checkpoint
from engine.glm.blanks import Prompt
from engine.glm.model import GLM
from engine.glm.tokenizer import Tokenizer
from engine.serving import protocol
from engine.serving.beam import BeamAsk, BeamSearch, Candidate
from engine.serving.events import Beams as BeamsEvent
from engine.serving.events import Blank, Cancelled, Delta, Done, Event
from engine.serving.generate import chat, fill
from engine.serving.pool import Pool
from engine.serving.protocol import Beams, Limits, Request, Result, Sampling
from engine.serving.run import Run
from engine.serving.runner import Runner
from engine.serving.sampling import Sampler
from engine.serving.scheduler import Scheduler
from engine.serving.text import never_generated
from engine.serving.work import Reading, Tree, Work
from tests.command_line import call
from tests.lively import make_lively_model
from tests.test_cli_generate import run as run_command

POSITIONS = 64
TEXTS = (
    "The capital of [MASK] is Tokyo.",
    "One two three [gMASK]",
    "床前明月光，[sMASK]。低头思故乡。",
    "a[gMASK]",
)
PARAMETERS = (
    {"beams": Beams(4)},
    {"beams": Beams(3, length_penalty=0.7), "no_repeat_ngram": 2, "min_new_tokens": 3},
    {"beams": Beams(2, length_penalty=-0.5), "no_repeat_ngram": 1},
    {"beams": Beams(5, length_penalty=2.0), "no_repeat_ngram": 3, "banned_ids": (300, 301, 302)},
    {"beams": Beams(4, consider_end=False), "min_new_tokens": 9},
    {"beams": Beams(1, length_penalty=0.0)},
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("lively"), vocabulary_file, positions=POSITIONS)


@pytest.fixture(scope="module")
def model(folder: Path) -> GLM:
    """With end tokens that are likely enough for beams to end."""
    model = checkpoint.load(folder).requires_grad_(False)
    tokenizer = Tokenizer.load(folder)
    model.final_layernorm.bias[:] = 1.5 * model.word_embeddings.weight[tokenizer.eop]
    return model


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def never(model: GLM, tokenizer: Tokenizer) -> list[int]:
    return never_generated(tokenizer, model.config.vocabulary)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[Prompt]:
    found = []
    for text in TEXTS:
        document = blanks.parse(text, tokenizer)
        found.append(blanks.prompt(document.ids, document.masks[-1].index, tokenizer))
    return found


def make_request(name: str, prompt: Prompt, **sampling) -> Request:
    values = {"seed": 3, "max_new_tokens": 10} | sampling
    return Request(name, prompt, Sampling(**values))


# The whole, against a search that knows nothing of caches


@dataclass
class Answer:
    tokens: tuple[int, ...]
    score: float
    end: bool = False


def search_without_cache(
    model: GLM, request: Request, never: Sequence[int], ends: Sequence[int]
) -> tuple[list[Answer], bool]:
    """The answers best first, and whether the search was satisfied, as the published description has it: one full forward pass
    for each beam and step."""
    sampling, beams = request.sampling, request.sampling.beams
    assert beams is not None and sampling.max_new_tokens is not None
    prompt_length = len(request.prompt.ids)

    def penalised(score: float, tokens: int) -> float:
        return score / ((5 + prompt_length + tokens) / 6) ** beams.length_penalty

    live, ended = [Answer((), 0.0)], []
    satisfied = False
    for step in range(sampling.max_new_tokens):
        options = []
        for answer in live:
            logits = full_logits(model, request.prompt, answer.tokens).double()
            banned = {*never, *sampling.banned_ids, *(ends if step < sampling.min_new_tokens else ())}
            banned |= repeated(request.prompt.ids, answer.tokens, sampling.no_repeat_ngram)
            logits[list(banned)] = -math.inf
            logprobs = logits.log_softmax(dim=-1)
            values, tokens = logprobs.topk((len(ends) + 1) * beams.count)
            options += [
                (answer.score + value, answer, token)
                for value, token in zip(values.tolist(), tokens.tolist(), strict=True)
            ]
        options.sort(key=lambda option: -option[0])
        live = []
        for score, parent, token in options[: (len(ends) + 1) * beams.count]:
            if token in ends:
                ended.append((penalised(score, len(parent.tokens) + 1), Answer(parent.tokens, score, end=True)))
                ended.sort(key=lambda entry: -entry[0])
                del ended[beams.count :]
            elif len(live) < beams.count:
                live.append(Answer((*parent.tokens, token), score))
            else:
                break
        best = max(penalised(answer.score, step + 1) for answer in live)
        if len(ended) == beams.count and ended[-1][0] >= best:
            satisfied = True
            break
    if not beams.consider_end:
        return live, satisfied
    if not satisfied:
        ended += [(penalised(answer.score, len(answer.tokens)), answer) for answer in live]
        ended.sort(key=lambda entry: -entry[0])
    return [answer for _, answer in ended[: beams.count]], satisfied


def full_logits(model: GLM, prompt: Prompt, tokens: Sequence[int]) -> torch.Tensor:
    ids = [*prompt.ids, *tokens]
    positions = [*prompt.positions, *(prompt.position(j) for j in range(len(tokens)))]
    with torch.no_grad():
        return model(torch.tensor([ids]), torch.tensor([positions]), torch.tensor([prompt.context_length]))[0, -1]


def repeated(prompt: Sequence[int], tokens: Sequence[int], length: int) -> set[int]:
    """By looking at every n-gram that ends in a generated token."""
    if not length:
        return set()
    ids = [*prompt, *tokens]
    ngrams = {tuple(ids[end - length : end]) for end in range(len(prompt) + 1, len(ids) + 1) if end >= length}
    return {ngram[-1] for ngram in ngrams if list(ngram[:-1]) == ids[len(ids) - length + 1 :]}


class Engine:
    """Scheduler, runner and sampler, without processes. Keeps what was announced to other ranks."""

    def __init__(self, model: GLM, tokenizer: Tokenizer, never: Sequence[int], slots: int = 9) -> None:
        config = model.config
        self.limits = Limits("lively", "", "fp32", "cpu", "", config.positions, slots, config.vocabulary, 1)
        self.scheduler = Scheduler(self.limits, tokenizer)
        self.works: list[Work] = []
        self.runner = Runner(model, slots, config.positions, self.works.append)
        self._sampler = Sampler(config.vocabulary, list(never), tokenizer.eop, model.device)
        self._end_ids = tokenizer.end_ids
        self.results: dict[str, tuple[Result, ...]] = {}
        self.failed: dict[str, str] = {}
        self.largest = 0

    def step(self) -> bool:
        """False when there is nothing to do."""
        plan = self.scheduler.plan()
        if plan is None:
            return False
        step = self.scheduler.book(plan, self.runner.run(plan, self._sampler, self._end_ids))
        for end in step.ends:
            if isinstance(end, protocol.Finished):
                self.results[end.id] = end.results
                self.largest = max(self.largest, end.largest_batch)
            else:
                assert isinstance(end, protocol.Failed)
                self.failed[end.id] = end.error.kind
        return True

    def run(self, *requests: Request) -> dict[str, tuple[Result, ...]]:
        for request in requests:
            self.scheduler.add(request)
        while self.step():
            pass
        assert self.scheduler.free_slots == self.limits.slots
        return self.results


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda values: json.dumps(values, default=str))
def test_it_is_the_search_without_a_cache(
    model: GLM, tokenizer: Tokenizer, never: list[int], prompts: list[Prompt], parameters: dict
) -> None:
    requests = [make_request(f"{number}", prompt, **parameters) for number, prompt in enumerate(prompts)]
    engine = Engine(model, tokenizer, never)
    found = engine.run(*requests)
    assert engine.largest > parameters["beams"].count  # they ran in one batch
    satisfied = set()
    for request in requests:
        expected, done = search_without_cache(model, request, never, tokenizer.end_ids)
        satisfied.add(done)
        results = found[request.id]
        assert [result.ids for result in results] == [answer.tokens for answer in expected]
        assert [result.logprob for result in results] == pytest.approx([answer.score for answer in expected], abs=1e-4)
        assert [result.reason == "stop" for result in results] == [answer.end for answer in expected]
        scores = [result.score for result in results]
        assert scores == sorted(scores, reverse=True)
    if parameters["beams"] == Beams(4):
        assert satisfied == {True, False}, "both ways to end are to be seen"


def test_over_several_slots(model: GLM, tokenizer: Tokenizer, never: list[int], prompts: list[Prompt]) -> None:
    """Beams whose tokens go on in another slot, which need not be the next one."""
    request = make_request("wide", prompts[0], beams=Beams(8), max_new_tokens=20, min_new_tokens=20)
    assert request.slots(POSITIONS) == 3
    engine = Engine(model, tokenizer, never, slots=6)
    engine.scheduler.add(make_request("before", prompts[1], max_new_tokens=2))
    engine.scheduler.add(make_request("between", prompts[2], max_new_tokens=45, min_new_tokens=45))
    for _ in range(4):  # the first one's slot is free again
        engine.step()
    found = engine.run(request)
    expected, _ = search_without_cache(model, request, never, tokenizer.end_ids)
    assert [result.ids for result in found["wide"]] == [answer.tokens for answer in expected]
    [tree, *_] = [tree for work in engine.works for tree in work.trees]
    assert tree.slots == (0, 2, 3)


def test_beams_share_the_prompt_and_copy_nothing(
    model: GLM, tokenizer: Tokenizer, never: list[int], prompts: list[Prompt]
) -> None:
    request = make_request("shared", prompts[0], beams=Beams(4), max_new_tokens=10, min_new_tokens=10)
    assert request.slots(POSITIONS) == 1
    engine = Engine(model, tokenizer, never)
    engine.run(request)
    assert [len(work.readings) for work in engine.works] == [1] + [0] * 9
    assert not any(work.copies for work in engine.works)
    read = len(request.prompt.ids)
    written = (engine.runner.cache.keys != 0).any(dim=(0, 2, 4)).sum().item()
    assert written == read + 9 * 4  # each token once; the last ones are not read
    paths = [path for work in engine.works for tree in work.trees for path in tree.paths]
    assert any(set(path) & set(other) for path, other in zip(paths, paths[1:], strict=False))


def test_one_row_among_others(model: GLM, tokenizer: Tokenizer, never: list[int], prompts: list[Prompt]) -> None:
    """Searches and sampled rows in the same steps disturb each other nowhere."""
    requests = []
    for number in range(12):
        prompt = prompts[number % len(prompts)]
        if number % 2:
            beams = Beams(2 + number % 3, sampled=number % 4 == 1)
            requests.append(make_request(f"{number}", prompt, beams=beams, seed=number, max_new_tokens=4 + number))
        else:
            sampling = Sampling(seed=number, max_new_tokens=6 + number)
            requests.append(Request(f"{number}", prompt, sampling, alternatives=1 + number % 3))
    together = Engine(model, tokenizer, never, slots=5).run(*requests)
    assert len(together) == len(requests)
    for request in requests:
        alone = Engine(model, tokenizer, never).run(request)[request.id]
        assert [result.ids for result in alone] == [result.ids for result in together[request.id]]


def test_random_traffic_leaves_nothing_behind(
    model: GLM, tokenizer: Tokenizer, never: list[int], prompts: list[Prompt]
) -> None:
    dice = random.Random(5)
    engine = Engine(model, tokenizer, never, slots=6)
    open_ids, cancelled, number = [], set(), 0
    for _ in range(150):
        if dice.random() < 0.3:
            beams = Beams(dice.randint(1, 6)) if dice.random() < 0.6 else None
            tokens = dice.randint(1, 20)
            sampling = Sampling(seed=number, max_new_tokens=tokens, beams=beams)
            alternatives = 1 if beams else dice.randint(1, 3)
            engine.scheduler.add(Request(f"{number}", dice.choice(prompts), sampling, alternatives))
            open_ids.append(f"{number}")
            number += 1
        if open_ids and dice.random() < 0.1 and engine.scheduler.cancel(name := dice.choice(open_ids)):
            cancelled.add(name)
        engine.step()
    while engine.step():
        pass
    assert len(cancelled) > 3 and set(engine.results) == set(open_ids) - cancelled and not engine.failed
    assert engine.scheduler.free_slots == 6 and engine.scheduler.idle


def test_a_tree_is_read_as_each_beam_alone(
    model: GLM, tokenizer: Tokenizer, never: list[int], prompts: list[Prompt]
) -> None:
    """Two beams that part and one that joins: every row's logits are those of its own path."""
    runner = Runner(model, 3, POSITIONS)
    prompt = prompts[0]
    state = runner.read([Reading(prompt, 1)])
    runner.advance(state)
    steps = [((7, 8, 9), ((0,), (1,), (2,))), ((17, 18, 19), ((1, 3), (1, 4), (0, 5)))]
    texts = [[(7,), (8,), (9,)], [(8, 17), (8, 18), (7, 19)]]
    for number, ((tokens, paths), beams) in enumerate(zip(steps, texts, strict=True)):
        tree = Tree((1,), len(prompt.ids), 3 * number, prompt.position(number), tokens, paths)
        state = runner.step((), (), (), (), (tree,))
        runner.advance(state)
        for row, beam in zip(runner.logits(state), beams, strict=True):
            assert (row - full_logits(model, prompt, beam)).abs().max() < 1e-4


# Candidates


def sampler_of(size: int, never: Sequence[int] = ()) -> Sampler:
    return Sampler(size, list(never), 0, torch.device("cpu"))


def test_drawn_candidates_have_their_probabilities() -> None:
    """Without replacement: the first of two draws as it is, the pair by the chain rule."""
    logits = torch.tensor([[0.0, 1.0, 2.0, 0.5, -1.0]])
    probabilities = logits[0].softmax(dim=-1).tolist()
    draws, counts = 6000, {}
    sampler = sampler_of(5)
    for seed in range(draws):
        pair = sampler.expand(logits, BeamAsk(2, (0.0,), ((),), seed))
        assert pair[0].score >= pair[1].score and pair[0].token != pair[1].token
        key = frozenset(candidate.token for candidate in pair)
        counts[key] = counts.get(key, 0) + 1
    for first in range(5):
        for second in range(first):
            p, q = probabilities[first], probabilities[second]
            expected = p * q / (1 - p) + q * p / (1 - q)
            deviation = math.sqrt(draws * expected * (1 - expected))
            assert abs(counts.get(frozenset((first, second)), 0) - draws * expected) < 4.5 * deviation


def test_candidates_are_over_all_beams_and_never_banned() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]])
    found = sampler_of(4, never=[0]).expand(logits, BeamAsk(8, (-1.0, -0.5), ((3,), ()), None))
    assert [(candidate.parent, candidate.token) for candidate in found] == [(1, 1), (0, 2), (1, 2), (0, 1), (1, 3)]
    first = torch.tensor([1.0, 2.0]).log_softmax(dim=-1).tolist()
    assert found[1].logprob == pytest.approx(first[1]) and found[1].score == pytest.approx(first[1] - 1)
    assert all(candidate.finite for candidate in found)


def test_everything_banned_ends_the_best_beam() -> None:
    found = sampler_of(3, never=[1, 2]).expand(torch.zeros(2, 3), BeamAsk(4, (-1.0, -2.0), ((0,), (0,)), None))
    [candidate] = found
    assert (candidate.parent, candidate.token) == (0, 0)
    assert candidate.score == pytest.approx(-1 - math.log(3))


def test_no_number_fails_the_request_and_cleans_its_slots(
    model: GLM, tokenizer: Tokenizer, never: list[int], prompts: list[Prompt]
) -> None:
    other = make_request("other", prompts[1])
    expected = Engine(model, tokenizer, never, slots=1).run(other)
    engine = Engine(model, tokenizer, never, slots=1)
    engine.scheduler.add(make_request("broken", prompts[0], beams=Beams(3)))
    engine.step()
    engine.runner.cache.values[1, 0, :, 2] = torch.nan
    engine.step()
    assert engine.failed == {"broken": "non_finite_logits"}
    assert engine.run(other) == expected


def test_a_search_without_candidates_left_ends(tokenizer: Tokenizer, prompts: list[Prompt]) -> None:
    request = make_request("short", prompts[0], beams=Beams(2, consider_end=False))
    search = BeamSearch(request, (0,), POSITIONS, tokenizer.end_ids, tokenizer)
    search.book([Candidate(0, tokenizer.eop, -1.0, -1.0)])
    assert search.done and [result.ids for result in search.results()] == [()]


# What is refused


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", {"temperature": 0.5}),
        ("top_k", {"top_k": 3}),
        ("top_p", {"top_p": 0.9}),
        ("repetition_penalty", {"repetition_penalty": 1.1}),
        ("stop", {"stop": ("x",)}),
        ("logprobs", {"logprobs": 2}),
        ("num_beams", {"beams": Beams(0)}),
        ("num_beams", {"beams": Beams(17)}),
        ("num_beams", {"beams": Beams(2.0)}),
        ("length_penalty", {"beams": Beams(2, length_penalty=math.nan)}),
        ("length_penalty", {"beams": Beams(2, length_penalty=11.0)}),
    ],
)
def test_what_beam_search_does_not_use_is_refused(prompts: list[Prompt], field: str, values: dict) -> None:
    limits = Limits("lively", "", "fp32", "cpu", "", POSITIONS, 4, 3000, 1)
    with pytest.raises(GLMError) as caught:
        protocol.check(make_request("x", prompts[0], **({"beams": Beams(2)} | values)), limits)
    assert (caught.value.kind, caught.value.field) == ("bad_request", field)


def test_beams_need_room(prompts: list[Prompt]) -> None:
    limits = Limits("lively", "", "fp32", "cpu", "", POSITIONS, 2, 3000, 1)
    length = len(prompts[0].ids)
    most = (2 * POSITIONS - length) // 16
    protocol.check(make_request("x", prompts[0], beams=Beams(16), max_new_tokens=most), limits)
    with pytest.raises(GLMError) as caught:
        protocol.check(make_request("x", prompts[0], beams=Beams(16), max_new_tokens=most + 1), limits)
    assert (caught.value.field, caught.value.limit) == ("max_new_tokens", most)
    with pytest.raises(GLMError) as caught:
        protocol.check(replace(make_request("x", prompts[0], beams=Beams(2)), alternatives=2), limits)
    assert caught.value.field == "alternatives"


# Through a worker process


in_module_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(folder: Path) -> AsyncIterator[Pool]:
    async with Pool(folder, threads=1, slots=6) as pool:
        yield pool


async def collect(run: Run) -> list[Event]:
    async with asyncio.timeout(60):
        return [event async for event in run]


@in_module_loop
async def test_events_of_a_fill(pool: Pool, tokenizer: Tokenizer) -> None:
    """Every beam of every blank is reported; the best is carried on; deltas and alternatives are as without beams."""
    sampling = Sampling(seed=1, max_new_tokens=9, min_new_tokens=6, beams=Beams(3))
    events = await collect(fill(pool, tokenizer, "One [MASK] two [sMASK] three.", sampling))
    *_, done = events
    assert isinstance(done, Done) and done.usage.largest_batch >= 3
    for index in range(2):
        news = [event for event in events if isinstance(event, BeamsEvent) and event.blank == index]
        assert [event.final for event in news] == [False] * (len(news) - 1) + [True]
        [blank] = [event for event in events if isinstance(event, Blank) and event.index == index]
        final = news[-1].beams
        assert len(final) == 3 and [beam.text for beam in final] == [other.text for other in blank.alternatives]
        assert [beam.logprob for beam in final] == [other.logprob for other in blank.alternatives]
        assert [beam.score for beam in final] == sorted((beam.score for beam in final), reverse=True)
        for number, other in enumerate(blank.alternatives):
            deltas = [event for event in events if isinstance(event, Delta) and event.blank == index]
            assert "".join(event.text for event in deltas if event.alternative == number) == other.text
        assert blank.text.strip() in done.text
    again = await collect(fill(pool, tokenizer, "One [MASK] two [sMASK] three.", sampling))
    assert again[-1].text == done.text


@in_module_loop
async def test_progress_is_told_and_a_cancelled_search_ends(pool: Pool, tokenizer: Tokenizer) -> None:
    sampling = Sampling(seed=1, max_new_tokens=40, min_new_tokens=40, beams=Beams(2))
    run = fill(pool, tokenizer, "Once [gMASK]", sampling)
    told = 0
    async with asyncio.timeout(60):
        async for event in run:
            if isinstance(event, BeamsEvent) and not event.final:
                told += 1
                assert len(event.beams) == 2 and all(beam.text for beam in event.beams)
                run.cancel()
    assert told >= 1 and isinstance(event, Cancelled)
    assert pool.status()["replicas"][0]["rows"] == 0


@in_module_loop
async def test_sampled_beams_follow_the_seed(pool: Pool, tokenizer: Tokenizer) -> None:
    async def text(seed: int) -> str:
        sampling = Sampling(seed=seed, max_new_tokens=8, min_new_tokens=8, beams=Beams(2, sampled=True))
        return (await collect(fill(pool, tokenizer, "Once [gMASK]", sampling)))[-1].text

    found = [await text(seed) for seed in (1, 2, 3, 1)]
    assert found[0] == found[3] and len(set(found)) == 3


@in_module_loop
async def test_the_default_length_is_cut_to_the_room(pool: Pool, tokenizer: Tokenizer, folder: Path) -> None:
    """256 tokens would be too many for 16 beams in 6 slots of 64; asked for expressly they are refused."""
    from engine.glm.config import CHAT

    events = await collect(chat(pool, tokenizer, [("user", "Hello")], Sampling(seed=1, beams=Beams(16)), CHAT))
    assert isinstance(events[-1], Done) and 0 < events[-1].usage.new_tokens <= 16 * 24


# The command


def test_command(folder: Path) -> None:
    text = "One [MASK] two [MASK]"
    flags = ("--sampling-strategy", "BeamSearchStrategy", "--num-beams", "3", "--length-penalty", "0.7")
    flags += ("--no-repeat-ngram-size", "3", "--min-gen-length", "2", "--max-new-tokens", "6", "--seed", "1")
    plain = run_command("generate", "--input-source", text, *flags, model=folder)
    shown = run_command("generate", "--input-source", text, *flags, "--print-all-beams", model=folder)
    as_json = run_command("generate", "--input-source", text, *flags, "--json", model=folder)
    assert plain.returncode == shown.returncode == as_json.returncode == 0, plain.stderr + shown.stderr
    first, *beams = shown.stdout.splitlines()
    assert [first] == plain.stdout.splitlines()
    assert [line.split("(")[0].strip() for line in beams] == [
        f"blank {blank}, beam {beam}" for blank in (1, 2) for beam in range(3)
    ]
    record = json.loads(as_json.stdout)
    assert record["text"] == first and [len(search) for search in record["beams"]] == [3, 3]
    assert [search[0]["text"] for search in record["beams"]] == record["blanks"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--length-penalty", "1"), "--length-penalty belongs to beam search"),
        (("--print-all-beams",), "--print-all-beams belongs to beam search"),
        (("--sampling-strategy", "BaseStrategy", "--num-beams", "4"), "--num-beams belongs to beam search"),
        (("--num-beams", "4", "--temperature", "0.7"), "temperature"),
        (("--num-beams", "4", "--top-k", "5"), "top_k"),
        (("--num-beams", "99"), "num_beams must be from 1 to 16"),
        (("--num-beams", "4", "--stop", "x"), "stop"),
        (("--sampling-strategy", "Greedy"), "invalid choice"),
    ],
)
def test_wrong_arguments(folder: Path, flags: tuple[str, ...], words: str) -> None:
    found = call("engine", "generate", "--input-source", "One [MASK]", *flags, "--model", folder, "--threads", 1)
    assert found.returncode == 2 and words in found.stderr and "Traceback" not in found.stderr and not found.stdout
