"""One rank's file of a SwissArmyTransformer checkpoint: what tensors it holds, and their rows, read in place. Torch-free.

A torch file is a zip archive with one uncompressed record a storage; a tensor is a range of one. Nothing but the directory and
the description of the tensors is read before a tensor's rows are asked for.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from typing import Any

import numpy as np

from engine.errors import GLMError
from engine.glm.sat_parts import View
from engine.glm.sat_pickle import StoredTensor, read_pickle

LARGEST_DESCRIPTION = 1 << 28  # of data.pkl, in bytes: GLM-130B's has a quarter of a million
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # how torch files began before 1.6
_LOCAL_HEADER = 30


class TorchFile:
    """The tensors under "module" of a torch file. `origin` names the file in messages. GLMError bad_model.

    What a torch file may hold and a checkpoint may not is only told by `check`, so that another model can be recognised before.
    """

    def __init__(self, view: View, origin: str) -> None:
        self.view, self.origin = view, origin
        start = view.bytes_at(0, len(_LEGACY))
        if start == _LEGACY:
            raise self._bad("is in torch's format from before version 1.6: load it once with torch and save it again")
        try:
            with zipfile.ZipFile(view) as archive:  # type: ignore[arg-type]  # a raw file is file enough
                self._records = {info.filename: info for info in archive.infolist()}
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
            if start[:2] == b"PK":
                raise self._bad(f"is cut short or damaged: the directory at its end can't be read ({error})") from error
            raise self._bad("is no file of torch.save") from error
        described = [name for name in self._records if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(described) != 1:
            raise self._bad("is a zip archive, but no file of torch.save: it has no data.pkl")
        self._folder = described[0].removesuffix("data.pkl")
        if self._text("byteorder") not in (None, b"little"):
            raise self._bad("was written on a machine of the other byte order")
        content, self._strange = read_pickle(self._text("data.pkl") or b"", origin)
        module = content.get("module") if isinstance(content, dict) else None
        self._complete = isinstance(module, dict)
        self.tensors: dict[str, StoredTensor] = {}
        self._others: list[str] = []
        self._seen: set[int] = set()  # a dictionary may hold itself
        self._collect("", module if isinstance(module, dict) else content)

    def check(self) -> None:
        """GLMError bad_model if there is more than tensors, or no "module"."""
        if self._strange:
            message = f"asks to import {self._strange[0][:100]}, which no checkpoint needs. Nothing of it was run"
            raise self._bad(message)
        if not self._complete:
            raise self._bad('is no SwissArmyTransformer checkpoint: it has no "module"')
        if self._others:
            raise self._bad(f"has something else than a tensor under {self._others[0][:100]!r}")

    def _collect(self, start: str, values: Any) -> None:
        """Tensors by name; of dictionaries in dictionaries, as other programs store, with dots between their names."""
        self._seen.add(id(values))
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, StoredTensor):
                self.tensors[f"{start}{name}"] = value
            elif isinstance(value, dict) and id(value) not in self._seen and start.count(".") < 8:
                self._collect(f"{start}{name}.", value)
            else:
                self._others.append(f"{start}{name}")

    def rows(self, name: str) -> Rows:
        """A tensor's rows from the first on. GLMError bad_model if its record is missing or cut short."""
        tensor = self.tensors[name]
        offset, size, check = self._record(f"data/{tensor.storage}", f"the tensor {name}")
        if size < tensor.storage_length * tensor.itemsize:
            raise self._bad(f"has only {size} bytes of the {tensor.storage_length * tensor.itemsize} of {name}")
        return Rows(self.view.window(offset, size), tensor, f"{self.origin}: {name}", check)

    def _text(self, name: str) -> bytes | None:
        """A small record, or None."""
        if self._folder + name not in self._records:
            return None
        offset, size, check = self._record(name, name)
        if size > LARGEST_DESCRIPTION:
            raise self._bad(f"has a {name} of {size} bytes")
        data = self.view.bytes_at(offset, size)
        if zlib.crc32(data) != check:
            raise self._bad(f"is damaged: the checksum of {name} is another")
        return data

    def _record(self, name: str, what: str) -> tuple[int, int, int]:
        """Where a record lies: offset, bytes, checksum."""
        info = self._records.get(self._folder + name)
        if info is None:
            raise self._bad(f"lacks the record {name} of {what}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise self._bad(f"has compressed records ({name}), which torch doesn't write")
        header = self.view.bytes_at(info.header_offset, _LOCAL_HEADER) if info.header_offset >= 0 else b""
        if header[:4] != b"PK\x03\x04":
            raise self._bad(f"is damaged: the record {name} of {what} doesn't begin where the directory says")
        offset = info.header_offset + _LOCAL_HEADER
        offset += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        if offset + info.file_size > self.view.size:
            raise self._bad(f"is cut short in {what}")
        return offset, info.file_size, info.CRC

    def _bad(self, what: str) -> GLMError:
        return GLMError("bad_model", f"{self.origin} {what}.", field="input")


class Rows:
    """A tensor's rows (of a vector: its numbers), handed out from the first to the last as bytes.

    Where the tensor is all of its record, the record's checksum is verified with the last row.
    """

    def __init__(self, record: View, tensor: StoredTensor, origin: str, check: int) -> None:
        self.count = tensor.shape[0] if tensor.shape else 1
        self.row_bytes = math.prod(tensor.shape[1:]) * tensor.itemsize
        self._record, self._tensor, self._origin = record, tensor, origin
        self._next = 0
        contiguous = tensor.strides == _contiguous(tensor.shape) or 0 in tensor.shape
        self._copy = None if contiguous else self._gathered()
        whole = contiguous and self.count * self.row_bytes == record.size
        self._wanted, self._check = (check if whole else None), 0

    def take(self, count: int, out: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """The next rows, uint8 (count, row_bytes); into `out` if given, which must be contiguous. GLMError bad_model."""
        assert self._next + count <= self.count
        rows = np.empty((count, self.row_bytes), np.uint8) if out is None else out
        if self._copy is not None:
            rows[:] = self._copy[self._next : self._next + count]
        else:
            start = self._tensor.offset * self._tensor.itemsize + self._next * self.row_bytes
            buffer = memoryview(rows.reshape(-1))
            if self._record.read_at(start, buffer) < len(buffer):
                raise GLMError("bad_model", f"{self._origin} is cut short.", field="input")
            if self._wanted is not None:
                self._check = zlib.crc32(buffer, self._check)
        self._next += count
        if self._next == self.count and self._wanted is not None and self._check != self._wanted:
            raise GLMError("bad_model", f"{self._origin} is damaged: its checksum is another.", field="input")
        return rows

    def _gathered(self) -> np.ndarray[Any, Any]:
        """A view of other strides (a transposed one, say) made rows: uint8 (count, row_bytes)."""
        tensor = self._tensor
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
        buffer = np.empty(span * tensor.itemsize, np.uint8)
        if self._record.read_at(tensor.offset * tensor.itemsize, memoryview(buffer)) < len(buffer):
            raise GLMError("bad_model", f"{self._origin} is cut short.", field="input")
        numbers = buffer.view(f"u{tensor.itemsize}")
        strides = [stride * tensor.itemsize for stride in tensor.strides]
        strided = np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)
        return np.ascontiguousarray(strided).reshape(self.count, -1).view(np.uint8)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[index + 1 :]) for index in range(len(shape)))
