"""The runner: with a cache as without, alone as in a batch, in one go as layer by layer, as GLM-130B's own code."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.glm import blanks, checkpoint
from engine.glm.blanks import Prompt
from engine.glm.eight_bit import has_onednn
from engine.glm.model import GLM
from engine.glm.prepacked import prepack
from engine.glm.tokenizer import Tokenizer
from engine.serving.cache import KeyValueCache, StepAttention
from engine.serving.protocol import Beams, Limits, Request, Result, Sampling
from engine.serving.runner import Runner
from engine.serving.sampling import Sampler
from engine.serving.scheduler import Scheduler
from engine.serving.slicing import Slicer
from engine.serving.text import never_generated
from engine.serving.work import Reading
from tests.lively import make_lively_model

TOLERANCE = 1e-4
TEXTS = (
    "The capital of [MASK] is Tokyo.",
    "One two three four five six seven [gMASK]",
    "床前明月光，[sMASK]。低头思故乡。",
    "a[gMASK]",
    "[MASK] is the first word of a rather long sentence which goes on, and on, and on, until it [MASK] at last.",
    "Nothing to fill",
)
SLOTS = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("lively"), vocabulary_file)


@pytest.fixture(scope="module")
def model(folder: Path) -> GLM:
    return checkpoint.load(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture
def runner(model: GLM) -> Runner:
    return Runner(model, SLOTS, model.config.positions)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[Prompt]:
    found = []
    for text in TEXTS:
        document = blanks.parse(text, tokenizer)
        found.append(blanks.prompt(document.ids, document.masks[-1].index, tokenizer))
    return found


def full_logits(model: GLM, prompt: Prompt, tokens: list[int]) -> torch.Tensor:
    """The row that follows prompt and tokens, by a whole forward pass."""
    ids = [*prompt.ids, *tokens]
    positions = [*prompt.positions, *(prompt.position(j) for j in range(len(tokens)))]
    with torch.no_grad():
        return model(torch.tensor([ids]), torch.tensor([positions]), torch.tensor([prompt.context_length]))[0, -1]


def read(runner: Runner, readings: list[Reading]) -> torch.Tensor:
    state = runner.read(readings)
    assert runner.advance(state)
    return runner.logits(state)


def step(runner: Runner, rows: list[tuple[int, Prompt, list[int]]]) -> torch.Tensor:
    """One token more for each (slot, prompt, tokens so far)."""
    rows = sorted(rows, key=lambda row: row[0])
    state = runner.step(
        [slot for slot, _, _ in rows],
        [tokens[-1] for _, _, tokens in rows],
        [len(prompt.ids) + len(tokens) - 1 for _, prompt, tokens in rows],
        [prompt.position(len(tokens) - 1) for _, prompt, tokens in rows],
    )
    assert runner.advance(state)
    return runner.logits(state)


@pytest.mark.parametrize("slots", [range(6), (0, 1, 3, 4, 6, 8), (8, 2, 7, 1, 6, 0)])
def test_cached_is_full_forward(runner: Runner, model: GLM, prompts: list[Prompt], slots) -> None:
    logits = read(runner, [Reading(prompt, slot) for prompt, slot in zip(prompts, slots, strict=True)])
    rows = [(slot, prompt, []) for prompt, slot in zip(prompts, slots, strict=True)]
    for row, (_, prompt, _) in zip(logits, rows, strict=True):
        assert (row - full_logits(model, prompt, [])).abs().max() < TOLERANCE
    rows.sort(key=lambda row: row[0])
    generator = torch.Generator().manual_seed(1)
    for number in range(8):
        for _, _, tokens in rows:
            tokens.append(int(torch.randint(model.config.vocabulary, (1,), generator=generator)))
        if number == 3:  # one leaves, another comes into its slot, the rest goes on
            slot, _, _ = rows.pop(2)
            read(runner, [Reading(prompts[3], slot)])
            rows.insert(2, (slot, prompts[3], [5]))
        for row, (_, prompt, tokens) in zip(step(runner, rows), rows, strict=True):
            assert (row - full_logits(model, prompt, tokens)).abs().max() < TOLERANCE


def test_a_row_alone_is_the_row_in_a_mixed_batch(model: GLM, prompts: list[Prompt]) -> None:
    together, alone = Runner(model, SLOTS, 256), Runner(model, SLOTS, 256)
    first = read(together, [Reading(prompt, slot) for slot, prompt in enumerate(prompts)])
    rows = [(slot, prompt, [300 + slot]) for slot, prompt in enumerate(prompts)]
    second = step(together, rows)
    for slot, prompt in enumerate(prompts):
        assert (read(alone, [Reading(prompt, 4)])[0] - first[slot]).abs().max() < TOLERANCE
        assert (step(alone, [(4, prompt, [300 + slot])])[0] - second[slot]).abs().max() < TOLERANCE


def test_layer_by_layer_with_other_passes_between(runner: Runner, model: GLM, prompts: list[Prompt]) -> None:
    expected = read(runner, [Reading(prompts[4], 5)])
    read(runner, [Reading(prompts[0], 0)])
    state = runner.read([Reading(prompts[4], 1)])
    tokens = [301]
    for layer in range(1, model.config.layers + 1):
        assert runner.advance(state, 1) == (layer == model.config.layers)
        row = step(runner, [(0, prompts[0], tokens)])[0]
        assert (row - full_logits(model, prompts[0], tokens)).abs().max() < TOLERANCE
        tokens.append(300 + layer)
    assert torch.equal(runner.logits(state), expected)
    rest = step(runner, [(1, prompts[4], [400])])
    assert (rest[0] - full_logits(model, prompts[4], [400])).abs().max() < TOLERANCE


def test_choices_share_one_reading(runner: Runner, model: GLM, prompts: list[Prompt]) -> None:
    """Each choice as if it were alone behind the prompt, beside another prompt that is read in the same pass."""
    choices = ((301, 302, 303), (400,), (301, 305))
    logits = read(runner, [Reading(prompts[1], 0), Reading(prompts[0], None, choices), Reading(prompts[5], 1)])
    assert len(logits) == 1 + 6 + 1
    at = 1
    for choice in choices:
        for length in range(len(choice)):
            assert (logits[at] - full_logits(model, prompts[0], list(choice[:length]))).abs().max() < TOLERANCE
            at += 1
    assert (logits[-1] - full_logits(model, prompts[5], [])).abs().max() < TOLERANCE


def test_copied_prompt_is_the_prompt(runner: Runner, model: GLM, prompts: list[Prompt]) -> None:
    read(runner, [Reading(prompts[2], 3)])
    runner.cache.copy(3, 6, len(prompts[2].ids))
    rows = [(3, prompts[2], [301]), (6, prompts[2], [302])]
    for row, (_, prompt, tokens) in zip(step(runner, rows), rows, strict=True):
        assert (row - full_logits(model, prompt, tokens)).abs().max() < TOLERANCE


def test_a_steps_attention_makes_no_copy_of_the_cache() -> None:
    """The mask is all it allocates: keys and values are read where they are."""
    cache = KeyValueCache(1, 4, 2, 4096, 8, torch.float32, torch.device("cpu"))
    attention = StepAttention(cache, [0, 1, 3], [4000, 17, 20])
    query = torch.randn(3, 1, 2, 8)
    with torch.profiler.profile(profile_memory=True) as profile:
        attention(0, query, query, query)
    one_slot = 2 * 4096 * 8 * 4
    assert max(event.cpu_memory_usage for event in profile.events()) < one_slot / 2


def limits_of(model: GLM, slots: int = SLOTS) -> Limits:
    config = model.config
    return Limits("lively", "", "fp32", "cpu", "", config.positions, slots, config.vocabulary, 1)


def run_all(
    model: GLM,
    tokenizer: Tokenizer,
    requests: list[Request],
    slots: int = SLOTS,
    slicer: Slicer | None = None,
    batch_invariant: bool = False,
) -> dict[str, tuple[Result, ...]]:
    """Scheduler, runner and sampler together, without processes."""
    scheduler = Scheduler(limits_of(model, slots), tokenizer, slicer=slicer)
    runner = Runner(model, slots, model.config.positions, batch_invariant=batch_invariant)
    sampler = Sampler(
        model.config.vocabulary, never_generated(tokenizer, model.config.vocabulary), tokenizer.eop, torch.device("cpu")
    )
    for request in requests:
        scheduler.add(request)
    results = {}
    while (plan := scheduler.plan()) is not None:
        step = scheduler.book(plan, runner.run(plan, sampler, tokenizer.end_ids))
        for end in step.ends:
            results[end.id] = end.results
    return results


def generate(model: GLM, tokenizer: Tokenizer, requests: list[Request], slots: int = SLOTS) -> dict[str, list[tuple]]:
    """Their ids."""
    results = run_all(model, tokenizer, requests, slots)
    return {name: [result.ids for result in found] for name, found in results.items()}


def test_batched_sampling_is_sampling_alone(model: GLM, tokenizer: Tokenizer, prompts: list[Prompt]) -> None:
    """30 requests through 5 slots, with alternatives, all kinds of parameters and lengths."""
    requests = [
        Request(
            f"{number}",
            prompts[number % len(prompts)],
            Sampling(
                temperature=[1.0, 0.7, 0.0][number % 3],
                top_k=[0, 50][number % 2],
                top_p=[1.0, 0.9][number // 2 % 2],
                repetition_penalty=[1.0, 1.2][number // 3 % 2],
                no_repeat_ngram=[0, 2][number // 4 % 2],
                max_new_tokens=3 + number,
                seed=number,
            ),
            alternatives=[1, 3, 1][number % 3],
        )
        for number in range(30)
    ]
    together = generate(model, tokenizer, requests, slots=5)
    assert len(together) == 30
    for request in requests:
        assert generate(model, tokenizer, [request]) == {request.id: together[request.id]}
    assert len({ids[0] for ids in together.values()}) > 20  # they are not all the same
    three = next(
        together[request.id] for request in requests if request.alternatives == 3 and request.sampling.temperature
    )
    assert len(set(three)) == 3


@pytest.mark.parametrize("kind", ["int4", "int4 in bf16", "packed", "plain", "w8a8"])
def test_batch_invariant_to_the_bit(folder: Path, tokenizer: Tokenizer, prompts: list[Prompt], kind: str) -> None:
    """Log-probabilities, too, are equal to those of a run alone, in every form of the weights."""
    if kind == "w8a8" and not has_onednn(torch.device("cpu")):
        pytest.skip("a CPU without products of 8-bit numbers")
    dtype = torch.bfloat16 if "bf16" in kind else torch.float32
    quantize = {"w8a8": "w8a8", "int4 in bf16": "int4", "int4": "int4"}.get(kind)
    served = checkpoint.load(folder, dtype=dtype, quantize=quantize)
    if kind in ("int4", "packed", "w8a8"):
        prepack(served)
    requests = [
        Request(
            str(number),
            prompts[number % len(prompts)],
            Sampling(
                temperature=[1.0, 0.7][number % 2],
                top_k=[0, 20][number % 2],
                max_new_tokens=4 + number,
                seed=number,
            ),
            alternatives=[1, 1, 3][number % 3],
        )
        for number in range(12)
    ]
    together = run_all(served, tokenizer, requests, slots=8, batch_invariant=True)
    assert len(together) == len(requests)
    for request in requests:
        assert run_all(served, tokenizer, [request], batch_invariant=True) == {request.id: together[request.id]}
    said = [logprob for results in together.values() for result in results for logprob in result.logprobs]
    assert len(set(said)) > 50


class CountingSlicer(Slicer):
    """slices: how many readings were told to stop between two layers."""

    slices = 0

    def until(self, layer: int) -> int:
        self.slices += 1
        return super().until(layer)


def test_prompts_read_in_slices_are_prompts_read_whole(model: GLM, tokenizer: Tokenizer, prompts: list[Prompt]) -> None:
    """Tokens, log-probabilities and scores, with alternatives and beams running between the slices."""
    requests = [
        Request(
            f"{number}",
            prompts[number % len(prompts)],
            Sampling(seed=number, max_new_tokens=4 + number, beams=Beams(3) if number % 7 == 3 else None),
            alternatives=2 if number % 5 == 1 else 1,
        )
        for number in range(20)
    ]
    requests += [Request(f"score {number}", prompts[number], choices=((300, 301), (302,))) for number in range(3)]
    requests.sort(key=lambda request: request.id)
    slicer = CountingSlicer(model.config.layers, gap=0.0)
    assert model.config.layers > 1
    sliced, whole = run_all(model, tokenizer, requests, 6, slicer), run_all(model, tokenizer, requests, 6)
    for request in requests:
        for one, other in zip(sliced[request.id], whole[request.id], strict=True):
            assert one.ids == other.ids and one.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)
    assert slicer.slices > 5


def test_a_reading_given_up_leaves_nothing_behind(model: GLM, tokenizer: Tokenizer, prompts: list[Prompt]) -> None:
    """It is cancelled between two layers, and what it had written was no number."""
    running = Request("running", prompts[0], Sampling(seed=1, max_new_tokens=40, min_new_tokens=40))
    gone = Request("gone", prompts[4], Sampling(seed=2, max_new_tokens=5))
    after = Request("after", prompts[5], Sampling(seed=3, max_new_tokens=8))
    expected = generate(model, tokenizer, [after])["after"]
    scheduler = Scheduler(limits_of(model, 2), tokenizer, slicer=Slicer(model.config.layers, gap=0.0))
    runner = Runner(model, 2, model.config.positions)
    sampler = Sampler(
        model.config.vocabulary, never_generated(tokenizer, model.config.vocabulary), tokenizer.eop, model.device
    )

    def go():
        plan = scheduler.plan()
        return plan, scheduler.book(plan, runner.run(plan, sampler, tokenizer.end_ids))

    scheduler.add(running)
    go()
    scheduler.add(gone)
    while not (plan := go()[0]).prompts:
        pass
    assert plan.last == 1
    runner.cache.values[:, 1] = torch.nan
    scheduler.cancel("gone")
    scheduler.add(after)
    found = None
    while found is None:
        found = next((end.results for end in go()[1].ends if end.id == "after"), None)
    assert [result.ids for result in found] == expected


def test_greedy_is_the_most_likely_token_of_the_full_forward(
    model: GLM, tokenizer: Tokenizer, prompts: list[Prompt]
) -> None:
    never = never_generated(tokenizer, model.config.vocabulary)
    requests = [
        Request(f"{number}", prompt, Sampling(temperature=0, seed=1, max_new_tokens=12, min_new_tokens=12))
        for number, prompt in enumerate(prompts)
    ]
    found = generate(model, tokenizer, requests)
    for request in requests:
        tokens: list[int] = []
        for _ in range(12):
            logits = full_logits(model, request.prompt, tokens)
            logits[never] = -torch.inf
            logits[list(tokenizer.end_ids)] = -torch.inf
            tokens.append(int(logits.argmax()))
        assert found[request.id] == [tuple(tokens)]


def test_poisoned_slots_are_clean_for_the_next_one(model: GLM, tokenizer: Tokenizer, prompts: list[Prompt]) -> None:
    """One slot: a request whose numbers are nan fails; the next in its slot is as if nothing had been there."""
    long = Request("long", prompts[4], Sampling(seed=3, max_new_tokens=5), alternatives=2)
    short = Request("short", prompts[3], Sampling(seed=3, max_new_tokens=5))
    longer = Request("longer", prompts[4], Sampling(seed=4, max_new_tokens=5))
    expected = generate(model, tokenizer, [short, longer])
    scheduler = Scheduler(limits_of(model, 2), tokenizer)
    runner = Runner(model, 2, model.config.positions)
    sampler = Sampler(
        model.config.vocabulary, never_generated(tokenizer, model.config.vocabulary), tokenizer.eop, model.device
    )
    scheduler.add(long)
    plan = scheduler.plan()
    scheduler.book(plan, runner.run(plan, sampler, tokenizer.end_ids))
    runner.cache.values[1, 0, :, 3] = torch.nan  # as if a layer had overflowed
    plan = scheduler.plan()
    [end] = scheduler.book(plan, runner.run(plan, sampler, tokenizer.end_ids)).ends
    assert end.error.kind == "non_finite_logits"
    found = {}
    for request in (short, longer):
        scheduler.add(request)
    while (plan := scheduler.plan()) is not None:
        for end in scheduler.book(plan, runner.run(plan, sampler, tokenizer.end_ids)).ends:
            found[end.id] = [result.ids for result in end.results]
    assert found == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(folder: Path, tokenizer: Tokenizer, prompts: list[Prompt], dtype: torch.dtype) -> None:
    model = checkpoint.load(folder, dtype=dtype)
    requests = [Request(f"{n}", prompt, Sampling(seed=n, max_new_tokens=6)) for n, prompt in enumerate(prompts)]
    found = generate(model, tokenizer, requests)
    assert len(found) == len(prompts) and Runner(model, 1, 8).cache.keys.dtype == dtype
