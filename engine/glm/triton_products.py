"""Products with quantised weights on GPUs: Triton kernels that read the stored bytes once. Only where Triton is (packed.py).

The weight is what quantize.py says it stands for, fp16(q * scale), converted to the states' type. Sums are in fp32; bias and
residual are added to them before they are rounded, once. A group of columns that has a scale may have any size.

There are two kernels. One is for up to FEW rows of states, as decode steps have, and bound by reading the weight; the other one,
for prompts, is bound by the multiplications. Which one is taken depends on the number of rows alone. Within a kernel, what a row
gets depends neither on how many rows there are nor on what is in the others. Blocks are fixed, nothing is timed, so all ranks
compute alike; nothing is read back from the device, so launches can be captured in a graph.

torch's own kernels for GPUs were not taken. `_weight_int8pack_mm` gives each result to one thread, knows one scale a row, and
multiplies by it after the sum, so no weight is rounded to fp16. `_weight_int4pack_mm` wants scales and states in bf16, groups of
32 to 256 columns, a layout of its own, and an Ampere GPU or a later one.
"""

from __future__ import annotations

import logging
import subprocess
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

from engine.glm.quantize import QuantizedLinear, exact_product, quantize_weight

FEW = 64  # rows of states
_TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_TOGETHER = 16  # blocks of a prompt's tokens, at most, that meet the same rows of the weight at about the same time
_AMPERE = 80  # NVIDIA's first GPUs on which Triton multiplies on tensor cores
_log = logging.getLogger(__name__)

# ---- Kernels. A byte of the weight is a column, or two of four bits; `width`, SPAN and GROUP count bytes: of a row, of what is
# multiplied at a time, of what has a scale together (0: the whole row). Where there is more than one GROUP in a SPAN, each byte's
# scale is looked up. Tokens are rows of states. Rows are found by numbers of 64 bits: prompts may have more than 2^31 results.


@triton.jit
def _column(numbers):
    """int8 -> the same in fp16: as the last bits of a number from 1024 on, for that costs less than a conversion."""
    return ((numbers.to(tl.int16) & 0xFF) ^ 0x6480).to(tl.float16, bitcast=True) - 1152.0


@triton.jit
def _even_column(numbers):
    """The upper four bits of each byte, likewise; there they count 16 times as much."""
    return ((numbers.to(tl.int16) & 0xF0) ^ 0x6480).to(tl.float16, bitcast=True) * 0.0625 - 72.0


@triton.jit
def _odd_column(numbers):
    return ((numbers.to(tl.int16) & 0x0F) ^ 0x6408).to(tl.float16, bitcast=True) - 1032.0


@triton.jit
def _dot(total, columns, scales, states, TYPE: tl.constexpr, OPERAND: tl.constexpr):
    """TYPE: of the states, to which what is stood for is rounded. OPERAND: it, or a longer one that has a product."""
    weight = (columns * scales).to(TYPE).to(OPERAND)
    return tl.dot(weight, tl.trans(states).to(OPERAND), total, input_precision="ieee")


@triton.jit
def _finish(total, bias, residual, out, row, token, count, rows):
    """total: fp32 (rows, tokens)."""
    if bias is not None:
        total += tl.load(bias + row, row < rows, 0).to(tl.float32)[:, None]
    place = token.to(tl.int64)[None, :] * rows + row[:, None]
    there = (row < rows)[:, None] & (token < count)[None, :]
    if residual is not None:
        total += tl.load(residual + place, there, 0).to(tl.float32)
    tl.store(out + place, total, there)


@triton.jit
def _sum(left, right):
    return left + right


