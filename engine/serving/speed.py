"""How fast a model in memory reads prompts and decodes here, against what the machine could do: its memory and its arithmetic.

    found = measure("glm-330m", None, "int4", 128, 128, (1, 4, 16), threads, measure_machine(device))

A step reads every weight once, so `weight bytes / read bandwidth` bounds it from below at small batches; a prompt's operations
divided by the matmul peak bound a prefill. Both limits are measured in the same run, with the same number of threads.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
import torch

from engine.errors import GLMError
from engine.glm import checkpoint, native
from engine.glm.allocator import keep_freed_memory
from engine.glm.config import EMBEDDED, PRESETS, SERVED_QUANTIZATIONS, W8A8, resolve_model
from engine.glm.forward_flops import forward_flops
from engine.glm.machine import Machine
from engine.glm.model import GLM
from engine.glm.packed import pack
from engine.glm.precision import DTYPES
from engine.glm.prepacked import copies_embedding, prepack, weight_bytes
from engine.glm.random_layers import fill
from engine.serving.bench import cache_bytes, check_memory, peak_memory, random_readings
from engine.serving.job import Ask
from engine.serving.mixed import Mixed, measure_mixed
from engine.serving.runner import Runner
from engine.serving.sampling import Sampler
from engine.serving.worker import choose_device

_PREFILLS = 5  # of which the median counts
GREEDY = Ask(0.0, 0, 1.0, 1.0, (), (), 0.0, 0)


@dataclass(frozen=True, slots=True)
class Decode:
    """Of a batch size. tokens_per_second: of all rows; bandwidth_share: of the machine's, by the weights alone."""

    batch: int
    tokens_per_second: float
    bandwidth_share: float


@dataclass(frozen=True, slots=True)
class Speed:
    """Of a precision. weight_bytes: those that a step reads; first_token_seconds: a prompt read and its first token chosen;
    peak_share: of the matmul peak."""

    precision: str
    load_seconds: float
    weight_bytes: int
    prefill_seconds: float
    peak_share: float
    first_token_seconds: float
    decode: tuple[Decode, ...]
    peak_memory: int
    mixed: Mixed | None = None


def load(preset: str | None, folder: str | None, precision: str) -> GLM:
    """A preset's shape with random weights, or a model folder's own. precision: of PRECISIONS, or of SERVED_QUANTIZATIONS,
    which compute in the type that they are quickest in: fp32 where there are products of our own, w8a8 always; else bf16.

    GLMError: overloaded without the memory; those of checkpoint.load.
    """
    kind = precision if precision in SERVED_QUANTIZATIONS else None
    device = choose_device(0, 1)
    whole = kind == W8A8 or native.has_products(device)
    dtype = DTYPES[precision] if kind is None else torch.float32 if whole else torch.bfloat16
    if folder is not None:
        model = checkpoint.load(resolve_model(folder), dtype=dtype, device=device, quantize=kind)
        prepack(model)
        return model.requires_grad_(False)
    assert preset is not None
    config = PRESETS[preset].quantized(kind)
    check_memory(config.parameters() * dtype.itemsize)
    model = GLM(config, device=device, dtype=dtype)
    generator = numpy.random.Generator(numpy.random.SFC64(1))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            fill(name, tensor, generator)
        if kind:  # as the checkpoints have it that such weights are made of
            model.word_embeddings.weight.copy_(model.word_embeddings.weight.half())
    pack(model, dtype, model.device, eight_bit=kind == W8A8)
    prepack(model)
    return model.eval().requires_grad_(False)


def measure(
    preset: str | None,
    folder: str | None,
    precision: str,
    prompt: int,
    new: int,
    batches: Sequence[int],
    threads: int,
    machine: Machine,
    mixed: tuple[int, int, float] | None = None,
) -> Speed:
    """In a process of its own, so that the peak of memory and the time to load are this precision's.

    mixed: slots, tokens of a long prompt and the gap, for mixed.measure_mixed.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    began = time.perf_counter()
    model = load(preset, folder, precision)
    loaded = time.perf_counter() - began
    check_memory(cache_bytes(model, batches, prompt, new))
    weights = weight_bytes(model)
    if copies_embedding(model):  # of the plain embedding a step reads a few rows only
        weights -= model.word_embeddings.weight.nbytes
    prefill, first = prefill_seconds(model, prompt)
    needed = forward_flops(model.config, prompt + 1, 1, (prompt + 1) ** 2)
    decode = []
    for batch in batches:
        seconds = step_seconds(model, batch, prompt, new)
        decode.append(Decode(batch, batch / seconds, weights / seconds / machine.bandwidth))
    share = needed / prefill / machine.flops
    under_load = None if mixed is None else measure_mixed(model, resolve_model(folder or EMBEDDED), *mixed)
    return Speed(precision, loaded, weights, prefill, share, first, tuple(decode), peak_memory(), under_load)


def prefill_seconds(model: GLM, prompt: int) -> tuple[float, float]:
    """Seconds until the logits are there, and until a token is chosen; medians."""
    runner = Runner(model, 1, prompt + 2)
    sampler = Sampler(model.config.vocabulary, (), 0, model.device)
    readings = random_readings(model, 1, prompt)
    whole, first = [], []
    for _ in range(_PREFILLS + 1):
        began = time.perf_counter()
        state = runner.read(readings)
        runner.advance(state)
        logits = runner.logits(state)
        if model.device.type != "cpu":
            torch.accelerator.synchronize()
        whole.append(time.perf_counter() - began)
        sampler(logits, [GREEDY])
        first.append(time.perf_counter() - began)
    return statistics.median(whole[1:]), statistics.median(first[1:])


def step_seconds(model: GLM, batch: int, prompt: int, new: int, ask: Ask = GREEDY) -> float:
    """The median step with all rows behind the same prompt, which is read once."""
    runner = Runner(model, batch, prompt + new + 2)
    sampler = Sampler(model.config.vocabulary, (), 0, model.device)
    state = runner.read(random_readings(model, 1, prompt))
    runner.advance(state)
    tokens = [choice.token for choice in sampler(runner.logits(state), [ask])] * batch
    for slot in range(1, batch):
        runner.cache.copy(0, slot, prompt + 1)
    seconds = []
    for step in range(new):
        began = time.perf_counter()
        columns = [prompt + 1 + step] * batch
        state = runner.step(range(batch), tokens, columns, columns)
        runner.advance(state)
        choices = sampler(runner.logits(state), [ask] * batch)
        tokens = [choice.token for choice in choices]
        seconds.append(time.perf_counter() - began)
    if not all(choice.finite for choice in choices):
        raise GLMError("non_finite_logits", "The model gave inf or nan.")
    return statistics.median(seconds)
