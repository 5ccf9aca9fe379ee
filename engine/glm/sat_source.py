"""Find a SwissArmyTransformer checkpoint in what the user names, and its ranks' files in their order. Torch-free.

A checkpoint is a folder with `latest`, which names an iteration, and `ITERATION/mp_rank_RR_model_states.pt`. Given may be that
folder, the iteration's, a tar archive of them, or the archive's chunks: their folder, their names' common beginning, a pattern,
or all of them.
"""

from __future__ import annotations

import contextlib
import glob
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import GLMError
from engine.glm import foreign
from engine.glm.sat_layout import rank_file
from engine.glm.sat_parts import Parts, View, chunks, is_chunk

_RANK_FILE = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_BLOCK = 512  # of a tar archive


@dataclass(slots=True)
class Source(contextlib.AbstractContextManager):
    """The ranks' files of a checkpoint, and the identity of all that was given: names, sizes and times of change."""

    name: str  # of the checkpoint, for a model without another
    ranks: list[tuple[str, View]]  # the file's name for messages, and its bytes
    parts: list[Parts]

    @property
    def identity(self) -> list[tuple[str, int, int]]:
        return [file for parts in self.parts for file in parts.identity]

    def __exit__(self, *_: object) -> None:
        for parts in self.parts:
            parts.close()


def find(given: Sequence[Path]) -> Source:
    """The checkpoint in what was given. Errors: model_not_found, bad_model, unsupported (another model, by its name)."""
    assert given
    paths = [Path(path).expanduser() for path in given]
    if len(paths) > 1:
        for path in paths:
            if not path.is_file():
                what = "is a folder: give it alone" if path.is_dir() else "isn't there"
                raise GLMError("model_not_found", f"{path} {what}.", field="input")
        return _archive(chunks(paths))
    path = paths[0]
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        if is_chunk(path):
            return _archive(_siblings(path))
        if path.suffix == ".pt":
            hint = path.parent.parent if (path.parent.parent / "latest").is_file() else path.parent
            raise GLMError("bad_model", f"{path} is one rank's file: give its folder, {hint}.", field="input")
        return _archive([path])
    found = [Path(name) for name in [*glob.glob(str(path)), *glob.glob(glob.escape(str(path)) + "*")]]
    found = sorted({file for file in found if file.is_file() and (is_chunk(file) or file.suffix == ".tar")})
    if not found:
        raise GLMError("model_not_found", f"There is nothing at {path}.", field="input")
    whole = [file for file in found if file.suffix == ".tar"]
    return _archive(whole if len(found) == 1 and whole else chunks(set(found) - set(whole)))


def _siblings(chunk: Path) -> list[Path]:
    stem = re.sub(r"(\d+|[a-z]+)$", "", chunk.name)
    return chunks(
        path for path in chunk.parent.iterdir() if path.name.startswith(stem) and is_chunk(path) and path.is_file()
    )


def _folder(folder: Path) -> Source:
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    rank_files = [name for name in files if _RANK_FILE.fullmatch(name)]
    foreign.check_folder(folder)
    if "latest" in files:
        return _iteration(folder, _latest(files["latest"].read_bytes()[:1000], str(files["latest"])))
    if rank_files:
        name = folder.resolve()
        foreign.check_folder(name.parent)
        return _ranks(str(folder), name.parent.name, {file: files[file] for file in rank_files})
    cut = [path for path in files.values() if is_chunk(path)]
    whole = [path for path in files.values() if path.suffix == ".tar"]
    if cut:
        return _archive(chunks(cut))
    if len(whole) == 1:
        return _archive(whole)
    message = (
        f"{folder} holds no checkpoint: neither latest and ITERATION/{rank_file(0)}, nor chunks of an archive, "
        "as glm-130b-sat.tar.part_00."
    )
    below = [path for path in sorted(folder.iterdir()) if (path / "latest").is_file()]
    if below:
        message += f" There is one in {below[0]}."
    raise GLMError("model_not_found", message, field="input")


def _latest(content: bytes, origin: str) -> str:
    """The iteration that `latest` names."""
    text = content.decode("utf-8", "replace").strip()
    if not text or len(text) > 100 or text in (".", "..") or re.search(r"[/\\\s\x00-\x1f]", text):
        raise GLMError("bad_model", f"{origin} must hold the name of an iteration's folder, not {text[:100]!r}.")
    return text


def _iteration(folder: Path, iteration: str) -> Source:
    within = folder / iteration
    if not within.is_dir():
        others = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise GLMError("bad_model", _no_iteration(f"{folder / 'latest'}", iteration, others), field="input")
    files = {path.name: path for path in within.iterdir() if _RANK_FILE.fullmatch(path.name)}
    return _ranks(str(within), folder.resolve().name, files)


def _no_iteration(origin: str, iteration: str, others: list[str]) -> str:
    there = f"there are {', '.join(others[:5])}" if others else "there is no folder"
    return f"{origin} names the iteration {iteration}, which isn't there: {there}."


