"""Whether a model fits a machine, and about how fast it would be: memory by kind, counted from the shapes. Torch-free.

Of every rank: its part of the weights, the keys and values of the requests that run at the same time, what a pass needs
beside them, and what the process takes before it holds a single number. Pages of the weight files, mapped while they are
read, are not counted: the system drops them when it needs room. Times are estimates: a step reads every weight once and the
keys and values of all rows, at the memory's bandwidth; layers that are streamed come over the link or from the disk. The
server asks `require` before it loads; the command `plan` asks for any machine, and for what else would do.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace

from engine.errors import GLMError
from engine.glm.cache_precision import cache_precision
from engine.glm.config import W8A8, Config, Quantization, check_split
from engine.glm.size import format_size

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
GPU_USABLE = 0.97  # of the memory that a card is sold with, beside its driver
GPU_PROCESS = 1 << 30  # context, libraries' buffers, fragments
CPU_PROCESS = 400 << 20  # Python and torch, 235 MiB; the vocabulary; buffers of torch's libraries
READERS, PIECE, PAGE = 2, 8 << 20, 4096  # of layers that are streamed (layer_stream.py, direct_reader.py)
PREFILL_TOKENS = 512  # the pool's default
SAMPLER = 48  # bytes of a row for each token of the vocabulary: logits of all ranks, then fp32 and fp64 copies of them
# Memory of a pass for each byte that is alive at its height: allocators keep what was freed, and matrix products pack their
# operands. Between 1.3 and 1.7 was measured on CPUs.
KEPT = 1.75
# Seconds that a layer costs beside its matrices: launches, and two exchanges where there are several ranks.
LAYER_OVERHEAD = 200e-6
EXCHANGE = 30e-6


@dataclass(frozen=True, slots=True)
class Machine:
    """gpus: 0 means that the CPU computes. memory: bytes of each GPU, or of the host if there is none. host: bytes of the
    host's memory beside GPUs, None if unknown. bandwidth, link, disk: bytes a second of that memory, of each GPU's way to
    host memory, and of the disk, which all ranks share. name: of one GPU, if it has one."""

    gpus: int
    memory: int
    host: int | None = None
    bandwidth: float = 0.0
    link: float = 12e9
    disk: float = 2e9
    name: str = ""


@dataclass(frozen=True, slots=True)
class Wish:
    """How a model is to be served. slots: requests of `tokens` tokens that must fit at the same time; None: at least one.
    weights_budget: bytes of a rank's weights in memory; None: as much as there is room for."""

    precision: str = "fp16"
    quantize: str | None = None
    tensor_parallel: int = 1
    offload: str = "none"
    weights_budget: int | None = None
    slots: int | None = None
    tokens: int = 2048
    kv_cache: str = "auto"


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes are of one rank, except host and disk, which are of the machine."""

    config: Config  # quantised as it will be
    machine: Machine
    wish: Wish
    available: int
    embedding: int
    layers: int  # all of the rank's layers
    resident: int  # those of them that stay in memory, buffers for streamed ones included
    pinned: int  # layers that stay; all of them without offload
    waiting: int  # layers that wait in the memory that computes: without GPUs it is the host's
    cache: int  # keys and values of the wished requests
    cache_token: int
    workspace: int
    process: int
    host: int  # bytes of host memory beside GPUs for layers that wait there
    disk: int  # bytes on disk for layers that wait there

    @property
    def needed(self) -> int:
        return self.embedding + self.resident + self.waiting + self.cache + self.workspace + self.process

    @property
    def fits(self) -> bool:
        return self.needed <= self.available and (self.machine.host is None or self.host <= self.machine.host)

    @property
    def weights_budget(self) -> int | None:
        """What keeps `pinned` layers in memory, as offload.load takes it; None without offload."""
        return None if self.wish.offload == "none" else self.embedding + self.resident

    @property
    def kv_tokens(self) -> int:
        """Tokens of all running requests together that there is room for."""
        return (self._spare + self.cache) // self.cache_token if self.fits else 0

    @property
    def requests(self) -> int:
        """Of wish.tokens tokens each, at the same time."""
        if not self.fits:
            return 0
        each = self.cache_token * self.wish.tokens + SAMPLER * self.config.vocabulary
        return (self.wish.slots or 1) + self._spare // each

    @property
    def _spare(self) -> int:
        """What is free has gone to layers that stay, where layers are streamed and nobody said how many stay."""
        if self.pinned < self.config.layers and self.wish.weights_budget is None:
            return 0
        return self.available - self.needed

    def tokens_per_second(self, rows: int) -> float:
        """Of all rows together, each half way through its tokens. An estimate; 0 without a known bandwidth."""
        machine, config, wish = self.machine, self.config, self.wish
        if not machine.bandwidth or not rows:
            return 0.0
        share = 1 if machine.gpus else wish.tensor_parallel  # ranks of one host share its memory's bandwidth
        streamed = self.layers - self.layers * self.pinned // config.layers
        read = self.embedding + self.layers * self._moved() + rows * self.cache_token * wish.tokens // 2
        seconds = read * share / machine.bandwidth
        if streamed and wish.offload == "host" and machine.gpus:
            seconds = max(seconds, streamed / machine.link)
        elif streamed and wish.offload == "disk":
            seconds = max(seconds, streamed * wish.tensor_parallel / machine.disk)
        overhead = LAYER_OVERHEAD + (2 * EXCHANGE if wish.tensor_parallel > 1 else 0)
        return rows / (seconds + config.layers * overhead)

    def _moved(self) -> float:
        """Bytes that move for each byte of a layer. Quantised weights are written out in 16 bits, then in the type of the
        arithmetic, and read again, but for the CPU's kernels in bf16, which read them as they are."""
        precision, quantization = self.wish.precision, self.config.quantization
        if quantization is None or reads_quantized(self.machine, precision) or self.wish.quantize == W8A8:
            return 1.0
        return 1 + (4 + (0 if precision == "fp16" else BYTES[precision])) * 8 / quantization.bits


