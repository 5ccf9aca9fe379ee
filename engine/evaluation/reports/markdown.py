"""A report as Markdown: for a README, a merge request, a terminal."""

from __future__ import annotations

from engine.evaluation.published import MARK, MODEL
from engine.evaluation.reports import numbers
from engine.evaluation.reports.summary import Difference, Line, Summary, Version, published_of_file

_VERDICTS = {"better": "better", "worse": "worse", "different": "different", "none": "no difference shown"}


def markdown(summary: Summary) -> str:
    """The whole text."""
    parts = [f"# {numbers.title(summary.versions)}", "", *_versions(summary), "## Results", "", *_results(summary)]
    if summary.differences:
        parts += ["", f"## Compared with {summary.versions[0].label}", "", *_differences(summary)]
    parts += ["", "## By file and prompt", "", *_files(summary)]
    return "\n".join(parts).rstrip() + "\n"


def _versions(summary: Summary) -> list[str]:
    lines = ["| version | model | weights | precision | device | software |", "|---|---|---|---|---|---|"]
    for version in summary.versions:
        said = version.fingerprint
        cells = (
            version.label,
            version.name,
            version.key[0][:16],
            version.key[1],
            said.get("device"),
            said.get("version"),
        )
        lines.append(_row(*(cell or "" for cell in cells)))
    return [*lines, ""]


def _results(summary: Summary) -> list[str]:
    lines = [
        _row("task", "group", "metric", *(version.label for version in summary.versions), "rows", "files", MARK),
        "|---|---|---|" + "---:|" * (len(summary.versions) + 2) + "---|",
    ]
    for line in summary.lines:
        first = next(iter(line.scores.values()))
        of = f"{MODEL} {numbers.published(line)}" if line.published else ""
        scores = (_score(line, version) for version in summary.versions)
        lines.append(_row(line.task, line.group, line.metric, *scores, numbers.limited(first), str(first.files), of))
    return [
        *lines,
        "",
        "Averages over files and prompts, weighted by rows; in brackets 95% intervals (Wilson's for shares of right answers, else "
        "bootstrap over rows; rows asked with several prompts count once). Percent, but for PPL and BPB, where lower is better. "
        f"“{MARK}”: what the authors of {MODEL} published, with prompts of their own; sources are in the HTML report.",
    ]


def _score(line: Line, version: Version) -> str:
    score = line.scores.get(version.key)
    if score is None:
        return ""
    found = numbers.interval(line, score.interval)
    return numbers.value(line, score.value) + (f" ({found})" if found else "")


def _differences(summary: Summary) -> list[str]:
    lines = [
        "| task | group | metric | version | difference [95%] | rows | better : worse | |",
        "|---|---|---|---|---:|---:|---:|---|",
    ]
    for each in summary.differences:
        line = each.line
        wins = f"{better_count(each)} : {worse_count(each)}" if each.paired else "other rows"
        cells = (each.second.label, numbers.change(each), f"{each.rows:,}", wins, _VERDICTS[each.verdict])
        lines.append(_row(line.task, line.group, line.metric, *cells))
    return [
        *lines,
        "",
        "Paired: the same rows, drawn together (bootstrap). “No difference shown” means that zero is in the interval, not "
        "that there is none.",
    ]


def better_count(each: Difference) -> int:
    """Rows that the second version did better."""
    return each.losses if each.line.better < 0 else each.wins


def worse_count(each: Difference) -> int:
    return each.wins if each.line.better < 0 else each.losses


def _files(summary: Summary) -> list[str]:
    lines = [
        f"| task | file | version | metrics | rows | cut | time | {MARK} |",
        "|---|---|---|---|---:|---:|---:|---|",
    ]
    for version, each in summary.by_task():
        for file in each.result.files:
            metrics = ", ".join(f"{name} {number:.3f}" for name, number in file.metrics.items())
            count, cut = f"{file.count:,}", f"{file.truncated:,}"
            of = ", ".join(str(value) for value in published_of_file(each, file))
            cells = (each.result.name, file.name, version.label, metrics, count, cut, numbers.seconds(file.seconds), of)
            lines.append(_row(*cells))
    return [*lines, "", "Cut: rows whose text lost its beginning because it was longer than the model's positions."]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
