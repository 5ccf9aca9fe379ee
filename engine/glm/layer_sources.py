"""Where layers wait for their turn in a LayerStream: in files, or in host memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from engine.errors import GLMError
from engine.glm.direct_reader import ALIGNMENT, PIECE, DirectFile
from engine.glm.layer_files import Piece, Place, copy, pieces, places
from engine.glm.layer_stream import Buffer, Form


class FileSource:
    """Layers in files, each given by the places of its tensors. Several layers may be at the same places.

    form: what the tensors are to be in memory; their shapes must be those of the files.
    """

    def __init__(self, layers: Sequence[Mapping[str, Place]], form: Form) -> None:
        self.form, self._layers = form, layers
        for number, layer in enumerate(layers):
            for name, (_, shape) in form.items():
                if name not in layer:
                    raise GLMError("bad_model", f"There is no layers.{number}.{name} in the weights.", field="model")
                if layer[name].shape != tuple(shape):
                    shapes = f"{layer[name].shape}, the config asks for {tuple(shape)}"
                    raise GLMError("bad_model", f"layers.{number}.{name} has the shape {shapes}.", field="model")
        largest = max(layer[name].size for layer in layers for name in form)
        self.staging = min(PIECE, largest) + 2 * ALIGNMENT

    def keep(self, layers: Iterable[int]) -> None:
        """See layer_stream.Source: they are in their files."""

    def parts(self, layer: int, buffer: Buffer) -> Iterator[Piece]:
        """See layer_stream.Source."""
        for name, tensor in buffer.tensors.items():
            yield from pieces(self._layers[layer][name], tensor, buffer.rooms.get(name))

    @property
    def files(self) -> list[DirectFile]:
        """Each once, in the order of the layers."""
        return list(dict.fromkeys(place.file for layer in self._layers for place in layer.values()))

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()


def model_layers(paths: Sequence[Path], count: int) -> list[dict[str, Place]]:
    """The layers in the files of a model folder, as they are stored. Error: bad_model."""
    layers: list[dict[str, Place]] = [{} for _ in range(count)]
    for path in paths:
        file = DirectFile(path)
        found = {name: place for name, place in places(file).items() if name.startswith("layers.")}
        if not found:  # the embedding's
            file.close()
        for name, place in found.items():
            _, number, tensor = name.split(".", 2)
            if not number.isdecimal() or int(number) >= count:
                raise GLMError("bad_model", f"{path.name} has an unexpected tensor {name}.", field="model")
            layers[int(number)][tensor] = place
    return layers


def prepared_layers(paths: Sequence[Path]) -> list[dict[str, Place]]:
    """The layers in files that hold one each, as layer_files.write makes them. A path may come several times."""
    files = {path: places(DirectFile(path)) for path in paths}
    return [files[path] for path in paths]


@dataclass(frozen=True, slots=True)
class HostPart:
    """A part of a tensor in host memory, and where it goes."""

    source: Tensor
    target: Tensor

    def bring(self, staging: Tensor) -> None:
        copy(self.source, self.target)


class HostSource:
    """Layers in host memory, in page-locked memory if they are for an accelerator.

    read: a layer's tensors. Layers that `keep` isn't called for are read each time that they are asked for.
    """

    def __init__(self, read: Callable[[int], Mapping[str, Tensor]], form: Form, device: torch.device) -> None:
        self.form, self.staging = form, 0
        self._read, self._locked = read, device.type != "cpu"
        self._layers: dict[int, Mapping[str, Tensor]] = {}

    def keep(self, layers: Iterable[int]) -> None:
        """See layer_stream.Source."""
        for number in layers:
            found = {name: tensor.cpu() for name, tensor in self._read(number).items()}
            self._layers[number] = (
                {name: tensor.pin_memory() for name, tensor in found.items()} if self._locked else found
            )

    def parts(self, layer: int, buffer: Buffer) -> Iterator[HostPart]:
        """See layer_stream.Source."""
        waiting = self._layers.get(layer) or self._read(layer)
        for name, tensor in buffer.tensors.items():
            step = PIECE // tensor.element_size()
            sources = waiting[name].view(-1).split(step)
            yield from itertools.starmap(HostPart, zip(sources, tensor.view(-1).split(step), strict=True))

    def close(self) -> None:
        """Forget the layers."""
        self._layers = {}


def form_of(tensors: Mapping[str, Tensor]) -> Form:
    """Types and shapes."""
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
