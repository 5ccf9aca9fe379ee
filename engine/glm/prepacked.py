"""fp32 matrices on a CPU as a decode step reads them best: by our own products where they are there (native.py), else in the
layout that oneDNN multiplies by. Either is several times as fast as torch's plain product for few rows, and gives a row the same
numbers, to the bit, whatever other rows are beside it.

oneDNN's packed weight takes the place of the plain one, so it is never there twice; only the embedding stays for looking tokens
up, and a packed copy of it makes the logits. Our own products read plain weights, the embedding's too. What is prepacked isn't
saved, trained or split any more. Sums are fp32, in another order than torch's plain product. Biases, the gate and the residual
are added where the product is written.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from engine.glm import native
from engine.glm.eight_bit import EightBitProduct, has_onednn
from engine.glm.model import GLM, Embedding, Linear
from engine.glm.native_layer import NativeLayer, NativeLayers
from engine.glm.packed import native_product
from engine.glm.projection import Projection
from engine.glm.quantize import QuantizedLinear

# Rows that oneDNN is told to expect. Told 1, it chooses a kernel for a single row, whose sums are in another order than those
# of its kernels for several. With AVX-512 it does so for a single row of some thousand columns whatever it is told: such a row
# is computed twice, which costs a decode step of one row 2%.
_EXPECTED_ROWS = 16


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether matrices of a type on a device have a packed form."""
    return dtype == torch.float32 and has_onednn(device)


