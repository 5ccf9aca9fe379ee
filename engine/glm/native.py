"""The products of products.cpp and prompts.cpp, the attention of attention.cpp and the layer of step.cpp, for CPUs with AVX-512
where there is a C++ compiler: built once, kept in the user's cache folder.

    if native.has_products(device):
        native.multiply(matrix, states, bias)

Where there is none, torch's and oneDNN's products serve (prepacked.py, packed.py, eight_bit.py). The processor's matrix unit
(AMX) is used where it is there, unless oneDNN's own ONEDNN_MAX_CPU_ISA names a set of instructions without it.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

_log = logging.getLogger(__name__)
_SOURCES = [
    Path(__file__).with_name(name) for name in ("step.cpp", "attention.cpp", "prompts.cpp", "products.cpp", "tiles.cpp")
]  # each includes the next
# Contracting products and sums is the compiler's choice place by place: with it a row's sums could differ from its neighbours'.
_FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-std=c++17",
    "-fPIC",
    "-fopenmp",
    "-shared",
    "-w",
    "-Wl,--as-needed",
)
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 120  # a build takes about five
_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_INT8, _INT4 = 3, 4

_pointer, _long, _int = ctypes.c_void_p, ctypes.c_long, ctypes.c_int


@dataclass(frozen=True, slots=True)
class Matrix:
    """(rows, columns) of fp32, fp16 or bf16; or of whole numbers, with fp16 scales (rows, groups) (quantize.py)."""

    weight: Tensor
    rows: int
    columns: int
    scale: Tensor | None = None

    @property
    def kind(self) -> int:
        if self.scale is None:
            return _KINDS[self.weight.dtype]
        return _INT8 if self.weight.shape[1] == self.columns else _INT4


def has_products(device: torch.device) -> bool:
    """Whether a device has the products of plain matrices and of whole numbers with scales. The first call may build them."""
    return device.type == "cpu" and library() is not None


def has_eight_bit_products(device: torch.device) -> bool:
    """Whether there are those of 8 bits on both sides, too, which need VNNI."""
    return has_products(device) and bool(library().glm_products())


def can_multiply(bits: int, columns: int, groups: int) -> bool:
    """Whether whole numbers of this form have a product: a scale covers whole vectors of them."""
    step = {8: 16, 4: 32}[bits]
    return columns % 2 == 0 and (groups == 1 or (columns % groups == 0 and columns // groups % step == 0))


def multiply(
    matrix: Matrix, states: Tensor, bias: Tensor | None = None, residual: Tensor | None = None, *, prompt: bool = False
) -> Tensor:
    """states (..., columns) times the transposed matrix, plus the bias (rows,) and the residual (..., rows). All fp32 but the
    matrix. A row's result is the same, to the bit, whatever rows are beside it. prompt: by the products of
    prompts.cpp, which are quicker for many rows and sum in another order."""
    flat, out = _flat(states, matrix.columns), states.new_empty(*states.shape[:-1], matrix.rows)
    groups = 1 if matrix.scale is None else matrix.scale.shape[1]
    found = library()
    (found.glm_multiply_prompt if prompt else found.glm_multiply)(
        matrix.kind,
        matrix.weight.data_ptr(),
        _address(matrix.scale),
        groups,
        matrix.rows,
        matrix.columns,
        flat.data_ptr(),
        len(flat),
        *_addends(bias, residual),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def arranged(weight: Tensor) -> Tensor:
    """int8 (rows, columns) as `multiply8` reads it: (rows / 16, columns / 4, 16, 4), padded with zeros."""
    rows, columns = weight.shape
    whole = F.pad(weight, (0, -columns % 4, 0, -rows % 16))
    return whole.view(len(whole) // 16, 16, -1, 4).transpose(1, 2).contiguous()


def multiply8(
    weight: Tensor,
    scale: Tensor,
    row_sums: Tensor,
    columns: int,
    states: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """states (..., columns), rounded to 8 bits by the token as eight_bit.py says, times a transposed weight that is `arranged`,
    with fp32 scales (rows,); bias and residual as in `multiply`. row_sums: (rows,) int32, of the weight."""
    rows = len(scale)
    flat, out = _flat(states, columns), states.new_empty(*states.shape[:-1], rows)
    library().glm_multiply8(
        weight.data_ptr(),
        scale.data_ptr(),
        row_sums.data_ptr(),
        rows,
        columns,
        flat.data_ptr(),
        len(flat),
        *_addends(bias, residual),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def gated(pair: Tensor) -> Tensor:
    """(..., 2 * inner) fp32 -> (..., inner): the first half times the gelu of the second one, whose error function is exact to
    1.5e-7."""
    inner = pair.shape[-1] // 2
    flat, out = _flat(pair, 2 * inner), pair.new_empty(*pair.shape[:-1], inner)
    library().glm_gated(flat.data_ptr(), len(flat), inner, out.data_ptr(), torch.get_num_threads())
    return out


def _flat(states: Tensor, columns: int) -> Tensor:
    assert states.dtype == torch.float32 and states.shape[-1] == columns
    return states.reshape(-1, columns).contiguous()


def _addends(bias: Tensor | None, residual: Tensor | None) -> tuple[int | None, int | None]:
    # Whatever is not contiguous here would be copied to memory that is free again before it is read.
    assert all(one is None or (one.is_contiguous() and one.dtype == torch.float32) for one in (bias, residual))
    return _address(bias), _address(residual)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@cache
def library() -> ctypes.CDLL | None:
    """Built for this processor, or None where that can't be done."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *_COMPILERS))), None)
    if compiler is None:
        _log.info("no C++ compiler: products of few rows are torch's, and slower")
        return None
    try:
        found = ctypes.CDLL(str(_built(compiler)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: a user without a home
        _log.warning("the products for this processor were not built, torch's serve: %s", error)
        return None
    found.glm_use_tiles(may_use_tiles())
    for product in (found.glm_multiply, found.glm_multiply_prompt):
        product.argtypes = [_int, _pointer, _pointer, *[_long] * 3, _pointer, _long, *[_pointer] * 3, _int]
        product.restype = None
    found.glm_gated.argtypes = [_pointer, _long, _long, _pointer, _int]
    found.glm_gated.restype = None
    found.glm_step.argtypes = [_pointer, _long, *[_pointer] * 3]
    found.glm_step.restype = None
    found.glm_before.argtypes = [_pointer, _pointer, _long, *[_pointer] * 6, _long]
    found.glm_before.restype = None
    found.glm_behind.argtypes = [_pointer, _pointer, _long, _pointer, _pointer, _long]
    found.glm_behind.restype = None
    found.glm_attend.argtypes = [_pointer, _pointer, _long, *[_pointer] * 4, _long]
    found.glm_attend.restype = None
    found.glm_attend_again.argtypes = [*[_pointer] * 3, _long, *[_pointer] * 4, _long]
    found.glm_attend_again.restype = None
    if found.glm_products():
        found.glm_multiply8.argtypes = [*[_pointer] * 3, *[_long] * 2, _pointer, _long, *[_pointer] * 3, _int]
        found.glm_multiply8.restype = None
    return found


def may_use_tiles() -> bool:
    """Whether the environment leaves the matrix unit to be used."""
    most = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return most in ("", "DEFAULT") or "AMX" in most


def _built(compiler: str) -> Path:
    """The library's file. Its name tells the source, the compiler and the processor: another one of any of them builds another."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=_SECONDS).stdout
    parts = (*(source.read_bytes() for source in _SOURCES), version, " ".join(_FLAGS).encode(), _processor())
    name = hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "glm-playground"
    path = folder / f"native-{name}.so"
    if path.exists():
        return path
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Several processes may build it at once; each puts a whole file in its place.
    with tempfile.TemporaryDirectory(dir=folder) as own:
        made = Path(own) / path.name
        # torch's own OpenMP, whatever it is called: another one would bring threads of its own that wait for the same cores.
        openmp = map(str, sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")))
        command = [compiler, *_FLAGS, str(_SOURCES[0]), *openmp, "-o", str(made)]
        subprocess.run(command, capture_output=True, check=True, timeout=_SECONDS)
        made.replace(path)
    return path


def _processor() -> bytes:
    """What this processor can do, as -march=native would see it."""
    lines = Path("/proc/cpuinfo").read_bytes().splitlines() if Path("/proc/cpuinfo").exists() else []
    return b"".join(sorted({line for line in lines if line.startswith((b"flags", b"model name"))}))
