"""Models whose weights are larger than the memory for them: some layers stay, the others are streamed in every pass.

Of a budget of bytes the embedding, the last LayerNorm and two layers' buffers are taken first; what is left holds the first
layers for good. The other layers wait on disk, read past the page cache, or in host memory. A pass is the usual one: each
layer is brought in once for all rows of a batch, while the one before it computes (layer_stream.py).

On disk, a model folder is read in place where its layers are stored as they compute, or nearly: types are converted on the
way. Else prepared files are made of it once (prepared.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from engine.errors import GLMError
from engine.glm.checkpoint import Weights, fill, serving_config, weight_files
from engine.glm.config import Config
from engine.glm.direct_reader import ALIGNMENT, DirectFile, round_up
from engine.glm.layer_files import places
from engine.glm.layer_sources import FileSource, HostSource, form_of, model_layers, prepared_layers
from engine.glm.layer_stream import READERS, Buffer, Form, LayerStream, Source, layer_size, staging_buffer
from engine.glm.model import GLM, Embedding, Layer
from engine.glm.packed import is_repacked, pack
from engine.glm.parallel import SINGLE, Ranks
from engine.glm.prepared import prepare, ready_layer
from engine.glm.size import format_size

BUFFERS = 2


class OffloadedGLM(GLM):
    """A GLM whose layers are streamed, apart from the first `pinned`. Those that are streamed have no weights as modules.

    Made without any weights: `make_ends` makes room for those of embedding and last LayerNorm, which the caller fills;
    `settle` brings the layers. `close` ends it. device: the one that computes.
    """

    def __init__(
        self, config: Config, *, dtype: torch.dtype, device: torch.device | str = "cpu", ranks: Ranks = SINGLE
    ) -> None:
        super().__init__(config, device="meta", dtype=dtype, ranks=ranks)
        self._device = torch.device(device)
        pack(self.layers, dtype, self._device)
        self.pinned = 0
        self._kept: list[Buffer] = []
        self._through = 0  # bytes
        self._source: Source | None = None
        self._stream: LayerStream | None = None

    @property
    def device(self) -> torch.device:
        return self._device

    def make_ends(self, embedding: torch.dtype) -> None:
        """embedding: the type of its numbers; it is large, and rows of it are converted when they are needed."""
        config, device, rows = self.config, self.device, self.config.vocabulary // self.ranks.size
        norm = nn.LayerNorm(config.hidden, eps=config.layernorm_epsilon, device=device, dtype=self.dtype)
        self.word_embeddings = Embedding(rows, config.hidden, device=device, dtype=embedding).requires_grad_(False)
        self.final_layernorm = norm.requires_grad_(False)

    def settle(self, source: Source, budget: int | None) -> None:
        """Load as many layers as the budget (bytes) allows, and begin to stream the rest. None: as little as possible.

        Error: bad_request for a budget that is too small, with the smallest that isn't.
        """
        self._source = source
        count = len(self.layers)
        layer = layer_size(source.form)
        others = sum(
            tensor.nbytes for module in (self.word_embeddings, self.final_layernorm) for tensor in module.parameters()
        )
        through = READERS * (round_up(source.staging) + ALIGNMENT)
        smallest = others + min(count * layer, through + BUFFERS * layer)
        if budget is None:
            budget = smallest
        if budget < smallest:
            raise GLMError(
                "bad_request",
                f"A weights budget of {format_size(budget)} is too small: {self.config.name} needs {smallest} bytes "
                f"({format_size(smallest)}), for its embedding and two layers at a time.",
                field="weights_budget",
                limit=smallest,
            )
        whole = others + count * layer <= budget
        self.pinned = count if whole else (budget - others - through) // layer - BUFFERS
        room = staging_buffer(source, self.device)
        for number in range(self.pinned):
            buffer = self.read_layer(source, number, room)
            self._kept.append(buffer)
            self.layers[number] = buffer.be(number)
        if not whole:
            source.keep(range(self.pinned, count))
            buffers = [self._buffer(source.form) for _ in range(BUFFERS)]
            self._kept += buffers
            self._stream = LayerStream(source, buffers, self.pinned, count, self.device)
            self._through = through

    def read_layer(self, source: Source, number: int, staging: Tensor | None = None) -> Buffer:
        """A layer in memory of its own. staging: what its parts go through, if there is one already."""
        buffer = self._buffer(source.form)
        room = staging_buffer(source, self.device) if staging is None else staging
        for part in source.parts(number, buffer):
            part.bring(room)
        return buffer

    def _buffer(self, form: Form) -> Buffer:
        return Buffer(self.config, self.ranks, form, self.dtype, self.device)

    def ready_layers(self, first: int, last: int | None) -> Iterator[Layer]:
        """See GLM. Errors: bad_model, when a layer can't be read."""
        for number in range(len(self.layers))[first:last]:
            if number < self.pinned:
                yield self.layers[number]
            else:
                assert self._stream is not None
                with self._stream.layer(number) as layer:
                    yield layer

    @property
    def form(self) -> Form:
        """The types and shapes of a layer's tensors as it computes."""
        return form_of(self.layers[0].state_dict())

    @property
    def weights_memory(self) -> int:
        """Bytes of all weights that are in memory, and of the buffers that they go through."""
        ends = [*self.word_embeddings.parameters(), *self.final_layernorm.parameters()]
        return sum(tensor.nbytes for tensor in ends) + sum(buffer.size for buffer in self._kept) + self._through

    @property
    def files(self) -> list[DirectFile]:
        """That layers are read from; none if they wait in memory."""
        return self._source.files if isinstance(self._source, FileSource) else []

    @property
    def waited(self) -> float:
        """Seconds that passes have waited for layers so far."""
        return self._stream.waited if self._stream is not None else 0.0

    def close(self) -> None:
        """End the reading threads and close the files. The model can't be used any more."""
        if self._stream is not None:
            self._stream.close()
        if self._source is not None:
            self._source.close()


