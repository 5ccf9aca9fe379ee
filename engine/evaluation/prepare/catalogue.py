"""All converters by name, and preparing one benchmark."""

from __future__ import annotations

from pathlib import Path

from engine.errors import GLMError
from engine.evaluation.prepare import big_bench, chinese, english, ethics, mmlu, texts
from engine.evaluation.prepare.converter import Converter, Prepared, run


def converters() -> dict[str, Converter]:
    """Name -> converter, in the order of lists for people."""
    modules = (english, mmlu, chinese, ethics, texts, big_bench)
    return {converter.name: converter for module in modules for converter in module.CONVERTERS}


def prepare(name: str, source: Path, out: Path, limit: int | None = None) -> Prepared:
    """Turn a benchmark's published files into rows under out, where `--data out` finds them. limit: rows a file, at most.

    GLMError bad_request for an unknown name or a source that is not there, bad_data for one that can't be read, naming file, line
    and field; unsupported for Parquet without pyarrow. Then nothing is written.
    """
    known = converters()
    if name not in known:
        raise GLMError(
            "bad_request", f"There is no benchmark {name!r}; known are: {', '.join(known)}.", field="prepare"
        )
    if limit is not None and limit < 1:
        raise GLMError("bad_request", f"limit must be at least 1, not {limit}.", field="limit")
    return run(known[name], Path(source), Path(out), limit)
