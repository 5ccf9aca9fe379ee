"""A torch file's data.pkl, read without running any of it, and written. Torch-free.

A pickle is a program that calls whatever it names. Here its few steps that torch uses are followed by hand: tensors become
`StoredTensor`, dictionaries and lists themselves. The handful of names that torch and SwissArmyTransformer store is known; of any
other, which is never looked up, only the name is reported, and a step that torch doesn't use is an error.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import GLMError

STORAGES = {  # torch's name -> name in a safetensors file, bytes a number
    "HalfStorage": ("F16", 2),
    "BFloat16Storage": ("BF16", 2),
    "FloatStorage": ("F32", 4),
    "DoubleStorage": ("F64", 8),
    "CharStorage": ("I8", 1),
    "ByteStorage": ("U8", 1),
    "ShortStorage": ("I16", 2),
    "IntStorage": ("I32", 4),
    "LongStorage": ("I64", 8),
    "BoolStorage": ("BOOL", 1),
}
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_DICTIONARY = "collections.OrderedDict"
# Beside the weights a trainer stores its options and the state of its random numbers. Nothing reads them here.
_IGNORED = {
    "argparse.Namespace",
    "copyreg._reconstructor",
    "builtins.object",
    "__builtin__.object",
    "_codecs.encode",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "torch.Size",
    "torch.device",
}
_KNOWN = {_TENSOR, _PARAMETER, _DICTIONARY} | _IGNORED | {f"torch.{name}" for name in STORAGES}
_VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as its file describes it: offset and strides count numbers in the storage of that key."""

    dtype: str  # a name of safetensors: F16, I8, ...
    itemsize: int
    storage: str
    storage_length: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Name:
    """What the pickle would import: here only its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Ignored:
    """A value of no interest."""


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    itemsize: int
    key: str
    length: int


def read_pickle(data: bytes, origin: str) -> tuple[Any, list[str]]:
    """The value that a data.pkl describes, and the names in it that no checkpoint needs, as `os.system`.

    GLMError bad_model, naming `origin`, for what can't be followed.
    """
    try:
        return _follow(data)
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError, UnicodeDecodeError) as error:
        message = f"{origin}: its data.pkl can't be read ({type(error).__name__}: {str(error)[:200]})."
        raise GLMError("bad_model", message, field="input") from error


def _follow(data: bytes) -> tuple[Any, list[str]]:
    stack: list[Any] = []
    strange: list[str] = []
    waiting: list[list[Any]] = []  # stacks below the marks
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(data):
        step = opcode.name
        if step in _VALUES:
            stack.append(argument)
        elif step in _CONSTANTS:
            stack.append(_CONSTANTS[step])
        elif step in ("PROTO", "FRAME"):
            continue
        elif step == "EMPTY_DICT":
            stack.append({})
        elif step == "EMPTY_LIST":
            stack.append([])
        elif step == "MARK":
            waiting.append(stack)
            stack = []
        elif step == "TUPLE":
            items, stack = stack, waiting.pop()
            stack.append(tuple(items))
        elif step in _TUPLES:
            count = _TUPLES[step]
            items = [stack.pop() for _ in range(count)]
            stack.append(tuple(reversed(items)))
        elif step in ("APPEND", "SETITEM"):
            items = [stack.pop() for _ in range(1 if step == "APPEND" else 2)]
            _fill(stack[-1], list(reversed(items)))
        elif step in ("APPENDS", "SETITEMS"):
            items, stack = stack, waiting.pop()
            _fill(stack[-1], items)
        elif step in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif step == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif step in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif step == "GLOBAL":
            stack.append(_name(argument.replace(" ", ".", 1), strange))
        elif step == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            stack.append(_name(f"{module}.{name}", strange))
        elif step == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif step in ("REDUCE", "NEWOBJ"):
            arguments, function = stack.pop(), stack.pop()
            stack.append(_result(function, arguments))
        elif step == "BUILD":  # attributes of what lies below: of no interest
            stack.pop()
        elif step == "STOP":
            if len(stack) != 1 or waiting:
                raise ValueError("it ends in the middle")
            return stack[0], strange
        else:
            raise ValueError(f"the step {step} is not one of torch's")
    raise ValueError("it has no end")


def _fill(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, dict):
        target.update(zip(items[::2], items[1::2], strict=True))
    elif not isinstance(target, Ignored):
        raise TypeError(f"a {type(target).__name__} has no items")


def _name(name: str, strange: list[str]) -> Name:
    if name not in _KNOWN:
        strange.append(name)
    return Name(name)


def _storage(identity: Any) -> _Storage:
    """('storage', torch.HalfStorage, key, location, length)."""
    word, kind, key, _, length = identity
    if word != "storage" or not isinstance(kind, Name) or not isinstance(key, str) or type(length) is not int:
        raise ValueError("a storage is not described as torch does")
    dtype, itemsize = STORAGES[kind.name.removeprefix("torch.")]
    return _Storage(dtype, itemsize, key, length)


def _result(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Name):
        raise TypeError(f"a {type(function).__name__} can't be called")
    if function.name == _TENSOR:
        storage, offset, shape, strides = arguments[:4]
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, _Storage) or len(shape) != len(strides):
            raise ValueError("a tensor is not described as torch does")
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("a tensor has a negative or broken size")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if 0 not in shape and last >= storage.length:
            raise ValueError("a tensor reaches beyond its storage")
        return StoredTensor(
            storage.dtype, storage.itemsize, storage.key, storage.length, offset, tuple(shape), tuple(strides)
        )
    if function.name == _PARAMETER:
        return arguments[0]
    if function.name == _DICTIONARY:
        return dict(arguments[0]) if arguments else {}
    if function.name in _IGNORED or function.name not in _KNOWN:
        return Ignored()
    raise TypeError(f"{function.name} can't be called")


def write_pickle(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The data.pkl of {"module": {name: tensor}}: of each its name, dtype (F16 or I8) and shape, stored under its number."""
    storages = {dtype: name for name, (dtype, _) in STORAGES.items()}
    out = [b"\x80\x02}", _text("module"), b"}("]  # the second dictionary is filled at once, from the mark on
    for number, (name, dtype, shape) in enumerate(tensors):
        strides = tuple(math.prod(shape[index + 1 :]) for index in range(len(shape)))
        out += [
            _text(name),
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            _text("storage"),
            f"ctorch\n{storages[dtype]}\n".encode(),
            _text(str(number)),
            _text("cpu"),
            _number(math.prod(shape)),
            b"tQ",  # the tuple of the storage, asked for by its identity
            _number(0),
            _numbers(shape),
            _numbers(strides),
            b"\x89ccollections\nOrderedDict\n)RtR",  # needs no gradient, has no hooks
        ]
    return b"".join([*out, b"us."])


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _number(number: int) -> bytes:
    if number < 1 << 31:
        return b"J" + number.to_bytes(4, "little")
    return b"\x8a\x08" + number.to_bytes(8, "little")


def _numbers(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_number, numbers)) + b"t"
