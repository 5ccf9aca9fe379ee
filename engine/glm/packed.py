"""torch's CPU kernels for weights of 8 and 4 bits: they read the numbers as they are, so a step costs their bytes only.

They are quick with bf16 activations alone; for other types, devices and shapes the exact product stays (quantize.py). Against
it, scales are rounded to bf16, an error of up to 2^-8 of all weights that a scale covers, and weights aren't rounded to fp16;
sums are in fp32 and rounded to bf16 once. Each row of activations is computed by itself: its result is the same, to the bit, in
any batch. Eight bits need one scale a row.

fp32 activations have products of our own where they can be built (native.py), and all types on GPUs (triton_products.py). They
read the same bytes, and compute what the exact product does.

Four bits are stored otherwise for torch's kernel, in place, so that they are never there twice: the layout depends on torch and
on the CPU. Scales become (columns / group, rows, 2) bf16, each with a zero beside it; where a scale covers more columns than
the kernel's groups do, it is repeated.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor, nn

from engine.glm import native
from engine.glm.eight_bit import EightBitProduct
from engine.glm.quantize import Product, QuantizedLinear, exact_product, unpack_nibbles

_GROUPS = (256, 128, 64, 32)  # columns a scale, as the kernel knows them
_BLOCK = 512  # rows that are packed at a time; a multiple of the kernel's 64


def pack(module: nn.Module, dtype: torch.dtype, device: torch.device, *, eight_bit: bool = False) -> None:
    """Let the quantised layers in a module compute states of a type on a device in the quickest way.

    eight_bit: with activations of 8 bits, too. On the meta device only types and shapes change. GLMError unsupported if a layer
    can't have such activations.
    """
    for linear in module.modules():
        if isinstance(linear, QuantizedLinear) and linear.compute is exact_product:
            linear.compute = EightBitProduct(linear) if eight_bit else best_product(linear, dtype, device)
            if linear.compute is int4_product:
                _pack_int4(linear)


def is_repacked(module: nn.Module) -> bool:
    """Whether `pack` gave a weight in a module another form than model folders have."""
    return any(isinstance(linear, QuantizedLinear) and linear.compute is int4_product for linear in module.modules())


def native_product(states: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Our own product with a quantised weight as it is stored, for fp32. The weight is what is stood for, as in the exact one."""
    return native.multiply(native.Matrix(weight, len(weight), states.shape[-1], scale), states)


def _native_affine(linear: QuantizedLinear, states: Tensor, residual: Tensor | None) -> Tensor:
    matrix = native.Matrix(linear.weight, linear.rows, linear.columns, linear.weight_scale)
    return native.multiply(matrix, states, linear.bias, None if residual is None else residual.contiguous())


native_product.affine = _native_affine


def has_triton(device: torch.device) -> bool:
    """Whether there is such a device, of a kind that Triton serves, and Triton: torch for GPUs brings it."""
    return device.type in ("cuda", "xpu") and torch.accelerator.is_available() and find_spec("triton") is not None


def best_product(linear: QuantizedLinear, dtype: torch.dtype, device: torch.device) -> Product:
    """torch's kernels read beyond the end of other shapes, or refuse them."""
    if has_triton(device):
        from engine.glm import triton_products

        if triton_products.can_multiply(linear, dtype, device):
            return triton_products.triton_product
    if dtype == torch.float32 and native.can_multiply(linear.bits, linear.columns, linear.groups):
        return native_product if native.has_products(device) else exact_product
    if dtype != torch.bfloat16 or device.type != "cpu" or linear.rows % 16 or linear.columns % 32:
        return exact_product
    if linear.bits == 8:
        return int8_product if linear.groups == 1 else exact_product
    return int4_product if linear.columns // linear.groups % min(_GROUPS) == 0 else exact_product


def int8_product(states: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """weight: int8 (rows, columns); scale: fp16 (rows, 1)."""
    flat = states.reshape(-1, states.shape[-1])
    product = torch._weight_int8pack_mm(flat.contiguous(), weight, scale.flatten().to(torch.bfloat16))
    return product.view(*states.shape[:-1], -1)


def int4_product(states: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """weight and scale as `_pack_int4` makes them."""
    columns = states.shape[-1]
    flat = states.reshape(-1, columns).contiguous()
    group = columns // len(scale)
    product = torch._weight_int4pack_mm_for_cpu(flat, weight.view(torch.uint8), group, scale)
    return product.view(*states.shape[:-1], -1)


def _pack_int4(linear: QuantizedLinear) -> None:
    span = linear.columns // linear.groups
    group = next(size for size in _GROUPS if span % size == 0)
    scale = linear.weight_scale.to(torch.bfloat16).repeat_interleave(span // group, dim=1).t()
    linear.weight_scale = torch.stack((scale, torch.zeros_like(scale)), dim=-1)
    if linear.weight.is_meta:
        return
    for rows in linear.weight.split(_BLOCK):
        numbers = (unpack_nibbles(rows) + 8).to(torch.int32)
        rows.view(torch.uint8).copy_(torch._convert_weight_to_int4pack_for_cpu(numbers, 1))
