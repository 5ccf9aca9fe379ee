"""A report as one HTML file: plots, tables, details. No network; light and dark; English and Chinese."""

from __future__ import annotations

from html import escape

from engine.evaluation.reports import numbers, plots
from engine.evaluation.reports.markdown import better_count, worse_count
from engine.evaluation.reports.page_style import SCRIPT, STYLE
from engine.evaluation.reports.summary import Difference, Line, Score, Summary, Version, published_of_file
from engine.evaluation.reports.words import word


def page(summary: Summary) -> str:
    """The whole HTML text."""
    names = ", ".join(dict.fromkeys(version.name for version in summary.versions))
    parts = [_versions(summary)]
    for key, plot in (("scores", plots.scores(summary)), ("perplexities", plots.perplexities(summary))):
        if plot:
            parts.append(_section(key, f"<figure>{_legend(summary)}{plot}</figure>"))
    parts += [_compared(summary, number) for number in range(1, len(summary.versions))]
    parts += [_section("results", _results(summary)), _details(summary), _sources(summary)]
    return f"""<!doctype html>
<html lang="en" data-language="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(numbers.title(summary.versions))}</title>
<style>{STYLE}</style>
<header><h1>{word("title", names=names)}</h1><button id="language" type="button">{word("other_language")}</button></header>
{"".join(part for part in parts if part)}<script>{SCRIPT}</script>
</html>
"""


def _section(key: str, content: str) -> str:
    return f"<section><h2>{word(key)}</h2>{content}<p class=note>{word(key + '_note')}</p></section>\n"


def _versions(summary: Summary) -> str:
    rows = "".join(
        _cells(
            f'<i class="version{number % 6}"></i>{escape(version.label)}',
            escape(version.name),
            f"<code>{escape(version.key[0][:16])}</code>",
            escape(version.key[1]),
            escape(version.fingerprint.get("device", "")),
            escape(version.fingerprint.get("version", "")),
        )
        for number, version in enumerate(summary.versions)
    )
    heads = ("version", "model", "weights", "precision", "device", "software")
    return f"<section>{_table([word(head) for head in heads], rows)}</section>\n"


def _legend(summary: Summary) -> str:
    shown = "".join(
        f'<span class="version{number % 6}">{escape(version.label)}</span>'
        for number, version in enumerate(summary.versions)
    )
    return f'<figcaption>{shown}<span class="published">{word("published")}</span></figcaption>'


def _compared(summary: Summary, second: int) -> str:
    first, version = summary.versions[0], summary.versions[second]
    found = [each for each in summary.differences if each.second.key == version.key]
    if not found:
        return ""
    plot = plots.differences(summary, second)
    rows = "".join(_difference(each) for each in found)
    heads = ("task", "group", "metric", "difference", "rows", "better_worse")
    table = _table([*(word(head) for head in heads), ""], rows)
    head = word("compared", first=first.label, second=version.label)
    figure = f"<figure>{plot}</figure>" if plot else ""
    return f"<section><h2>{head}</h2>{figure}{table}<p class=note>{word('compared_note')}</p></section>\n"


def _difference(each: Difference) -> str:
    wins = f"{better_count(each):,} : {worse_count(each):,}" if each.paired else word("other_rows")
    return _cells(
        escape(each.line.task),
        escape(each.line.group),
        escape(each.line.metric),
        f"<b>{numbers.change(each)}</b>",
        f"{each.rows:,}",
        wins,
        f'<span class="{each.verdict}">{word(each.verdict)}</span>',
    )


def _results(summary: Summary) -> str:
    rows = []
    for task in dict.fromkeys(line.task for line in summary.lines):
        lines = [line for line in summary.lines if line.task == task]
        name = f"<b>{escape(task)}</b><br><small>{escape(lines[0].description)}</small>"
        for number, line in enumerate(lines):
            cells = (
                escape(line.group),
                escape(line.metric),
                *(_score(line, version) for version in summary.versions),
                _count(next(iter(line.scores.values()))),
                escape(numbers.published(line)),
            )
            head = f"<td rowspan={len(lines)}>{name}" if number == 0 else ""
            rows.append(_cells(*cells, head=head))
    heads = [
        word("task"),
        word("group"),
        word("metric"),
        *(escape(version.label) for version in summary.versions),
        word("rows"),
        word("published"),
    ]
    return _table(heads, "".join(rows))


def _score(line: Line, version: Version) -> str:
    score = line.scores.get(version.key)
    if score is None:
        return ""
    return f"<b>{numbers.value(line, score.value)}</b> <small>{numbers.interval(line, score.interval)}</small>"


def _count(score: Score) -> str:
    more = f" <small>{word('first_rows', limit=f'{score.limit:,}')}</small>" if score.limit is not None else ""
    return f"{score.count:,}{more}"


def _details(summary: Summary) -> str:
    parts = []
    for version, each in summary.by_task():
        result = each.result
        rows = "".join(
            _cells(
                escape(file.group),
                escape(file.name),
                ", ".join(f"{escape(name)} <b>{number:.3f}</b>" for name, number in file.metrics.items()),
                f"{file.count:,}",
                f"{file.truncated:,}",
                numbers.seconds(file.seconds),
                ", ".join(escape(str(value)) for value in published_of_file(each, file)),
            )
            for file in result.files
        )
        heads = [word(head) for head in ("group", "file", "metric", "rows", "cut", "time", "published")]
        settings = word(
            "settings",
            length=f"{result.max_seq_length:,}",
            replicas=str(result.replicas),
            time=numbers.seconds(result.seconds),
            file=result.task_file,
            hash=result.task_hash[:12],
        )
        head = f"<summary>{escape(result.name)} <small>{escape(version.label)}</small></summary>"
        parts.append(f"<details>{head}<p>{word(result.type)}{settings}</p>{_table(heads, rows)}</details>")
    return f"<section><h2>{word('details')}</h2>{''.join(parts)}<p class=note>{word('cut_note')}</p></section>\n"


def _sources(summary: Summary) -> str:
    said = dict.fromkeys(
        f"{line.task} {line.metric}: {each.precision} {numbers.value(line, each.value)}; {each.origin}"
        for line in summary.lines
        for each in line.published
    )
    if not said:
        return ""
    items = "".join(f"<li>{escape(text)}" for text in said)
    return f"<section><details><summary>{word('sources')}</summary><ul>{items}</ul></details></section>\n"


def _table(heads: list[str], rows: str) -> str:
    head = "".join(f"<th>{each}" for each in heads)
    return f'<div class="wide"><table><tr>{head}{rows}</table></div>'


def _cells(*cells: str, head: str = "") -> str:
    """A row. head: a cell before, with its tag."""
    return f"<tr>{head}" + "".join(f"<td>{cell}" for cell in cells) + "\n"
