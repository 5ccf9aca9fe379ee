"""What a report says, before it is Markdown or HTML: versions, a line for each task, group and metric, differences of versions."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from engine.evaluation.published import Published, published
from engine.evaluation.published import tasks as tasks_published
from engine.evaluation.record import Record
from engine.evaluation.reports import intervals
from engine.evaluation.reports.intervals import Interval
from engine.evaluation.reports.stored import Stored
from engine.evaluation.result import FileResult, Spread

OVERALL = "overall"
_LOWER = ("PPL", "PPL_tokens", "BPB")
_NEITHER = ("CP", "SS")  # of stereotypes: neither more nor less is better than the middle
_NOT_PERCENT = _LOWER

RowKey = tuple[str, int, int]  # file, row, window


@dataclass(frozen=True, slots=True)
class Version:
    """Weights in a precision. name: the model's; label: name, 8 digits of the weights' hash, precision."""

    key: tuple[str, str]
    name: str
    fingerprint: dict[str, str]

    @property
    def label(self) -> str:
        return f"{self.name} {self.key[0][:8]} {self.key[1]}"


@dataclass(frozen=True, slots=True)
class Score:
    """spread: over the files, or prompts, of the group; its average is the score. interval: of the average, where one can be had.
    chance: what guessing gives. count: rows (windows), a row of several prompts once."""

    spread: Spread
    interval: Interval | None
    count: int
    files: int
    seconds: float
    truncated: int
    limit: int | None
    chance: float | None = None

    @property
    def value(self) -> float:
        return self.spread.average


@dataclass(frozen=True, slots=True)
class Line:
    """One metric of a group of a task. scores: by Version.key."""

    task: str
    type: str
    group: str
    metric: str
    description: str
    scores: dict[tuple[str, str], Score]
    published: tuple[Published, ...]

    @property
    def percent(self) -> bool:
        return _base(self.metric) not in _NOT_PERCENT

    @property
    def better(self) -> int:
        """1: higher is better; -1: lower; 0: neither."""
        return -1 if _base(self.metric) in _LOWER else 0 if _base(self.metric) in _NEITHER else 1


@dataclass(frozen=True, slots=True)
class Difference:
    """second minus first. rows: that both answered; wins, losses: of those, where second scored higher, lower than first.
    paired: the same rows; else each side's rows vary by themselves, and there are no wins and losses."""

    line: Line
    first: Version
    second: Version
    value: float
    interval: Interval
    paired: bool
    rows: int
    wins: int = 0
    losses: int = 0

    @property
    def verdict(self) -> str:
        """better, worse, different (a metric without a better end) or none: zero is in the interval."""
        low, high = self.interval
        if low <= 0 <= high:
            return "none"
        if not self.line.better:
            return "different"
        return "better" if (self.value > 0) == (self.line.better > 0) else "worse"


@dataclass(slots=True)
class Summary:
    """results: the chosen one of each (version, task), by (Version.key, task's name)."""

    versions: list[Version]
    lines: list[Line]
    differences: list[Difference] = field(default_factory=list)
    results: dict[tuple[tuple[str, str], str], Stored] = field(default_factory=dict)

    def by_task(self) -> list[tuple[Version, Stored]]:
        """The results, versions of the same task after each other."""
        tasks = dict.fromkeys(name for _, name in self.results)
        pairs = [(version, self.results.get((version.key, task))) for task in tasks for version in self.versions]
        return [(version, each) for version, each in pairs if each is not None]


