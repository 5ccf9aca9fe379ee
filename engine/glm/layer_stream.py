"""Layers that take turns in a few buffers: while one computes, the next are on their way.

A pass needs the layers in order, over and over, so what is to come is known: after the last layer the first streamed one
follows. With two buffers the next layer is brought in while the current one computes. Passes may stop between layers and take
turns; that costs speed only. One thread at a time asks for layers; reader threads bring them.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Protocol

import torch
from torch import Tensor

from engine.glm.config import Config
from engine.glm.direct_reader import ALIGNMENT, aligned_bytes, round_up
from engine.glm.model import Layer
from engine.glm.packed import pack
from engine.glm.parallel import Ranks

READERS = 2  # one reads while the other copies or hands on

Form = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]  # of a layer's tensors, by their names in it


def layer_size(form: Form) -> int:
    """Bytes of a Buffer."""
    return sum(round_up(kind.itemsize * math.prod(shape)) + ALIGNMENT for kind, shape in form.values())


class Part(Protocol):
    """A part of a tensor that can be brought to where it belongs, with a small aligned buffer to go through."""

    def bring(self, staging: Tensor) -> None: ...


class Source(Protocol):
    """Where layers wait. `parts` of a layer may be brought in any order, each through `staging` bytes of a buffer."""

    form: Form
    staging: int

    def keep(self, layers: Iterable[int]) -> None:
        """These layers will be asked for again and again."""

    def parts(self, layer: int, buffer: Buffer) -> Iterable[Part]: ...

    def close(self) -> None: ...


class Buffer:
    """Memory for one layer, and the layer as a module on it. On a CPU each tensor begins at an aligned address.

    rooms: the tensors' own bytes, aligned and rounded up; none on an accelerator. size: bytes of it all.
    """

    def __init__(self, config: Config, ranks: Ranks, form: Form, dtype: torch.dtype, device: torch.device) -> None:
        self.size = layer_size(form)
        self.tensors: dict[str, Tensor] = {}
        self.rooms: dict[str, Tensor] = {}
        for name, (kind, shape) in form.items():
            if device.type == "cpu":
                size = kind.itemsize * math.prod(shape)
                self.rooms[name] = aligned_bytes(size)
                self.tensors[name] = self.rooms[name][:size].view(kind).view(shape)
            else:
                self.tensors[name] = torch.empty(shape, dtype=kind, device=device)
        self.layer = Layer(config, 0, ranks, device="meta", dtype=dtype)
        pack(self.layer, dtype, device)
        self.layer.load_state_dict(self.tensors, assign=True)
        self.layer.requires_grad_(False).eval()
        # Of a stream:
        self.number: int | None = None  # of the layer that it has or is to have
        self.coming: list[Future[None]] = []
        self.users = 0

    def be(self, number: int) -> Layer:
        """The module, as the layer of this number."""
        self.layer.attention.layer = number
        return self.layer


def staging_buffer(source: Source, device: torch.device) -> Tensor:
    """What one reader brings parts through."""
    return aligned_bytes(source.staging, pinned=device.type != "cpu")


class LayerStream:
    """Layers first .. last-1 of a source in turn in some buffers, at least two. `close` ends it."""

    def __init__(self, source: Source, buffers: list[Buffer], first: int, last: int, device: torch.device) -> None:
        assert len(buffers) >= 2
        self._source, self._buffers, self._device = source, buffers, device
        self._first, self._count = first, last - first
        self._transfer = torch.Stream(device=device)  # beside the one that computes
        self._local = threading.local()  # a staging buffer for each reader
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="weights")
        self.waited = 0.0  # seconds, for layers that had not come
        self._arrange(first)

    @contextlib.contextmanager
    def layer(self, number: int) -> Iterator[Layer]:
        """A layer, in place for as long as the context lasts. Errors: those of its parts; the next call tries again."""
        self._arrange(number)
        buffer = next(buffer for buffer in self._buffers if buffer.number == number)
        buffer.users += 1
        try:
            self._wait(buffer)
            yield buffer.be(number)
        finally:
            buffer.users -= 1
            self._arrange(self._after(number))

    def close(self) -> None:
        """No thread of it is left afterwards."""
        self._readers.shutdown(cancel_futures=True)

    def _after(self, number: int, steps: int = 1) -> int:
        return self._first + (number + steps - self._first) % self._count

    def _arrange(self, number: int) -> None:
        """Every buffer that isn't in use is to have one of the layers that are needed next, from `number` on."""
        free = [buffer for buffer in self._buffers if not buffer.users]
        wanted = [self._after(number, steps) for steps in range(min(len(free), self._count))]
        free = [buffer for buffer in free if buffer.number not in wanted]
        for layer in wanted:
            if all(buffer.number != layer for buffer in self._buffers):
                self._begin(layer, free.pop())

    def _begin(self, number: int, buffer: Buffer) -> None:
        for future in buffer.coming:
            future.cancel()
        wait(buffer.coming)
        if self._device.type != "cpu":  # what was started with the buffer's last layer may not be done
            self._transfer.wait_stream(torch.accelerator.current_stream(self._device))
        buffer.number = number
        buffer.coming = [self._readers.submit(self._bring, part) for part in self._source.parts(number, buffer)]

    def _bring(self, part: Part) -> None:
        """In a reader thread."""
        if not hasattr(self._local, "staging"):
            self._local.staging = staging_buffer(self._source, self._device)
        with self._transfer:
            part.bring(self._local.staging)

    def _wait(self, buffer: Buffer) -> None:
        began = time.perf_counter()
        try:
            for future in buffer.coming:
                future.result()
        except BaseException:
            buffer.number = None
            raise
        finally:
            self.waited += time.perf_counter() - began