def _ranks(where: str, name: str, files: Mapping[str, Path]) -> Source:
    ordered = _in_order(where, list(files))
    parts = [Parts([files[file]]) for file in ordered]
    return Source(name, [(str(files[file]), part.view()) for file, part in zip(ordered, parts, strict=True)], parts)


def _in_order(where: str, names: Sequence[str]) -> list[str]:
    """Rank files by rank. GLMError bad_model if one is missing below the last that there is."""
    by_rank: dict[int, str] = {}
    for name in names:
        match = _RANK_FILE.fullmatch(name)
        assert match is not None
        if int(match[1]) in by_rank:
            raise GLMError("bad_model", f"{where} has {name} and {by_rank[int(match[1])]}: one rank twice.")
        by_rank[int(match[1])] = name
    if not by_rank:
        raise GLMError("bad_model", f"{where} has no {rank_file(0)}.", field="input")
    for rank in range(max(by_rank)):
        if rank not in by_rank:
            raise GLMError("bad_model", f"{where} lacks {rank_file(rank)}: it has files up to rank {max(by_rank)}.")
    return [by_rank[rank] for rank in sorted(by_rank)]


def _archive(paths: Sequence[Path]) -> Source:
    parts = Parts(paths)
    try:
        return _of_members(
            parts, f"{paths[0]}" if len(paths) == 1 else f"the archive of {len(paths)} chunks {paths[0]}"
        )
    except BaseException:
        parts.close()
        raise


def _of_members(parts: Parts, origin: str) -> Source:
    members = _members(parts, origin)
    foreign.check_names(members, origin)
    latest = [name for name in members if name.rpartition("/")[2] == "latest"]
    folders = sorted({name.rpartition("/")[0] for name in members if _RANK_FILE.fullmatch(name.rpartition("/")[2])})
    if len(latest) > 1:
        raise GLMError("bad_model", f"{origin} holds several checkpoints: {', '.join(latest)}.", field="input")
    if latest:
        iteration = _latest(members[latest[0]].bytes_at(0, 1000), f"{latest[0]} in {origin}")
        base = latest[0].rpartition("/")[0]
        folder = f"{base}/{iteration}" if base else iteration
        if folder not in folders:
            message = _no_iteration(f"{latest[0]} in {origin}", iteration, folders)
            raise GLMError("bad_model", message, field="input")
    elif len(folders) == 1:
        (folder,) = folders
        base = folder.rpartition("/")[0]
    else:
        what = f"several iterations and no latest: {', '.join(folders)}" if folders else f"no {rank_file(0)}"
        raise GLMError("bad_model", f"{origin} has {what}.", field="input")
    inside = {name.rpartition("/")[2]: view for name, view in members.items() if name.rpartition("/")[0] == folder}
    ordered = _in_order(f"{folder} in {origin}", [name for name in inside if _RANK_FILE.fullmatch(name)])
    name = base.rpartition("/")[2] or re.sub(r"\.tar.*$", "", parts.paths[0].name)
    return Source(name, [(f"{folder}/{file} in {parts.paths[0].parent}", inside[file]) for file in ordered], [parts])


def _members(parts: Parts, origin: str) -> dict[str, View]:
    """The files in a tar archive by name, found by going from header to header. GLMError bad_model."""
    view = parts.view()
    start = view.bytes_at(0, 6)
    for magic, kind in ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")):
        if start.startswith(magic):
            raise GLMError("bad_model", f"{origin} is compressed with {kind}: decompress it first.", field="input")
    found: dict[str, View] = {}
    end = 0
    try:
        with tarfile.open(fileobj=view, mode="r:") as archive:  # type: ignore[arg-type]  # a raw file is file enough
            for member in archive:
                size = member.size if member.isreg() else 0
                end = member.offset_data + -(-size // _BLOCK) * _BLOCK
                name = re.sub(r"^(\./)+", "", member.name)
                if member.offset_data + size > view.size:
                    raise _cut_short(parts, origin, f"it ends in the middle of {name}")
                if member.isreg() and not member.issparse():
                    found[name] = view.window(member.offset_data, size)
    except tarfile.TarError as error:
        if not found:
            raise GLMError("bad_model", f"{origin} is no tar archive ({error}).", field="input") from error
        raise _cut_short(parts, origin, f"what follows {list(found)[-1]} can't be read ({error})") from error
    if not found:
        raise GLMError("bad_model", f"{origin} is no tar archive, or an empty one.", field="input")
    if any(view.bytes_at(end, _BLOCK)):  # tarfile takes a header that is none for the end
        raise _cut_short(parts, origin, f"no file begins where {list(found)[-1]} ends")
    return found


def _cut_short(parts: Parts, origin: str, what: str) -> GLMError:
    message = f"{origin} is cut short or damaged: {what}."
    if len(parts.paths) > 1:
        odd = [path.name for path, size in zip(parts.paths[:-1], parts.sizes, strict=False) if size != parts.sizes[0]]
        if odd or parts.sizes[-1] > parts.sizes[0]:
            message += f" Chunks of another size than {parts.paths[0].name}: {', '.join(odd) or parts.paths[-1].name}."
        else:
            message += f" Is {parts.paths[-1].name} the last chunk?"
    return GLMError("bad_model", message, field="input")