def summarise(found: Sequence[Stored], tasks: Collection[str] | None = None) -> Summary:
    """Of the results of a folder. tasks: names, None for all. The first version is what the others are compared with.

    Of several results of one task on one version, the one that is comparable with most versions is taken, then the one with most
    rows, then the newest. GLMError bad_data for rows that can't be read.
    """
    chosen = _chosen([each for each in found if tasks is None or each.result.name in tasks])
    versions: dict[tuple[str, str], Version] = {}
    for each in found:
        version = _version(each)
        if any(key == version.key for key, _ in chosen):
            versions.setdefault(version.key, version)
    summary = Summary(list(versions.values()), [], results=chosen)
    for task in dict.fromkeys(name for _, name in chosen):
        per_version = {key: each for (key, name), each in chosen.items() if name == task}
        first = next(iter(per_version.values())).result
        read = {key: _Rows(each) for key, each in per_version.items()}
        groups = [group for group, spreads in first.groups.items() if spreads]
        for group in groups + ([OVERALL] if len(groups) > 1 else []):
            for metric in first.overall if group == OVERALL else first.groups[group]:
                scores = {key: rows.score(group, metric) for key, rows in read.items()}
                line = Line(
                    task,
                    first.type,
                    group,
                    metric,
                    first.task.get("description") or "",
                    {key: score for key, score in scores.items() if score is not None},
                    published_beside(task, metric, group, len(groups)),
                )
                summary.lines.append(line)
                summary.differences += _differences(line, summary.versions, read)
    return summary


class _Rows:
    """The rows of one result, by file; read once."""

    def __init__(self, each: Stored) -> None:
        self.result = each.result
        self._records = {file.rows: each.records(file) for file in each.result.files}

    def score(self, group: str, metric: str) -> Score | None:
        spreads = self.result.overall if group == OVERALL else self.result.groups.get(group, {})
        if metric not in spreads:
            return None
        files = self.files(group, metric)
        records = [record for file in files for record in self._records[file.rows]]
        return Score(
            spread=spreads[metric],
            interval=self._interval(group, metric, spreads[metric].average),
            count=len({(file.file, record.row, record.part) for file in files for record in self._records[file.rows]}),
            files=len(files),
            seconds=sum(file.seconds for file in files),
            truncated=sum(file.truncated for file in files),
            limit=self.result.limit,
            chance=_chance(records) if metric == "Accuracy" and self.result.type == "mul" else None,
        )

    def files(self, group: str, metric: str) -> list[FileResult]:
        return [file for file in self.result.files if group in (OVERALL, file.group) and metric in file.metrics]

    def row_scores(self, group: str, metric: str) -> dict[RowKey, float] | None:
        """The metric of each row, the mean of its prompts: those are not independent of each other. None without such scores."""
        found: dict[RowKey, list[float]] = {}
        for file in self.files(group, metric):
            if metric not in file.means:
                return None
            for record in self._records[file.rows]:
                found.setdefault((file.file, record.row, record.part), []).append(record.scores[metric])
        return {key: statistics.fmean(scores) for key, scores in found.items()} or None

    def losses(self, group: str, metric: str) -> dict[RowKey, tuple[float, int]] | None:
        """(loss, tokens) of each window, and only of a group with one file: an average of perplexities is none of all windows."""
        files = self.files(group, metric)
        if self.result.type != "lm" or metric not in _LOWER or len(files) != 1:
            return None
        records = self._records[files[0].rows]
        return {(files[0].file, record.row, record.part): (record.loss, record.tokens) for record in records}

    def _interval(self, group: str, metric: str, value: float) -> Interval | None:
        scores = self.row_scores(group, metric)
        if scores is not None and len(scores) > 1:
            values = list(scores.values())
            if set(values) <= {0.0, 100.0}:
                low, high = intervals.wilson(sum(values) / 100.0, len(values))
                return 100.0 * low, 100.0 * high
            return intervals.bootstrap_mean(values)
        losses = self.losses(group, metric)
        if losses is not None and len(losses) > 1 and value > 0:
            above, below = zip(*losses.values(), strict=True)
            mean = sum(above) / sum(below)
            low, high = intervals.bootstrap_ratio(above, below)
            # A perplexity is exp(loss / words), bits a byte a multiple of the loss: both go with the loss a token.
            return _scaled(metric, value, low / mean), _scaled(metric, value, high / mean)
        return None


def _scaled(metric: str, value: float, factor: float) -> float:
    """The metric if the loss were `factor` times what it is."""
    return value * factor if _base(metric) == "BPB" else math.exp(math.log(value) * factor)