def load(
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    ranks: Ranks = SINGLE,
    quantize: str | None = None,
    place: str = "disk",
    budget: int | None = None,
    cache: Path | None = None,
) -> OffloadedGLM:
    """The model of a folder with its layers beyond a budget of bytes streamed from `place`, "host" or "disk".

    cache: where prepared layers are kept, if not in the model's folder. An embedding that is stored in 16 bits stays so.
    Errors: those of checkpoint.load; bad_request for a budget that is too small; overloaded if the disk has no room for
    prepared layers.
    """
    device = torch.device(device)
    weights = Weights(folder)
    config = serving_config(folder, ranks, quantize)
    model = OffloadedGLM(config, dtype=dtype, device=device, ranks=ranks)
    _check_names(model, weights)
    stored = _stored_type(weights, "word_embeddings.weight")
    model.make_ends(stored if stored.itemsize < dtype.itemsize else dtype)
    fill(model, weights, "word_embeddings.")
    fill(model, weights, "final_layernorm.")
    model.settle(_source(folder, weights, model, place, cache), budget)
    return model.eval()


def _source(folder: Path, weights: Weights, model: OffloadedGLM, place: str, cache: Path | None) -> Source:
    config, device = model.config, model.device
    if place == "host":
        return HostSource(lambda number: ready_layer(model, weights, number, device), model.form, device)
    assert place == "disk", place
    # Whole layers in the types of a Layer, or types that convert to them without loss of time: the files serve as they are.
    as_stored = not is_repacked(model.layers[0]) if weights.quantized else config.quantization is None
    if model.ranks.size == 1 and as_stored:
        layers = model_layers(weight_files(folder), config.layers)
        return FileSource(layers, model.form)
    layers = prepared_layers(prepare(folder, weights, model, device, cache))
    return FileSource(layers, {name: (place.dtype, place.shape) for name, place in layers[0].items()})


def _check_names(model: GLM, weights: Weights) -> None:
    names = {name for name in model.state_dict() if weights.quantized or not name.endswith(".weight_scale")}
    for name in sorted(weights.names ^ names):
        what = f"lacks {name}" if name in names else f"has an unexpected tensor {name}"
        raise GLMError("bad_model", f"{weights.folder} {what}.", field="model")


def _stored_type(weights: Weights, name: str) -> torch.dtype:
    file = DirectFile(weights.folder / weights.file(name))
    try:
        return places(file)[name].dtype
    finally:
        file.close()
