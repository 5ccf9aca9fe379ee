"""Decode steps as graphs: the same logits as step by step, in any slots, on tensors that stay, and nothing that can't be captured.

A CPU captures nothing, so `Tape` stands for an accelerator's graphs: what a step has torch do is written down once and then
repeated on the same memory, whatever the code around it would do by then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.glm import checkpoint
from engine.glm.adapter import Lora
from engine.glm.blanks import Prompt
from engine.glm.config import Config
from engine.glm.lora import add
from engine.glm.model import GLM
from engine.glm.parallel import Ranks
from engine.glm.prepacked import prepack
from engine.glm.quantize import QuantizedLinear, exact_product
from engine.glm.tokenizer import Tokenizer
from engine.serving.cache import KeyValueCache
from engine.serving.graphs import DecodeGraphs, Repeated, Shape, shape_of
from engine.serving.protocol import Beams, Limits, Request, Result, Sampling
from engine.serving.runner import Runner
from engine.serving.sampling import Sampler
from engine.serving.scheduler import Scheduler
from engine.serving.slicing import Slicer
from engine.serving.text import never_generated
from engine.serving.work import Reading, Work
from tests.lively import make_lively_model
from tests.ranks import run_ranks

TOLERANCE = 1e-4
POSITIONS = 600
SLOTS = 9


class Written(TorchDispatchMode):
    """calls: all that torch was told to do."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, found))
        return found


class Tape(Repeated):
    """recorded: how often something was."""

    recorded = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1
        with Written() as written:
            work()  # unlike a graph this does it once more, which changes nothing

        def replay() -> None:
            for func, args, kwargs, before in written.calls:
                for new, old in zip(tree_leaves(func(*args, **kwargs)), tree_leaves(before), strict=True):
                    if isinstance(old, Tensor) and new.data_ptr() != old.data_ptr():
                        old.copy_(new)

        return replay


class Refusing(Repeated):
    """A backend that captures nothing after `good` times."""

    def __init__(self, good: int = 0) -> None:
        self.good = good

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.good -= 1
        if self.good < 0:
            raise RuntimeError("operation not permitted when stream is capturing")
        return super().record(work)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("lively"), vocabulary_file, positions=POSITIONS)


@pytest.fixture(scope="module")
def model(folder: Path) -> GLM:
    return checkpoint.load(folder)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture
def plain(model: GLM) -> Runner:
    return Runner(model, SLOTS, POSITIONS)


@pytest.fixture
def replayed(model: GLM) -> Runner:
    return with_tape(Runner(model, SLOTS, POSITIONS, graphs=True), model)


def with_tape(runner: Runner, model: GLM) -> Runner:
    runner.graphs = DecodeGraphs(model, runner.cache, Tape())
    return runner


