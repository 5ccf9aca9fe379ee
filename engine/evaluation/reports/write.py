"""Write the reports of an output folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from engine.errors import GLMError
from engine.evaluation.reports.markdown import markdown
from engine.evaluation.reports.page import page
from engine.evaluation.reports.stored import stored
from engine.evaluation.reports.summary import summarise

MARKDOWN, PAGE = "report.md", "report.html"


def write_report(out: Path, tasks: Collection[str] | None = None) -> list[Path]:
    """Write report.md and report.html into an output folder, of its finished results. tasks: names of those that are in it, None
    for all. GLMError bad_data without any result, or with one that can't be read; OSError where files can't be written."""
    summary = summarise(stored(out), tasks)
    if not summary.lines:
        raise GLMError("bad_data", f"{out} holds no finished results to report.", field="out")
    written = []
    for name, text in ((MARKDOWN, markdown(summary)), (PAGE, page(summary))):
        path = out / name
        new = path.with_name(f".{name}")
        new.write_text(text, encoding="utf-8")
        new.replace(path)  # whole or not at all: someone may be reading it
        written.append(path)
    return written
