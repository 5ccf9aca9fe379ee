"""What a task's run brought: values per file, their spread per group, and the JSON form that reports are made from.

An output folder, which is also the cache (see cache.py):

    OUT/WEIGHTS/                       one folder for each version of weights and precision: 12 hex digits, "-", precision
        TASK-HASH/                     the task's name as letters, digits and "-", then 12 hex digits of settings and rows
            result.json                a TaskResult, there once the task is finished
            FILE-HASH.jsonl            the rows of one measured file: line by line as they came, see below; complete or not
        ...

A line of a rows file: {"row": number in the file, from 0; "prediction": what the model chose or wrote; "scores": {metric: value
of this row alone}; and what the kind of task keeps: "logprobs" (mul: one a choice), "text" (gen), "loss" (nats), "tokens",
"words", "bytes" (lm)}. A file's metric is the mean of the rows' scores where `FileResult.means` says so (Accuracy, EM, F1: in
percent); comparisons with confidence intervals pair rows of two versions by "row".
"""

from __future__ import annotations

import math
import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from engine.errors import GLMError

FORMAT = 1  # of result.json


@dataclass(slots=True)
class Spread:
    """Of one metric over the files of a group. average: weighted by the files' rows, as GLM-130B's report has it."""

    max: float
    median: float
    average: float


@dataclass(slots=True)
class FileResult:
    """One measured file, or one prompt of it. metrics: in the task's order; parts of one metric are named "BPB: Pile-CC"."""

    file: str  # relative to the task's path, with "/"
    group: str
    metrics: dict[str, float]
    count: int  # rows; lm: windows
    seconds: float  # from its first row to its last, rows of other files that ran beside it included
    rows: str  # name of the rows file in the task's folder
    prompt: str | None = None  # of the task's `prompts`
    means: list[str] = field(default_factory=list)  # metrics that are means of the rows' scores
    standard_errors: dict[str, float] = field(default_factory=dict)  # of those, over rows; in the metric's unit
    tokens: int = 0  # read and written
    truncated: int = 0  # rows whose inputs were cut at their beginning, because they were too long

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def name(self) -> str:
        return self.file if self.prompt is None else f"{self.file} [{self.prompt}]"


@dataclass(slots=True)
class TaskResult:
    """One task on one version of weights. groups, overall: metric -> Spread; a group without files is empty."""

    name: str
    type: str  # mul, gen, lm
    task_file: str  # name as it was given; the file's own name only, no folder of this machine
    task_hash: str  # sha256 of settings and rows
    fingerprint: dict[str, str]  # protocol.Limits.fingerprint: model, weights_hash, precision, device, version, sampler
    files: list[FileResult]
    groups: dict[str, dict[str, Spread]]
    overall: dict[str, Spread]
    seconds: float
    started: str  # ISO 8601, UTC
    replicas: int = 1
    max_seq_length: int = 0  # as used: the task's, or the model's positions where those are fewer
    task: dict[str, Any] = field(default_factory=dict)  # its settings
    limit: int | None = None  # rows a file at most, where not all were asked
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(values: dict[str, Any]) -> TaskResult:
        """GLMError bad_data for what `to_json` did not write."""
        try:
            if values["format"] != FORMAT:
                raise GLMError("bad_data", f"The result has format {values['format']}, not {FORMAT}.", field="format")
            files = [FileResult(**each) for each in values["files"]]
            groups = {name: spreads(found) for name, found in values["groups"].items()}
            return TaskResult(**(values | {"files": files, "groups": groups, "overall": spreads(values["overall"])}))
        except (KeyError, TypeError) as error:
            raise GLMError("bad_data", f"This is no result of a task: {error}.", field="result") from error


def spreads(values: dict[str, dict[str, float]]) -> dict[str, Spread]:
    return {metric: Spread(**each) for metric, each in values.items()}


def group_spreads(files: list[FileResult]) -> dict[str, Spread]:
    """Max, median and average of each metric over files. Empty without files."""
    found: dict[str, Spread] = {}
    for metric in dict.fromkeys(metric for file in files for metric in file.metrics):
        having = [file for file in files if metric in file.metrics]
        values = [file.metrics[metric] for file in having]
        weights = [file.count for file in having]
        total = sum(weights)
        average = (
            math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / total
            if total
            else statistics.fmean(values)
        )
        found[metric] = Spread(max(values), statistics.median(values), average)
    return found