def prompt_of(length: int, seed: int, step: int = 1) -> Prompt:
    """So many random tokens of context and a `sop`. step: of the positions behind it."""
    ids = torch.randint(300, 500, (length + 1,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Prompt(tuple(ids), tuple(range(length + 1)), length, length + step, step)


def read(runner: Runner, prompts: dict[int, Prompt]) -> None:
    state = runner.read([Reading(prompt, slot) for slot, prompt in prompts.items()])
    assert runner.advance(state)


def step(runner: Runner, rows: dict[int, tuple[Prompt, list[int]]]) -> Tensor:
    """One token more in each slot, behind its prompt and its tokens so far."""
    ordered = sorted(rows.items())
    state = runner.step(
        [slot for slot, _ in ordered],
        [tokens[-1] for _, (_, tokens) in ordered],
        [len(prompt.ids) + len(tokens) - 1 for _, (prompt, tokens) in ordered],
        [prompt.position(len(tokens) - 1) for _, (prompt, tokens) in ordered],
    )
    assert runner.advance(state)
    return runner.logits(state)


def assert_alike(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == expected.shape and torch.isfinite(found).all()
    assert (found - expected).abs().max() < tolerance
    assert torch.equal(found.argmax(dim=-1), expected.argmax(dim=-1))


@pytest.mark.parametrize(
    ("slots", "columns", "shape"),
    [
        ([0], [0], Shape(1, 256, False)),
        ([0], [255], Shape(1, 256, False)),
        ([0], [256], Shape(1, 512, False)),
        ([1], [3], Shape(2, 256, False)),
        ([2], [3], Shape(1, 256, True)),
        ([0, 1, 2], [3, 700, 4], Shape(4, 1024, False)),
        ([0, 4], [3, 5], Shape(2, 256, True)),
        ([0, 4, 5], [3, 5, 1099], Shape(8, 1100, False)),
        ([40], [1024], Shape(1, 1100, True)),
        ([3, 20, 39], [1, 1, 1], Shape(4, 256, True)),
        (range(30), [1] * 30, Shape(32, 256, False)),
        (range(33), [1] * 33, Shape(41, 256, False)),
    ],
)
def test_shapes(slots: list[int], columns: list[int], shape: Shape) -> None:
    assert shape_of(slots, columns, 41, 1100) == shape


def test_there_are_few_shapes() -> None:
    shapes = {
        shape_of([*range(count - 1), last], [column] * count, 64, 2048)
        for count in range(1, 65)
        for last in range(count - 1, 64)
        for column in (0, 255, 256, 1000, 1023, 1024, 2047)
    }
    assert len(shapes) == 4 * (7 + 5)  # lengths; rows from 1 to 64, and gathered ones up to 16


@pytest.mark.parametrize("slots", [(0, 1, 2), (1, 3, 6, 8), (8,), (0, 7), tuple(range(9))], ids=str)
def test_logits_are_those_of_ordinary_steps(plain: Runner, replayed: Runner, slots: tuple[int, ...]) -> None:
    """Rows of different lengths, of which one gets from 256 columns to more."""
    prompts = {slot: prompt_of([249, 5, 40, 17][number % 4], slot, number % 2) for number, slot in enumerate(slots)}
    for runner in (plain, replayed):
        read(runner, prompts)
    rows = {slot: (prompt, [301 + slot]) for slot, prompt in prompts.items()}
    for number in range(12):
        expected = step(plain, rows)
        assert_alike(step(replayed, rows), expected)
        for slot, (_, tokens) in rows.items():
            tokens.append(310 + 7 * number + slot)


def test_rows_come_and_go(plain: Runner, replayed: Runner) -> None:
    """Through shapes that were met before: nothing of an earlier step is left in them."""
    prompts = {slot: prompt_of(10 + 30 * slot, slot) for slot in range(SLOTS)}
    for runner in (plain, replayed):
        read(runner, prompts)
    made: dict[int, list[int]] = {slot: [300 + slot] for slot in prompts}
    for slots in ((0, 1, 2), (7,), (0, 2), (5,), (8,), (0, 1, 2, 3), (3,), (1, 8), (0, 1, 2, 3), (7, 8), (0,), (2, 6)):
        rows = {slot: (prompts[slot], made[slot]) for slot in slots}
        assert_alike(step(replayed, rows), step(plain, rows))
        for slot in slots:
            made[slot].append(400 + slot + len(made[slot]))


@pytest.mark.parametrize("slots", [(1, 3, 5), (6,)])
def test_idle_slots_may_hold_anything(plain: Runner, replayed: Runner, slots: tuple[int, ...]) -> None:
    prompts = {slot: prompt_of(20 + slot, slot) for slot in slots}
    for runner in (plain, replayed):
        for slot in set(range(SLOTS)) - {*slots}:
            runner.cache.keys[:, slot] = torch.inf
            runner.cache.values[:, slot] = torch.nan
        read(runner, prompts)
    rows = {slot: (prompt, [301]) for slot, prompt in prompts.items()}
    for number in range(3):
        assert_alike(step(replayed, rows), step(plain, rows))
        for _, tokens in rows.values():
            tokens.append(310 + number)


def test_only_the_rows_columns_and_the_last_one_are_written(replayed: Runner) -> None:
    read(replayed, {slot: prompt_of(20 + slot, slot) for slot in range(SLOTS)})
    before = replayed.cache.keys.clone()
    for slots in ((1, 3, 5), (7,), (0, 1, 2, 3)):
        step(replayed, {slot: (prompt_of(20 + slot, slot), [301]) for slot in slots})
    changed = (replayed.cache.keys != before).any(dim=(0, 2, 4))  # (slots, columns)
    assert changed[:, :-1].nonzero().tolist() == [[slot, 21 + slot] for slot in (0, 1, 2, 3, 5, 7)]


@pytest.mark.parametrize("running", [(2, 4), (5,)])
def test_a_slot_that_is_read_in_slices_is_left_alone(plain: Runner, replayed: Runner, running: tuple[int, ...]) -> None:
    """And so is the one of a prompt that rests there, to be gone on with later."""
    prompts = {slot: prompt_of(20 + slot, slot) for slot in running}
    new, resting = prompt_of(37, 50), prompt_of(23, 51)
    logits = []
    for runner in (plain, replayed):
        read(runner, {**prompts, 3: resting})
        state = runner.read([Reading(new, 0)])
        tokens = [301]
        while not runner.advance(state, 1):
            step(runner, {slot: (prompt, tokens) for slot, prompt in prompts.items()})
            tokens.append(302 + len(tokens))
        logits += [runner.logits(state), step(runner, {0: (new, [333]), 3: (resting, [334])})]
    assert torch.equal(logits[0], logits[2])
    assert_alike(logits[3], logits[1])


def test_logits_stay_when_the_next_step_is_done(replayed: Runner) -> None:
    for slots in ((0, 1), (0, 2), (8,)):
        prompts = {slot: prompt_of(20 + slot, slot) for slot in slots}
        read(replayed, prompts)
        first = step(replayed, {slot: (prompt, [301]) for slot, prompt in prompts.items()})
        before = first.clone()
        step(replayed, {slot: (prompt, [301, 302]) for slot, prompt in prompts.items()})
        assert torch.equal(first, before)


def test_a_shape_is_recorded_once_and_its_tensors_stay(model: GLM) -> None:
    cache = KeyValueCache(3, 4, 4, POSITIONS + 1, 16, torch.float32, torch.device("cpu"))
    tape = Tape()
    graphs = DecodeGraphs(model, cache, tape)
    address = graphs.inputs.data_ptr()
    for number in range(20):
        graphs.step([0, 2], [301, 302], [number, 2 * number], [number, 3])
        assert graphs.inputs.data_ptr() == address
    assert tape.recorded == 1
    graphs.step([0, 1, 2, 3], [301] * 4, [20, 255, 100, 7], [1] * 4)
    assert tape.recorded == 1, "it is the shape of slots 0 to 3"
    graphs.step([0, 2], [301, 302], [255, 256], [1, 1])
    graphs.step([3], [301], [255], [1])
    graphs.step([1], [301], [255], [1])
    assert tape.recorded == 4
    for slots, column in (([3], 7), ([1], 8), ([0, 3], 400), ([1, 2], 30)):
        graphs.step(slots, [301] * len(slots), [column] * len(slots), [1] * len(slots))
    assert tape.recorded == 4


def generate(model: GLM, tokenizer: Tokenizer, requests: list[Request], graphs: bool) -> dict[str, tuple[Result, ...]]:
    """Scheduler, runner and sampler together, without processes."""
    config, slots = model.config, 6
    limits = Limits("lively", "", "fp32", "cpu", "", config.positions, slots, config.vocabulary, 1)
    scheduler = Scheduler(limits, tokenizer, slicer=Slicer(config.layers, gap=0.0), retain=True)
    runner = Runner(model, slots, config.positions, graphs=graphs)
    if graphs:
        with_tape(runner, model)
    never = never_generated(tokenizer, config.vocabulary)
    sampler = Sampler(config.vocabulary, never, tokenizer.eop, torch.device("cpu"))
    results = {}
    for half in (requests[::2], requests[1::2]):  # the second one finds slots that hold prompts
        for request in half:
            scheduler.add(request)
        while (plan := scheduler.plan()) is not None:
            for end in scheduler.book(plan, runner.run(plan, sampler, tokenizer.end_ids)).ends:
                results[end.id] = end.results
    return results


def test_generations_are_the_same(model: GLM, tokenizer: Tokenizer) -> None:
    """Alternatives, prompts that are met again, scored choices; beams, whose steps are ordinary ones, across two slots."""
    requests = [
        Request(
            f"{number}",
            prompt_of([12, 30, 245, 60][number % 4], number % 7, number % 2),
            Sampling(temperature=[1.0, 0.7, 0.0][number % 3], top_k=20, max_new_tokens=4 + number, seed=number),
            alternatives=1 + number % 3,
        )
        for number in range(16)
    ]
    wide = Sampling(beams=Beams(4), max_new_tokens=40, min_new_tokens=40, seed=1)
    requests.insert(5, Request("beams", prompt_of(550, 90), wide))
    requests.insert(8, Request("choices", prompt_of(30, 91), choices=((300, 301), (302,))))
    found, expected = (generate(model, tokenizer, requests, graphs) for graphs in (True, False))
    assert found.keys() == expected.keys() == {request.id for request in requests}
    for name, results in expected.items():
        for one, other in zip(found[name], results, strict=True):
            assert one.ids == other.ids and one.logprobs == pytest.approx(other.logprobs, abs=TOLERANCE)


# Where keys and values are kept in 16 bits, a last digit of the states may round one of them the other way.
@pytest.mark.parametrize(
    ("kind", "tolerance"), [("int8", 2e-3), ("int4", 2e-3), ("adapter", TOLERANCE), ("bf16", None)]
)
def test_other_forms_of_weights(folder: Path, kind: str, tolerance: float | None) -> None:
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    served = checkpoint.load(folder, dtype=dtype, quantize=kind if kind.startswith("int") else None)
    if kind == "adapter":
        add(served, Lora(4, 8.0), torch.Generator().manual_seed(1))
    served.requires_grad_(False)
    for linear in served.modules():
        if isinstance(linear, QuantizedLinear):
            linear.compute = exact_product  # any device's; our own for CPUs isn't torch's, so a tape doesn't see it
    logits = []
    for graphs in (False, True):
        runner = Runner(served, SLOTS, POSITIONS, graphs=graphs)
        assert (runner.graphs is not None) == graphs
        if graphs:
            with_tape(runner, served)
        prompts = {slot: prompt_of(20 + slot, slot) for slot in (0, 2, 3)}
        read(runner, prompts)
        for length in range(1, 4):
            tokens = list(range(301, 301 + length))
            logits.append(step(runner, {slot: (prompt, tokens) for slot, prompt in prompts.items()}))
    for found, expected in zip(logits[3:], logits[:3], strict=True):
        if tolerance is None:  # ties between logits of 8 bits are broken either way
            assert (found - expected).abs().max() < 0.05 * expected.abs().max()
        else:
            assert_alike(found, expected, tolerance)


def test_who_has_graphs(folder: Path, model: GLM) -> None:
    assert Runner(model, 2, 16).graphs is None, "a CPU has none, unless it is told to"
    assert Runner(model, 2, 16, graphs=True).graphs is not None
    assert Runner(model, 2, 16, graphs=True, batch_invariant=True).graphs is None
    whole = checkpoint.load(folder)
    prepack(whole)
    if any(layer.whole is not None for layer in whole.layers):
        assert Runner(whole, 2, 16, graphs=True).graphs is None


@pytest.mark.parametrize("good", [0, 2])
def test_what_cannot_be_captured_is_launched(
    model: GLM, plain: Runner, caplog: pytest.LogCaptureFixture, good: int
) -> None:
    runner = Runner(model, SLOTS, POSITIONS, graphs=True)
    runner.graphs = DecodeGraphs(model, runner.cache, Refusing(good))
    prompts = {slot: prompt_of(20 + slot, slot) for slot in range(SLOTS)}
    read(plain, prompts)
    read(runner, prompts)
    made: dict[int, list[int]] = {slot: [300 + slot] for slot in prompts}
    with caplog.at_level(logging.WARNING):
        for slots in ((0,), (0, 1), (8,), (0, 1), (0, 1, 2, 3), (8,), (0,)):
            rows = {slot: (prompts[slot], made[slot]) for slot in slots}
            assert_alike(step(runner, rows), step(plain, rows))
            for slot in slots:
                made[slot].append(400 + slot + len(made[slot]))
    [record] = caplog.records
    assert record.name == "engine.serving.graphs" and "operation not permitted" in record.getMessage()


def test_other_mistakes_are_not_hidden(model: GLM) -> None:
    class Wrong(Repeated):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            raise ValueError("a mistake")

    graphs = DecodeGraphs(model, KeyValueCache(3, 2, 4, 17, 16, torch.float32, torch.device("cpu")), Wrong())
    with pytest.raises(ValueError, match="a mistake"):
        graphs.step([0], [301], [3], [3])


# What waits for the device, makes something whose size depends on its numbers, or brings numbers from Python
_REFUSED = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "lift_fresh"}


def cannot_be_captured(written: Written) -> list[str]:
    calls = []
    for func, args, kwargs, made in written.calls:
        tensors = [one for one in tree_leaves((args, kwargs, made)) if isinstance(one, Tensor) and one.dim()]
        if func.overloadpacket.__name__ in _REFUSED or len({tensor.device for tensor in tensors}) > 1:
            calls.append(str(func))
    return calls


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("shape", [Shape(4, 256, False), Shape(2, 512, True)])
def test_a_graph_neither_waits_nor_copies_from_the_host(shape: Shape, quantize: str | None, device: str) -> None:
    """meta: tensors have no numbers, so nothing can be asked of them, however deep inside torch."""
    config = Config("small", 2, 64, 96, 4, 512, 1024).quantized(quantize)
    with torch.inference_mode():
        model = GLM(config, device=device, dtype=torch.float16).requires_grad_(False)
        graphs = DecodeGraphs(model, KeyValueCache(2, 8, 4, 1025, 16, model.dtype, model.device), Repeated())
        with Written() as written:
            graphs.compute(shape)
        assert len(written.calls) > 50 and not cannot_be_captured(written)
        if device == "cpu":  # an ordinary step does
            with Written() as written:
                Runner(model, 8, 1024, graphs=False).step([0, 2], [301, 302], [5, 9], [5, 9])
            assert cannot_be_captured(written)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator, so no graphs of its own")
@pytest.mark.parametrize("quantize", [None, "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_on_an_accelerator(
    folder: Path, caplog: pytest.LogCaptureFixture, dtype: torch.dtype, quantize: str | None
) -> None:
    """Captured as the device does it, between readings and steps of other kinds of shapes."""
    device = torch.accelerator.current_accelerator()
    assert device is not None
    served = checkpoint.load(folder, dtype=dtype, device=device, quantize=quantize).requires_grad_(False)
    usual, captured = Runner(served, SLOTS, POSITIONS, graphs=False), Runner(served, SLOTS, POSITIONS)
    assert captured.graphs is not None
    prompts = {slot: prompt_of([20, 252, 120][slot % 3], slot) for slot in range(SLOTS)}
    made: dict[int, list[int]] = {slot: [300 + slot] for slot in prompts}
    tolerance = {torch.float32: 2e-3, torch.float16: 0.1, torch.bfloat16: 0.5}[dtype]
    for number in range(6):
        if new := {slot: prompt for slot, prompt in prompts.items() if slot % 3 == number}:
            for runner in (usual, captured):
                read(runner, new)
        for slots in ((0,), (0, 1, 2), (8,), (0, 3, 6), (1, 7), tuple(range(SLOTS))):
            rows = {slot: (prompts[slot], made[slot]) for slot in slots if slot % 3 <= number}
            if rows:
                found, expected = step(captured, rows).float(), step(usual, rows).float()
                assert torch.isfinite(found).all() and (found - expected).abs().max() < tolerance
            for slot in rows:
                made[slot].append(400 + slot + len(made[slot]))
    assert not caplog.records, "nothing was given up"


def test_ranks_meet_the_same_shapes(folder: Path, plain: Runner) -> None:
    """Two ranks, of which one can't capture after a while: what they exchange still fits."""
    works, expected = [Work(readings=tuple(Reading(prompt_of(20 + slot, slot), slot) for slot in (0, 2, 4)))], []
    for number, slots in enumerate(((0, 2, 4), (0, 2), (4,), (0, 2, 4), (2,))):
        columns = tuple(21 + slot + number for slot in slots)
        works.append(Work(slots=slots, tokens=(301,) * len(slots), columns=columns, positions=columns))
    for work in works:
        expected.append(plain.follow(work).argmax(dim=-1).tolist())
    assert run_ranks(2, follow, folder, works) == [expected, expected]


def follow(ranks: Ranks, folder: Path, works: list[Work]) -> list[list[int]]:
    model = checkpoint.load(folder, ranks=ranks).requires_grad_(False)
    runner = Runner(model, SLOTS, POSITIONS, graphs=True)
    runner.graphs = DecodeGraphs(model, runner.cache, Refusing(2) if ranks.rank else Repeated())
    return [runner.follow(work).argmax(dim=-1).tolist() for work in works]
