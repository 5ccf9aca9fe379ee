"""Make a model folder from a SwissArmyTransformer checkpoint of GLM-130B's kind, as it is or in its downloaded chunks.

    convert(Path("glm-130b-sat"), Path("glm-130b"), tokenizer=Path("ice_text.model"))

Weights go from the ranks' files to the folder's safetensors files some rows at a time: what is in memory doesn't depend on the
model. A conversion that was ended goes on where it was when it is started again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import GLMError
from engine.glm import safetensors_writer
from engine.glm.config import Config, remember_hash
from engine.glm.sat_checkpoint import SatCheckpoint
from engine.glm.sat_layout import Entry
from engine.glm.sat_source import find
from engine.glm.size import format_size
from engine.glm.tokenizer import ICETK_FILE, ICETK_IMAGE_TOKENS, VOCABULARY_FILE, Tokenizer

SHARD_SIZE = 4 * 10**9  # bytes: a larger model has one file a layer
STATE = "convert.json"  # in a folder that isn't finished: what it is made from, and the files that are done
Report = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all


@dataclass(frozen=True, slots=True)
class Converted:
    """A finished model folder."""

    folder: Path
    config: Config
    sha256: str  # content hash of the weights, as config.weights_hash
    nbytes: int  # of the weights
    resumed: int  # files that an earlier run had finished


def convert(
    source: Path | Sequence[Path],
    out: Path,
    *,
    tokenizer: Path | None,
    name: str | None = None,
    heads: int | None = None,
    positions: int = 2048,
    shard_size: int = SHARD_SIZE,
    report: Report | None = None,
    tell: Callable[[str], None] | None = None,
) -> Converted:
    """Write the model folder `out`, which must be new, empty, or left by an earlier run that was ended.

    source: what sat_source.find takes. tokenizer: the vocabulary's file to copy; without one the folder can't be served until it
    has a tokenizer.model. `report` hears of the progress, `tell` what a person should know.
    Errors: model_not_found, bad_model (file and tensor by name), unsupported (another model, by its name), bad_request.
    """
    out = Path(out)
    tell = tell or (lambda _: None)
    if positions < 1:
        raise GLMError("bad_request", f"positions must be at least 1, not {positions}.", field="positions", limit=1)
    with find([source] if isinstance(source, (str, Path)) else source) as found:
        checkpoint = SatCheckpoint(found, name=name, heads=heads, positions=positions)
        config = checkpoint.config
        if tokenizer is not None:
            config = _with_tokenizer(config, tokenizer)
        files = _files(checkpoint.groups, shard_size)
        options = {"files": list(files), "shapes": [[entry.name for entry in group] for group in files.values()]}
        with _owned(out) as state_file:
            state = _State(state_file, {"source": found.identity, **options})
            told = state.resume(out, files)
            if told:
                tell(told)
            _check_room(out, files, state, tokenizer)
            writer = _Writer(out, checkpoint, files, state, report)
            sha256 = writer.run()
            if tokenizer is not None:
                _replace(out / VOCABULARY_FILE, lambda path: path.write_bytes(tokenizer.read_bytes()))
            remember_hash(out, sha256)
            config.save(out)  # last: a folder without it is no model folder
            state_file.unlink()
    return Converted(
        out, config, sha256, sum(entry.nbytes for group in files.values() for entry in group), state.resumed
    )


def check(source: Path | Sequence[Path], heads: int | None = None) -> Config:
    """Look through a checkpoint without writing anything. Errors: as `convert`."""
    with find([source] if isinstance(source, (str, Path)) else source) as found:
        return SatCheckpoint(found, heads=heads).config


def icetk_vocabulary() -> Path | None:
    """Where the icetk package keeps the vocabulary that it downloaded, if it did."""
    path = Path.home() / ".icetk_models" / ICETK_FILE
    return path if path.is_file() else None


def _with_tokenizer(config: Config, path: Path) -> Config:
    """The config with the number of image tokens that belongs to a vocabulary. Errors: bad_model, model_not_found."""
    if path.is_dir():
        raise GLMError("bad_request", f"{path} is a folder: give the vocabulary's file.", field="tokenizer")
    icetk = path.name == ICETK_FILE or config.num_image_tokens == ICETK_IMAGE_TOKENS
    config = replace(config, num_image_tokens=ICETK_IMAGE_TOKENS if icetk else 0)
    tokenizer = Tokenizer.load(path, config.num_image_tokens)
    if tokenizer.vocabulary_size > config.vocabulary:
        message = (
            f"{path} has {tokenizer.vocabulary_size} tokens, but the checkpoint's embedding {config.vocabulary} rows:"
        )
        raise GLMError("bad_model", f"{message} they don't belong together.", field="tokenizer")
    return config


def _files(groups: list[list[Entry]], shard_size: int) -> dict[str, list[Entry]]:
    """File names with their tensors: all in one, or the embedding, each layer and the last LayerNorm in a file of its own."""
    together = [entry for group in groups for entry in group]
    if safetensors_writer.file_size(together) < shard_size:
        return {"model.safetensors": together}
    count = len(groups)
    return {f"model-{number:05}-of-{count:05}.safetensors": group for number, group in enumerate(groups, start=1)}


@contextlib.contextmanager
def _owned(out: Path) -> Iterator[Path]:
    """The output folder, made and locked. GLMError bad_request if there is something else in it, or another run works on it."""
    if out.exists() and not out.is_dir():
        raise GLMError("bad_request", f"{out} is a file, not a folder.", field="out")
    state = out / STATE
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    if there and STATE not in there:
        what = "holds a model already" if "config.json" in there else "isn't empty"
        raise GLMError("bad_request", f"{out} {what}: give a new folder.", field="out")
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise GLMError("bad_request", f"Another conversion writes to {out} at present.", field="out") from error
        yield state
    finally:
        os.close(descriptor)


class _State:
    """What an unfinished folder is made from, and the files in it that are done: each with the hash of all up to it."""

    def __init__(self, path: Path, wanted: dict[str, Any]) -> None:
        self.path = path
        self.wanted = json.loads(json.dumps(wanted))
        self.done: dict[str, str] = {}
        self.resumed = 0

    def resume(self, out: Path, files: dict[str, list[Entry]]) -> str | None:
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
            told = f"Goes on with the conversion in {out}: {self.resumed} of {len(files)} files are finished."
        elif known:
            told = f"{out} holds the beginning of another conversion (another source or other options): starts over."
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


def _check_room(out: Path, files: dict[str, list[Entry]], state: _State, tokenizer: Path | None) -> None:
    """GLMError bad_request if the disk has too little room for what is left to write."""
    needed = sum(safetensors_writer.file_size(group) for file, group in files.items() if file not in state.done)
    needed += (tokenizer.stat().st_size if tokenizer else 0) + (1 << 20)
    free = shutil.disk_usage(out).free
    if needed > free:
        message = f"{out} needs {format_size(needed)} more, its disk has {format_size(free)} free."
        raise GLMError("bad_request", message, field="out", limit=free)


class _Writer:
    """Writes the weights' files one after the other; the hash of what is finished goes on through all of them."""

    def __init__(
        self,
        out: Path,
        checkpoint: SatCheckpoint,
        files: dict[str, list[Entry]],
        state: _State,
        report: Report | None,
    ) -> None:
        self._out, self._checkpoint, self._files, self._state = out, checkpoint, files, state
        self._report = report
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

    def _write(self, file: str, group: list[Entry]) -> None:
        self._what = f"writes {file}"
        self._digest.update(file.encode())
        new = self._out / f".{file}.part"
        safetensors_writer.write(new, group, self._checkpoint.blocks, self._written)
        new.replace(self._out / file)
        self._state.done[file] = self._digest.hexdigest()
        self._state.save()

    def _written(self, block: memoryview) -> None:
        self._digest.update(block)
        self._bytes += block.nbytes
        if self._report:
            self._report(self._what, self._bytes, self._total)
