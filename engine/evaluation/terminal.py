"""A task's result as GLM-130B's evaluation prints it: a line a file, then max, median and average of each group, then the time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.evaluation.result import FileResult, Spread, TaskResult

_STEP = "    "


def file_line(file: FileResult) -> str:
    values = "".join(f", {name} = {value:.3f}" for name, value in file.metrics.items())
    return f"{_STEP * 2}Finish {file.name}{values}"


def group_lines(name: str, spreads: Mapping[str, Spread], level: int = 1) -> list[str]:
    """A line, or with several metrics one for each under a heading."""
    indent = _STEP * level
    if not spreads:
        return [f"{indent}Group {name}: no file"]
    if len(spreads) == 1:
        [(metric, spread)] = spreads.items()
        return [f"{indent}Group {name} {metric}: {_values(spread)}"]
    return [
        f"{indent}  Group {name}: ",
        *(f"{indent}{_STEP}Metric {metric}: {_values(spread)}" for metric, spread in spreads.items()),
    ]


def result_lines(result: TaskResult) -> list[str]:
    """What follows the files: the groups, all together where there are several, the time."""
    lines = [f"Evaluation results of task {result.name}:"]
    for name, spreads in result.groups.items():
        lines += group_lines(name, spreads)
    if len(result.groups) > 1:
        lines += group_lines("Overall", result.overall, level=0)
    truncated = sum(file.truncated for file in result.files)
    if truncated:
        count = sum(file.count for file in result.files)
        lines.append(
            f"{_STEP}{truncated} of {count} rows lost their beginning: {result.max_seq_length} tokens are the most."
        )
    return [*lines, f"Finish task {result.name} in {result.seconds:.1f}s."]


def summary_lines(results: Sequence[TaskResult]) -> list[str]:
    """One line a task: its first metric's average over all files."""
    rows = []
    for result in results:
        count = sum(file.count for file in result.files)
        first = next(iter(result.overall.items()), None)
        value = f"{first[0]} {first[1].average:.3f}" if first else "-"
        rows.append((result.name, f"{count} rows", value))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _values(spread: Spread) -> str:
    return f"max = {spread.max:.3f}, median = {spread.median:.3f}, average = {spread.average:.3f}"
