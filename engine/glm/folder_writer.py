"""Write a model folder file by file; a run that was ended goes on where it was when it is started again.

    write_folder(out, config, groups, blocks, source=identity, tokenizer=path)

Until it is finished the folder has no config.json, so it is no model folder; what it is made from and which of its files are
done is kept beside them. No tensor needs to be whole in memory. Torch-free.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from engine.errors import GLMError
from engine.glm import safetensors_writer
from engine.glm.config import Config, remember_hash
from engine.glm.locked_folder import locked_folder
from engine.glm.safetensors_writer import Tensor
from engine.glm.size import format_size
from engine.glm.tokenizer import VOCABULARY_FILE

SHARD_SIZE = 4 * 10**9  # bytes: a larger model has one file a group
STATE = "unfinished.json"
Report = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all
Blocks = Callable[[Tensor], Iterable[memoryview]]  # the bytes of a tensor in order


@dataclass(frozen=True, slots=True)
class Written:
    """A finished model folder."""

    folder: Path
    config: Config
    sha256: str  # content hash of the weights, as config.weights_hash
    nbytes: int  # of the weights
    resumed: int  # files that an earlier run had finished


def write_folder(
    out: Path,
    config: Config,
    groups: Sequence[Sequence[Tensor]],
    blocks: Blocks[Tensor],
    *,
    source: Any,
    tokenizer: Path | None,
    shard_size: int = SHARD_SIZE,
    report: Report | None = None,
    tell: Callable[[str], None] | None = None,
) -> Written:
    """Write `out`, which must be new, empty, or left by an earlier run of the same kind.

    groups: the tensors; of a model larger than shard_size bytes each group has a file of its own. source: the identity of what
    it is made from, as JSON has it: an earlier run is gone on with only if it is the same. tokenizer: the vocabulary to copy.
    `report` hears of the progress, `tell` what a person should know. GLMError bad_request; those of `blocks`.
    """
    files = _files(groups, shard_size)
    shapes = [[(tensor.name, tensor.dtype, tensor.shape) for tensor in group] for group in files.values()]
    with _owned(out) as state_file:
        state = _State(state_file, {"source": source, "files": list(files), "shapes": shapes})
        told = state.resume(out, files)
        if told and tell is not None:
            tell(told)
        _check_room(out, files, state, tokenizer)
        sha256 = _Writer(out, files, blocks, state, report).run()
        if tokenizer is not None:
            _replace(out / VOCABULARY_FILE, lambda path: path.write_bytes(tokenizer.read_bytes()))
        remember_hash(out, sha256)
        config.save(out)  # last: a folder without it is no model folder
        state_file.unlink()
    nbytes = sum(tensor.nbytes for group in files.values() for tensor in group)
    return Written(out, config, sha256, nbytes, state.resumed)


def _files(groups: Sequence[Sequence[Tensor]], shard_size: int) -> dict[str, Sequence[Tensor]]:
    """File names with their tensors: all in one, or each group in a file of its own."""
    together = [tensor for group in groups for tensor in group]
    if safetensors_writer.file_size(together) < shard_size:
        return {"model.safetensors": together}
    count = len(groups)
    return {f"model-{number:05}-of-{count:05}.safetensors": group for number, group in enumerate(groups, start=1)}


@contextlib.contextmanager
def _owned(out: Path) -> Iterator[Path]:
    """The folder, made and locked. GLMError bad_request if there is something else in it, or another run works on it."""
    state = out / STATE
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if there and STATE not in there:
        what = "holds a model already" if "config.json" in there else "isn't empty"
        raise GLMError("bad_request", f"{out} {what}: give a new folder.", field="out")
    with locked_folder(out):
        yield state


class _State(Generic[Tensor]):
    """What an unfinished folder is made from, and the files in it that are done: each with the hash of all up to it."""

    def __init__(self, path: Path, wanted: dict[str, Any]) -> None:
        self.path = path
        self.wanted = json.loads(json.dumps(wanted))
        self.done: dict[str, str] = {}
        self.resumed = 0

    def resume(self, out: Path, files: dict[str, Sequence[Tensor]]) -> str | None:
        """Take over what an earlier run finished, or begin anew; returns a sentence about it where there was one."""
        told = None
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            known = {}
        except ValueError:
            known = {"unreadable": True}
        if known and known.get("wanted") == self.wanted and isinstance(known.get("done"), dict):
            for file, group in files.items():
                path = out / file
                size = safetensors_writer.file_size(group)
                if file not in known["done"] or not path.is_file() or path.stat().st_size != size:
                    break
                self.done[file] = known["done"][file]
            self.resumed = len(self.done)
            told = f"Goes on in {out}: {self.resumed} of {len(files)} files are finished."
        elif known:
            told = f"{out} holds the beginning of something else (another source or other options): starts over."
        (out / "config.json").unlink(missing_ok=True)
        for path in out.iterdir():
            if path.name not in self.done and path != self.path and path.name.startswith(("model", ".model")):
                path.unlink()
        self.save()
        return told

    def save(self) -> None:
        text = json.dumps({"wanted": self.wanted, "done": self.done})
        _replace(self.path, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a small file whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    write(new)
    new.replace(path)


def _check_room(out: Path, files: dict[str, Sequence[Tensor]], state: _State[Tensor], tokenizer: Path | None) -> None:
    """GLMError bad_request if the disk has too little room for what is left to write."""
    needed = sum(safetensors_writer.file_size(group) for file, group in files.items() if file not in state.done)
    needed += (tokenizer.stat().st_size if tokenizer else 0) + (1 << 20)
    free = shutil.disk_usage(out).free
    if needed > free:
        message = f"{out} needs {format_size(needed)} more, its disk has {format_size(free)} free."
        raise GLMError("bad_request", message, field="out", limit=free)


class _Writer(Generic[Tensor]):
    """Writes the weights' files one after the other; the hash of what is finished goes on through all of them."""

    def __init__(
        self,
        out: Path,
        files: dict[str, Sequence[Tensor]],
        blocks: Blocks[Tensor],
        state: _State[Tensor],
        report: Report | None,
    ) -> None:
        self._out, self._files, self._blocks, self._state, self._report = out, files, blocks, state, report
        self._total = sum(safetensors_writer.file_size(group) for group in files.values())
        self._bytes = 0
        self._what = ""
        self._digest = hashlib.sha256()

    def run(self) -> str:
        """Finish every file; returns the content hash of all, that of config.weights_hash."""
        for file, group in self._files.items():
            before = self._digest.copy(), self._bytes
            if file in self._state.done and not self._verify(file):
                self._digest, self._bytes = before
                for later in list(self._state.done)[list(self._state.done).index(file) :]:
                    del self._state.done[later]
                self._state.resumed = len(self._state.done)
            if file not in self._state.done:
                self._write(file, group)
        return self._digest.hexdigest()

    def _verify(self, file: str) -> bool:
        """Read a file of an earlier run into the hash; says whether it is as that run left it."""
        self._what = f"checks {file}"
        self._digest.update(file.encode())
        with (self._out / file).open("rb") as finished:
            while block := finished.read(1 << 24):
                self._written(memoryview(block))
        return self._digest.hexdigest() == self._state.done[file]

    def _write(self, file: str, group: Sequence[Tensor]) -> None:
        self._what = f"writes {file}"
        self._digest.update(file.encode())
        new = self._out / f".{file}.part"
        safetensors_writer.write(new, group, self._blocks, self._written)
        new.replace(self._out / file)
        self._state.done[file] = self._digest.hexdigest()
        self._state.save()

    def _written(self, block: memoryview) -> None:
        self._digest.update(block)
        self._bytes += block.nbytes
        if self._report:
            self._report(self._what, self._bytes, self._total)