class PlainMatrix:
    """A (rows, columns) weight as it is, for our own products. It may be of a shorter type than the states."""

    def __init__(self, weight: Tensor) -> None:
        self.matrix = native.Matrix(weight.detach().contiguous(), *weight.shape)

    @property
    def nbytes(self) -> int:
        return self.matrix.weight.nbytes

    def __call__(self, states: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product with states (..., columns), plus the bias."""
        return native.multiply(self.matrix, states, bias)

    def plus(self, states: Tensor, residual: Tensor, bias: Tensor) -> Tensor:
        return native.multiply(self.matrix, states, bias, residual.contiguous())


class PackedMatrix:
    """The same by oneDNN, of fp32."""

    def __init__(self, weight: Tensor) -> None:
        self.rows, self.columns = weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _EXPECTED_ROWS)
        self._alone_differs: dict[int, bool] = {}  # by the number of threads, on which oneDNN's choice may depend

    @property
    def nbytes(self) -> int:
        return 4 * self.rows * self.columns

    def __call__(self, states: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
        """gelu: the exact one of it."""
        after = ("gelu", [], "none") if gelu else ("none", [], "")
        if self._is_twice(states):
            twice = torch.ops.mkldnn._linear_pointwise(_twice(states), self._packed, bias, *after)
            return twice[:1].view(*states.shape[:-1], self.rows)
        return torch.ops.mkldnn._linear_pointwise(states, self._packed, bias, *after)

    def plus(self, states: Tensor, residual: Tensor, bias: Tensor) -> Tensor:
        return self.combined("add", states, residual, bias)

    def combined(self, how: str, states: Tensor, other: Tensor, bias: Tensor | None) -> Tensor:
        """how: "add" or "mul", for the product with its bias, and `other` (..., rows)."""
        if self._is_twice(states):
            twice = torch.ops.mkldnn._linear_pointwise.binary(_twice(states), _twice(other), self._packed, bias, how)
            return twice[:1].view(*states.shape[:-1], self.rows)
        return torch.ops.mkldnn._linear_pointwise.binary(states, other, self._packed, bias, how)

    def _is_twice(self, states: Tensor) -> bool:
        if states.numel() != self.columns:
            return False
        threads = torch.get_num_threads()
        if threads not in self._alone_differs:
            row = torch.linspace(-1, 1, self.columns).expand(2, -1).contiguous()
            alone, beside = (
                torch.ops.mkldnn._linear_pointwise(some, self._packed, None, "none", [], "") for some in (row[:1], row)
            )
            self._alone_differs[threads] = not torch.equal(alone, beside[:1])
        return self._alone_differs[threads]


class Packed(Projection):
    """What stands for the weight of a Linear, and knows its bias. By oneDNN as two matrices, if it is to be `gated`."""

    def __init__(self, linear: Linear, gated: bool) -> None:
        form = _form(linear.weight.device)
        parts = 2 if gated and form is PackedMatrix else 1
        weights, biases = linear.weight.chunk(parts), linear.bias.detach().chunk(parts)
        self._parts = [(form(weight), bias) for weight, bias in zip(weights, biases, strict=True)]

    @property
    def native(self) -> native.Matrix | None:
        """The matrix, if our own product is used."""
        first = self._parts[0][0]
        return first.matrix if isinstance(first, PlainMatrix) else None

    @property
    def nbytes(self) -> int:
        return sum(matrix.nbytes for matrix, _ in self._parts)

    def product(self, states: Tensor) -> Tensor:
        """Without the bias."""
        return _joined([matrix(states) for matrix, _ in self._parts])

    def __call__(self, states: Tensor) -> Tensor:
        """With the bias."""
        return _joined([matrix(states, bias) for matrix, bias in self._parts])

    def plus(self, states: Tensor, residual: Tensor) -> Tensor:
        [(matrix, bias)] = self._parts
        return matrix.plus(states, residual, bias)

    def gated(self, states: Tensor) -> Tensor:
        if len(self._parts) == 1:
            return native.gated(self(states))
        (value, value_bias), (gate, gate_bias) = self._parts
        return value.combined("mul", states, gate(states, gate_bias, gelu=True), value_bias)


def prepack(model: GLM) -> None:
    """Pack the plain matrices of a model that is to be served. On other devices and for other types nothing changes."""
    if not can_pack(model.dtype, model.device):
        return
    for name, linear in model.named_modules():
        if isinstance(linear, Linear) and linear.packed is None:
            linear.packed = Packed(linear, name.endswith("dense_h_to_4h"))
            del linear.weight
    if native.has_products(model.device):
        _shorten(model.word_embeddings)
    model.head = _form(model.device)(model.word_embeddings.weight)
    if native.has_products(model.device):
        for layer in model.layers:
            layer.whole = NativeLayer.of(layer)
        model.whole = NativeLayers.of(model)


def _shorten(embedding: Embedding) -> None:
    """To fp16, if it loses nothing by that: most checkpoints store it so, and each step reads it for its logits."""
    short = embedding.weight.detach().half()
    if torch.equal(short.float(), embedding.weight):
        embedding.weight = nn.Parameter(short, requires_grad=False)


def copies_embedding(model: GLM) -> bool:
    """Whether the logits come from a copy of the embedding."""
    return isinstance(model.head, PackedMatrix)


def _form(device: torch.device) -> type[PlainMatrix | PackedMatrix]:
    return PlainMatrix if native.has_products(device) else PackedMatrix


def keeps_rows_apart(model: GLM) -> bool:
    """Whether the model's products give a row the same numbers, to the bit, whatever other rows are computed with it."""
    linears = [module for module in model.modules() if isinstance(module, Linear | QuantizedLinear)]
    if model.head is None or any(type(linear) not in (Linear, QuantizedLinear) for linear in linears):  # adapted ones
        return False
    return all(
        isinstance(linear.compute, EightBitProduct) or linear.compute is native_product
        if isinstance(linear, QuantizedLinear)
        else isinstance(linear.packed, Packed)
        for linear in linears
    )


def weight_bytes(model: GLM) -> int:
    """Of all weights of a model in memory, in whatever form, each once."""
    packed = [linear.packed for linear in model.modules() if isinstance(linear, Linear)]
    packed += [linear.compute for linear in model.modules() if isinstance(linear, QuantizedLinear)]
    head = [model.head] if copies_embedding(model) else []
    found = (one for one in (*packed, *head) if isinstance(one, Packed | PackedMatrix | EightBitProduct))
    return sum(one.nbytes for one in found) + sum(tensor.nbytes for tensor in model.state_dict().values())


def _twice(row: Tensor) -> Tensor:
    return row.reshape(1, -1).repeat(2, 1)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