def plan(config: Config, machine: Machine, wish: Wish) -> Plan:
    """GLMError bad_request; unsupported if the model can't be split or quantised so.

    Layers that wait are taken to have their embedding stored in 16 bits, as model folders usually do.
    """
    size = wish.tensor_parallel
    if machine.gpus and size > machine.gpus:
        message = f"{size} ranks need a GPU each, there are {machine.gpus}."
        raise GLMError("unsupported", message, field="tensor_parallel", limit=machine.gpus)
    config = config.quantized(wish.quantize, size)
    check_split(config, size)
    number = BYTES[wish.precision]
    hidden, inner, slots = config.hidden, config.inner, wish.slots or 1
    offloaded = wish.offload != "none"
    tensors = layer_tensors(config, size, number, packed=reads_quantized(machine, wish.precision))
    layers = config.layers * sum(tensors)
    table = config.vocabulary // size * hidden
    # Without GPUs the logits of fp32 may come from a packed copy (prepacked.py).
    copy = 4 * table if not machine.gpus and not offloaded and wish.precision == "fp32" else 0
    embedding = table * (2 if offloaded else number) + copy + 2 * hidden * number
    kept = cache_precision(wish.kv_cache, wish.precision, config.quantization is not None)
    cache_token = 2 * config.layers * hidden // size * BYTES[kept]
    cache = cache_token * wish.tokens * slots
    length = max(wish.tokens, PREFILL_TOKENS)
    alive = length * (4 * hidden + max(8 * hidden, 5 * inner) // size) * number
    if config.quantization is not None:
        alive += 2048 * max(hidden, inner // size) * (2 + number)  # rows written out at a time
    workspace = int(KEPT * alive) + SAMPLER * config.vocabulary * slots
    process = GPU_PROCESS if machine.gpus else CPU_PROCESS
    available = int(machine.memory) if machine.gpus else machine.memory // size
    pinned, resident, waiting, host, disk = config.layers, layers, 0, 0, 0
    if offloaded:
        room = available - embedding - cache - workspace - process
        buffer = sum(map(_buffer_bytes, tensors))
        through = READERS * PAGE if wish.offload == "host" else READERS * (min(PIECE, max(tensors)) + 4 * PAGE)
        if wish.weights_budget is not None:
            _check_budget(config, wish.weights_budget, embedding + min(2, config.layers) * sum(tensors), through)
            room = wish.weights_budget - embedding
        resident = config.layers * buffer
        if room < resident and 2 * buffer + through < resident:
            pinned = max(0, (room - through) // buffer - 2)
            resident = (pinned + 2) * buffer + through
    if wish.offload == "host":
        if machine.gpus:
            host = (config.layers - pinned) * size * sum(map(_pinned_bytes, tensors))
        elif pinned < config.layers:
            # It is the same memory, and nothing is gained; two more layers while they are read.
            waiting = (config.layers - pinned + 2) * sum(tensors)
    if wish.offload == "disk":
        disk = layers * size
    return Plan(
        config, machine, wish, available, embedding, layers, resident, pinned, waiting, cache, cache_token, workspace,
        process, host, disk,
    )  # fmt: skip


def _check_budget(config: Config, budget: int, smallest: int, through: int) -> None:
    """GLMError bad_request for one that offload.load will refuse; for one that is nearly too small it knows better."""
    if budget < smallest:
        message = (
            f"A weights budget of {format_size(budget)} is too small: {config.name} needs "
            f"{format_size(smallest + through)}, for its embedding and two layers at a time."
        )
        raise GLMError("bad_request", message, field="weights_budget", limit=smallest + through)


def reads_quantized(machine: Machine, precision: str) -> bool:
    """Whether products are computed from whole numbers as they are stored, or nearly: torch's kernels for CPUs (packed.py)."""
    return machine.gpus == 0 and precision == "bf16"


def layer_tensors(config: Config, size: int, number: int, *, packed: bool = False) -> list[int]:
    """Bytes of each tensor in one rank's part of one layer. number: bytes of a plain weight; packed: for CPUs' kernels."""
    hidden, inner = config.hidden, config.inner // size
    own = hidden // size
    # rows, columns of the rank; columns of the whole matrix; split by columns
    matrices = ((3 * own, hidden, hidden, False), (hidden, own, hidden, True),
                (2 * inner, hidden, hidden, False), (hidden, inner, config.inner, True))  # fmt: skip
    tensors = [hidden * number] * 4  # two LayerNorms
    for rows, columns, whole, split in matrices:
        tensors.append(rows * number)  # the bias
        quantization = config.quantization
        if quantization is None:
            tensors.append(rows * columns * number)
            continue
        groups = quantization.groups(whole, split)
        groups = max(1, groups // size) if split else groups
        tensors.append(rows * (columns * quantization.bits // 8))
        tensors.append(rows * _scale_bytes(quantization, rows, columns, groups, packed))
    return tensors


def _scale_bytes(quantization: Quantization, rows: int, columns: int, groups: int, packed: bool) -> int:
    """Of a row. The kernel for four bits wants a scale and a zero for 256 columns at most."""
    group = math.gcd(columns // groups, 256)
    if not packed or quantization.bits == 8 or group < 32 or rows % 16 or columns % 32:
        return groups * 2
    return columns // group * 4


def _buffer_bytes(tensor: int) -> int:
    """Of a tensor in a streamed layer, which begins at a page of its own."""
    return -(-tensor // PAGE) * PAGE + PAGE


def _pinned_bytes(tensor: int) -> int:
    """Of a tensor that waits for a GPU: torch rounds page-locked memory up to a power of two."""
    return 1 << (tensor - 1).bit_length()


def largest_split(config: Config, quantize: str | None, most: int) -> int:
    """The most ranks, up to `most`, that a model can be split over."""
    for size in range(min(most, config.heads), 1, -1):
        try:
            check_split(config.quantized(quantize, size), size)
        except GLMError:
            continue
        return size
    return 1


def choices(config: Config, machine: Machine, wish: Wish) -> Iterator[Plan]:
    """What else would fit, nearest first: fewer requests, fewer bits, layers in host memory or on disk, more GPUs."""
    if (fewer := _fitting(config, machine, wish)) is not None:
        yield fewer
    for kind, precision in _numbers(config, machine, wish):
        other = replace(wish, quantize=kind, precision=precision, weights_budget=None)
        # Without GPUs host memory is the same memory; with them it is better than the disk.
        places = [
            replace(other, offload=place) for place in ("none", "host", "disk") if machine.gpus or place != "host"
        ]
        found = next(filter(None, (_fitting(config, machine, place) for place in places if place != wish)), None)
        if found is not None:
            yield found
            if found.wish.offload == "none":
                return
    for gpus in (2 * machine.gpus, 4 * machine.gpus, 8 * machine.gpus) if machine.gpus else ():
        more = replace(wish, tensor_parallel=largest_split(config, wish.quantize, gpus))
        found = plan(config, replace(machine, gpus=gpus), more)
        if found.fits:
            yield found
            return


def _numbers(config: Config, machine: Machine, wish: Wish) -> Iterator[tuple[str | None, str]]:
    """Quantisation and precision, those of the wish first, then shorter ones."""
    yield wish.quantize, wish.precision
    shorter = [None, "int8", "int4"]
    kinds = shorter[shorter.index(wish.quantize) :] if wish.quantize in shorter else [wish.quantize]
    for kind in kinds if config.quantization is None else [wish.quantize]:
        precision = wish.precision if machine.gpus else "bf16"  # in which CPUs are quick with quantised weights
        if (kind, precision) != (wish.quantize, wish.precision):
            yield kind, precision


def _fitting(config: Config, machine: Machine, wish: Wish) -> Plan | None:
    """The plan for as many of the wished requests as there is room for; None if there isn't any for one."""

    def full(slots: int) -> bool:
        return not plan(config, machine, replace(wish, slots=slots)).fits

    if wish.slots is not None and full(wish.slots):
        slots = bisect_left(range(1, wish.slots), True, key=full)  # room for this many
        return plan(config, machine, replace(wish, slots=slots)) if slots else None
    found = plan(config, machine, wish)
    return found if found.fits else None


def rows_of(found: Plan) -> list[tuple[str, str]]:
    """The memory of a rank by kind, as a table's rows."""
    config, wish, slots = found.config, found.wish, found.wish.slots or 1
    stay = f"{config.layers} layers"
    if found.pinned < config.layers:
        stay = f"{found.pinned} of {stay}, room for two in turn"
    rows = [
        ("embedding", found.embedding),
        (stay, found.resident),
        ("layers that wait", found.waiting),
        (f"keys and values, {slots} x {wish.tokens} tokens", found.cache),
        ("a pass", found.workspace),
        ("the process itself", found.process),
    ]
    rows = [(name, size) for name, size in rows if size]
    return [
        (name, format_size(size)) for name, size in (*rows, ("needed", found.needed), ("available", found.available))
    ]


def describe(found: Plan) -> str:
    """How a plan serves, in one line: "8 GPUs of 40 GiB, fp16, int4 weights, layers wait in host memory"."""
    machine, wish, quantization = found.machine, found.wish, found.config.quantization
    size = machine.name or format_size(machine.memory)
    what = (
        f"{machine.gpus} GPUs of {size}"
        if machine.gpus > 1
        else f"a GPU of {size}"
        if machine.gpus
        else f"a CPU with {size}"
    )
    parts = [what, wish.precision]
    parts += [f"{quantization.name} weights"] if quantization is not None else []
    parts += [f"{wish.tensor_parallel} ranks"] if wish.tensor_parallel not in (1, machine.gpus) else []
    parts += {"none": [], "host": ["layers wait in host memory"], "disk": ["layers wait on disk"]}[wish.offload]
    return ", ".join(parts + ([f"{wish.slots} slots"] if wish.slots is not None else []))


def flags(found: Plan, wish: Wish) -> str:
    """What to say for this plan instead of a wish, to the server and to every command: `--quantize int4 --slots 9`."""
    names = ("precision", "quantize", "offload", "slots", "tensor_parallel")
    parts = [
        f"--{name.replace('_', '-')} {getattr(found.wish, name)}"
        for name in names
        if getattr(found.wish, name) != getattr(wish, name)
    ]
    parts += ["without --weights-budget"] if found.wish.weights_budget != wish.weights_budget else []
    return " ".join(parts)


def require(config: Config, machine: Machine, wish: Wish) -> Plan:
    """The plan, if it fits. GLMError overloaded with the table and what would fit; those of `plan`."""
    found = plan(config, machine, wish)
    if found.fits:
        return found
    lines = [
        f"{config.name} does not fit: {describe(found)}. {'Each rank' if wish.tensor_parallel > 1 else 'It'} needs:"
    ]
    lines += [f"  {name}: {size}" for name, size in rows_of(found)]
    if found.host:
        lines.append(f"  host memory for all ranks: {format_size(found.host)} of {format_size(machine.host or 0)}")
    others = list(choices(config, machine, wish))
    lines += ["What would:" if others else "Nothing near would."]
    lines += [f"  {flags(other, wish)}" for other in others]
    raise GLMError("overloaded", "\n".join(lines), field="model", limit=found.available)