@triton.jit(do_not_specialize=["count"])
def _few(
    states,
    weight,
    scale,
    bias,
    residual,
    out,
    count,
    rows,
    width,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    PARTS: tl.constexpr,
    SPAN: tl.constexpr,
    OPERAND: tl.constexpr,
    STAGES: tl.constexpr,
):
    """PARTS products at a time that are summed at the end, for then the warps have different parts of the rows. Were each to have
    other rows, there would be too few programs to keep a GPU's memory busy."""
    COLUMNS: tl.constexpr = 8 // BITS  # of a byte
    TYPE: tl.constexpr = states.dtype.element_ty
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    part = tl.arange(0, PARTS) * SPAN
    byte = part[:, None] + tl.arange(0, SPAN)[None, :]
    column = part[:, None] * COLUMNS + tl.arange(0, SPAN * COLUMNS)[None, :]
    has_row = (row < rows)[None, :]
    has_token = (token < count)[None, :, None]
    bytes_at = weight + row.to(tl.int64)[None, :, None] * width + byte[:, None, :]
    states_at = states + token.to(tl.int64)[None, :, None] * (width * COLUMNS) + column[:, None, :]
    scales_at = scale + row.to(tl.int64)[None, :] * (1 if GROUP == 0 else width // GROUP)
    if GROUP == 0:
        scales = tl.load(scales_at, has_row, 0)
    elif GROUP % SPAN == 0:
        scales = tl.load(scales_at + (part // GROUP)[:, None], has_row & (part < width)[:, None], 0)
    total = tl.full((PARTS, ROWS, TOKENS), 0, tl.float32)
    for first in tl.range(0, width, PARTS * SPAN, num_stages=STAGES):
        has_byte = has_row[:, :, None] & (first + byte < width)[:, None, :]
        numbers = tl.load(bytes_at + first, has_byte, 0)
        has_column = has_token & (first * COLUMNS + column < width * COLUMNS)[:, None, :]
        some = tl.load(states_at + first * COLUMNS, has_column, 0)
        if GROUP == 0:
            by = scales[:, :, None]
        elif GROUP % SPAN == 0:
            by = scales[:, :, None]
            later = first + PARTS * SPAN + part  # they are on their way while these are used
            scales = tl.load(scales_at + (later // GROUP)[:, None], has_row & (later < width)[:, None], 0)
        else:
            by = tl.load(scales_at[:, :, None] + ((first + byte) // GROUP)[:, None, :], has_byte, 0)
        if BITS == 8:
            total = _dot(total, _column(numbers), by, some, TYPE, OPERAND)
        else:
            # To part the states costs less than to put the columns side by side.
            even, odd = tl.split(tl.reshape(some, (PARTS, TOKENS, SPAN, 2)))
            total = _dot(total, _even_column(numbers), by, even, TYPE, OPERAND)
            total = _dot(total, _odd_column(numbers), by, odd, TYPE, OPERAND)
    _finish(tl.reduce(total, 0, _sum), bias, residual, out, row, token, count, rows)


@triton.jit(do_not_specialize=["count"])
def _many(
    states,
    weight,
    scale,
    bias,
    residual,
    out,
    count,
    rows,
    width,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPAN: tl.constexpr,
    OPERAND: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The usual tiles. The weight is on the left: tensor cores take that side from registers, where it is made."""
    COLUMNS: tl.constexpr = 8 // BITS  # of a byte
    TYPE: tl.constexpr = states.dtype.element_ty
    token = (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)) * TOKENS + tl.arange(0, TOKENS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    byte = tl.arange(0, SPAN)
    column = tl.arange(0, SPAN * COLUMNS)
    has_row = row < rows
    has_token = (token < count)[:, None]
    bytes_at = weight + row.to(tl.int64)[:, None] * width + byte[None, :]
    states_at = states + token.to(tl.int64)[:, None] * (width * COLUMNS) + column[None, :]
    scales_at = scale + row.to(tl.int64) * (1 if GROUP == 0 else width // GROUP)
    if GROUP % SPAN == 0:
        scales = tl.load(scales_at, has_row, 0)
    total = tl.full((ROWS, TOKENS), 0, tl.float32)
    for first in tl.range(0, width, SPAN, num_stages=STAGES):
        has_byte = has_row[:, None] & (first + byte < width)[None, :]
        numbers = tl.load(bytes_at + first, has_byte, 0)
        has_column = has_token & (first * COLUMNS + column < width * COLUMNS)[None, :]
        some = tl.load(states_at + first * COLUMNS, has_column, 0)
        if GROUP == 0:
            by = scales[:, None]
        elif GROUP % SPAN == 0:
            by = scales[:, None]
            later = first + SPAN
            scales = tl.load(scales_at + later // GROUP, has_row & (later < width), 0)
        else:
            by = tl.load(scales_at[:, None] + ((first + byte) // GROUP)[None, :], has_byte, 0)
        if BITS == 8:
            total = _dot(total, _column(numbers), by, some, TYPE, OPERAND)
        else:
            even, odd = tl.split(tl.reshape(some, (TOKENS, SPAN, 2)))
            total = _dot(total, _even_column(numbers), by, even, TYPE, OPERAND)
            total = _dot(total, _odd_column(numbers), by, odd, TYPE, OPERAND)
    _finish(total, bias, residual, out, row, token, count, rows)


# ---- Launches


def triton_product(states: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """(..., columns) -> (..., rows). weight, scale: as quantize.py stores them. The exact product where a gradient is wanted."""
    if _wants_gradient(states):
        return exact_product(states, weight, scale)
    return _multiply(states, weight, scale)


def _affine(linear: QuantizedLinear, states: Tensor, residual: Tensor | None) -> Tensor:
    if _wants_gradient(states, linear.bias, residual):
        found = exact_product(states, linear.weight, linear.weight_scale) + linear.bias
        return found if residual is None else residual + found
    return _multiply(states, linear.weight, linear.weight_scale, linear.bias, residual)


triton_product.affine = _affine
triton_product.affine_types = tuple(_TYPES)


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _multiply(
    states: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    columns, (rows, width), groups = states.shape[-1], weight.shape, scale.shape[1]
    assert weight.is_contiguous() and scale.is_contiguous() and columns in (width, 2 * width)
    bits = 8 * width // columns
    flat, out = states.reshape(-1, columns).contiguous(), states.new_empty(*states.shape[:-1], rows)
    assert residual is None or residual.shape == out.shape
    residual = None if residual is None else residual.contiguous()
    group = 0 if groups == 1 else width // groups
    kernel, blocks = _blocks(len(flat), bits, group, states.dtype)
    of_tokens, of_rows = triton.cdiv(len(flat), blocks["TOKENS"]), triton.cdiv(rows, blocks["ROWS"])
    strips = triton.cdiv(of_tokens, _TOGETHER)
    # Triton's interpreter, which runs the kernels on a CPU, has no product of bf16.
    operand = tl.float32 if states.device.type == "cpu" else _TYPES[states.dtype]
    if out.numel():
        with torch.accelerator.device_index(states.device.index):  # Triton launches on the current one
            kernel[(triton.cdiv(of_tokens, strips), of_rows, strips)](
                flat, weight, scale, bias, residual, out, len(flat), rows, width, bits, group, OPERAND=operand, **blocks
            )
    return out


def _blocks(count: int, bits: int, group: int, dtype: torch.dtype) -> tuple[Any, dict[str, int]]:
    """The kernel for so many rows of states, and what it is given. Products of fp32 have no tensor cores, so other blocks.

    Of few rows only TOKENS depends on their number: it is not among what the sums depend on.
    """
    short = dtype != torch.float32
    if count <= FEW:
        stages = (4 if bits == 8 else 3) if short else 2
        tokens = 32 if short and count > 16 else 16
        return _few, {"ROWS": 16, "TOKENS": tokens, "PARTS": 8, "SPAN": 32, "STAGES": stages, "num_warps": 4}
    if not short:
        return _many, {"ROWS": 64, "TOKENS": 64, "SPAN": 32, "STAGES": 2, "num_warps": 4}
    span = 32 if bits == 4 or (group % 64 and group % 32 == 0) else 64
    return _many, {"ROWS": 128, "TOKENS": 128, "SPAN": span, "STAGES": 3, "num_warps": 8}


# ---- Whether they serve


def can_multiply(linear: QuantizedLinear, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether these products serve for a layer: tried out on the device, not looked up. For each form of weight once; it compiles.

    Triton needs a C compiler and a GPU that it knows; where anything fails, or a result is wrong, the exact product stays.
    """
    group = 0 if linear.groups == 1 else linear.columns // linear.groups
    return dtype in _TYPES and _is_right(linear.bits, group, dtype, device)


@cache
def _is_right(bits: int, group: int, dtype: torch.dtype, device: torch.device) -> bool:
    """group: columns, 0 for a whole row."""
    try:
        with torch.accelerator.device_index(device.index), torch.inference_mode():
            found = _has_tensor_cores() and _computes(bits, group, dtype, device)
    except (TritonError, RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        _log.warning("Triton's products with int%d weights can't be had here, slower ones serve: %s", bits, error)
        return False
    if not found:
        _log.warning("Triton has no right products with int%d weights and %s here, slower ones serve", bits, dtype)
    return found


def _has_tensor_cores() -> bool:
    target = triton.runtime.driver.active.get_current_target()
    return target.backend != "cuda" or target.arch >= _AMPERE


def _computes(bits: int, group: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Each kernel with each of its blocks against the exact product in fp32.

    Sizes are no multiples of the blocks, but of 16, as real ones are: Triton compiles others otherwise.
    """
    columns, rows, counts = group * max(2, -(-640 // group)) if group else 640, 160, (3, 20, FEW + 1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    numbers, scale = (part.to(device) for part in quantize_weight(weight, bits, columns // group if group else 1))
    states = torch.randn(max(counts), columns, generator=generator).to(device, dtype)
    exact = exact_product(states.float(), numbers, scale)
    found = torch.cat([_multiply(states[:count], numbers, scale).float() for count in counts])
    expected = torch.cat([exact[:count] for count in counts])
    # A wrong element is off by about a quarter of the largest one; rounding to bf16 by a hundredth of it at most.
    return bool((found - expected).abs().max() <= 0.02 * exact.abs().max())