def _differences(line: Line, versions: Sequence[Version], read: dict[tuple[str, str], _Rows]) -> list[Difference]:
    there = [version for version in versions if version.key in line.scores]
    return [found for second in there[1:] if (found := _difference(line, there[0], second, read)) is not None]


def _difference(line: Line, first: Version, second: Version, read: dict[tuple[str, str], _Rows]) -> Difference | None:
    mine, other = read[first.key], read[second.key]
    paired = mine.result.task_hash == other.result.task_hash
    value = line.scores[second.key].value - line.scores[first.key].value
    before, after = mine.row_scores(line.group, line.metric), other.row_scores(line.group, line.metric)
    if before is not None and after is not None:
        if not paired or before.keys() != after.keys():
            interval = intervals.bootstrap_difference(list(before.values()), list(after.values()))
            return Difference(line, first, second, value, interval, False, min(len(before), len(after)))
        changes = [after[key] - before[key] for key in before]
        interval = intervals.bootstrap_mean(changes)
        wins, losses = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
        return Difference(line, first, second, value, interval, True, len(changes), wins, losses)
    losses_before, losses_after = mine.losses(line.group, line.metric), other.losses(line.group, line.metric)
    if paired and losses_before and losses_after and losses_before.keys() == losses_after.keys():
        return _loss_difference(line, first, second, value, losses_before, losses_after)
    return None


def _loss_difference(
    line: Line,
    first: Version,
    second: Version,
    value: float,
    before: dict[RowKey, tuple[float, int]],
    after: dict[RowKey, tuple[float, int]],
) -> Difference:
    """The same windows: their losses' differences are drawn; the first version's value stays what it is."""
    changes = [after[key][0] - before[key][0] for key in before]
    low, high = intervals.bootstrap_ratio(changes, [tokens for _, tokens in before.values()])
    total, tokens = sum(loss for loss, _ in before.values()), sum(tokens for _, tokens in before.values())
    base = line.scores[first.key].value
    interval = tuple(_scaled(line.metric, base, 1 + change * tokens / total) - base for change in (low, high))
    wins, losses = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
    return Difference(line, first, second, value, interval, True, len(changes), wins, losses)


def _chosen(found: Sequence[Stored]) -> dict[tuple[tuple[str, str], str], Stored]:
    versions_of: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for each in found:
        versions_of.setdefault((each.result.name, each.result.task_hash), set()).add(_version(each).key)

    def rank(each: Stored) -> tuple[int, float, str]:
        rows = sum(file.count for file in each.result.files)
        return len(versions_of[each.result.name, each.result.task_hash]), rows, each.result.started

    best: dict[tuple[tuple[str, str], str], Stored] = {}
    for each in found:
        key = (_version(each).key, each.result.name)
        if key not in best or rank(each) >= rank(best[key]):
            best[key] = each
    return best


def published_of_file(each: Stored, file: FileResult) -> tuple[Published, ...]:
    """Values of one file of a group: MMLU's subjects."""
    stem = file.file.rpartition("/")[2].partition(".")[0]
    return tuple(value for metric in file.metrics for value in published(each.result.name, metric, file.group, stem))


def _version(each: Stored) -> Version:
    fingerprint = each.result.fingerprint
    key = (fingerprint.get("weights_hash", ""), fingerprint.get("precision", ""))
    return Version(key, fingerprint.get("model", "model"), fingerprint)


def published_beside(task: str, metric: str, group: str, groups: int) -> tuple[Published, ...]:
    """Values of the group. Where none of the task's are of groups, those of the task are beside each of its groups (test and
    validation, say), but not beside an average over them."""
    of_groups = any(each.group is not None for each in tasks_published().get(task, ()))
    if group == OVERALL:
        return published(task, metric) if of_groups else ()
    return published(task, metric, group if of_groups and groups > 1 else None)


def _chance(records: Sequence[Record]) -> float | None:
    if not records or any(len(record.logprobs) < 2 for record in records):
        return None
    return 100.0 * statistics.fmean(1 / len(record.logprobs) for record in records)


def _base(metric: str) -> str:
    """ "BPB: Pile-CC" is a part of BPB."""
    return metric.partition(":")[0]
