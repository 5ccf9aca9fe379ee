"""Reports: intervals against known values, versions compared on the same rows, published values told as such."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from engine.errors import GLMError
from engine.evaluation import output
from engine.evaluation.record import Record
from engine.evaluation.reports import stored, write_report
from engine.evaluation.reports.intervals import bootstrap_difference, bootstrap_mean, bootstrap_ratio, wilson
from engine.evaluation.reports.summary import summarise
from engine.evaluation.reports.words import WORDS
from engine.evaluation.result import FileResult, TaskResult, group_spreads

FIRST, SECOND = "a1" * 32, "b2" * 32


def write_task(
    out: Path,
    weights: str,
    name: str,
    files: dict[tuple[str, str | None], list[Record]],
    *,
    kind: str = "mul",
    groups: dict[str, str] | None = None,
    hash: str = "c" * 64,
    started: str = "2026-01-01T00:00:00+00:00",
    limit: int | None = None,
) -> None:
    """A finished result as a run leaves it. files: (file, prompt) -> its rows. groups: file -> group; "test" for all."""
    folder = out / f"{weights[:12]}-fp32" / f"{name.replace(' ', '-')}-{hash[:12]}"
    folder.mkdir(parents=True)
    made = []
    for number, ((file, prompt), records) in enumerate(files.items()):
        rows = f"{number:012x}.jsonl"
        (folder / rows).write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))
        if kind == "lm":
            loss, words = sum(each.loss for each in records), sum(each.words for each in records)
            metrics, means = {"PPL": math.exp(loss / words)}, []
        else:
            means = list(records[0].scores)
            metrics = {metric: float(np.mean([each.scores[metric] for each in records])) for metric in means}
        group = (groups or {}).get(file, "test")
        made.append(FileResult(file, group, metrics, len(records), 1.0, rows, prompt, means))
    by_group = {
        group: group_spreads([each for each in made if each.group == group])
        for group in dict.fromkeys(each.group for each in made)
    }
    fingerprint = {"model": "tiny", "weights_hash": weights, "precision": "fp32", "device": "cpu", "version": "1"}
    result = TaskResult(
        name, kind, f"{name}.yaml", hash, fingerprint, made, by_group, group_spreads(made), 1.0, started, limit=limit
    )
    output.write_result(folder, result)


def answers(right: list[bool], choices: int = 4) -> list[Record]:
    return [
        Record(number, choice=0, logprobs=[-1.0] * choices, scores={"Accuracy": 100.0 * each})
        for number, each in enumerate(right)
    ]


def test_wilson_against_published_values():
    # Newcombe (Statistics in Medicine 17, 1998, table I): 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for right, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(right, count) == pytest.approx((low, high), abs=1e-4)


def test_bootstrap_agrees_with_the_normal_approximation_where_that_holds():
    values = np.random.default_rng(5).normal(50.0, 10.0, 2000)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert bootstrap_mean(values) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 8)
    assert bootstrap_mean(values) == bootstrap_mean(values), "the same rows give the same interval"
    sizes = np.full(len(values), 2.0)
    assert bootstrap_ratio(values, sizes) == pytest.approx([end / 2 for end in bootstrap_mean(values)])
    low, high = bootstrap_difference(values, values + 3)
    assert (high - low) == pytest.approx(2 * math.sqrt(2) * half, rel=0.1) and low < 3 < high
    assert bootstrap_mean([7.0, 7.0]) == (7.0, 7.0)


def test_the_same_rows_are_compared_row_by_row(tmp_path: Path):
    hard = [number % 3 == 0 for number in range(300)]  # both versions fail on them, which pairing takes out
    before = [not each for each in hard]
    after = [not each and number % 20 != 1 for number, each in enumerate(hard)]
    write_task(tmp_path, FIRST, "AFQMC", {("dev.jsonl", None): answers(before)})
    write_task(tmp_path, SECOND, "AFQMC", {("dev.jsonl", None): answers(after)}, started="2026-01-02T00:00:00+00:00")
    summary = summarise(stored(tmp_path))
    (difference,) = summary.differences
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    assert (difference.wins, difference.losses, difference.rows, difference.paired) == (0, lost, 300, True)
    assert difference.value == pytest.approx(-100 * lost / 300) and difference.verdict == "worse"
    paired = difference.interval[1] - difference.interval[0]
    low, high = bootstrap_difference([100.0 * each for each in before], [100.0 * each for each in after])
    assert low < 0 < high, "two samples that have nothing to do with each other would show nothing here"
    assert paired < (high - low) / 2


def test_equal_versions_differ_in_nothing(tmp_path: Path):
    rows = {("dev.jsonl", None): answers([True, False] * 20)}
    write_task(tmp_path, FIRST, "AFQMC", rows)
    write_task(tmp_path, SECOND, "AFQMC", rows)
    (difference,) = summarise(stored(tmp_path)).differences
    assert (difference.value, difference.interval, difference.verdict) == (0.0, (0.0, 0.0), "none")


def test_prompts_of_the_same_rows_do_not_make_an_interval_narrower(tmp_path: Path):
    right = answers([number % 2 == 0 for number in range(100)])
    write_task(tmp_path, FIRST, "AFQMC", {("dev.jsonl", None): right})
    write_task(tmp_path, FIRST, "BUSTM", {("dev.jsonl", prompt): right for prompt in ("a", "b", "c", "d")})
    one, four = summarise(stored(tmp_path)).lines
    key = one.scores.keys().__iter__().__next__()
    assert one.scores[key].interval == four.scores[key].interval == tuple(100 * end for end in wilson(50, 100))
    assert (four.scores[key].count, four.scores[key].files, one.scores[key].chance) == (100, 4, 25.0)


def test_groups_have_their_average_and_published_values(tmp_path: Path):
    files = {("stem/astronomy.jsonl", "letter"): answers([True, False, False, False])}
    files |= {("other/virology.jsonl", "letter"): answers([True] * 12)}
    groups = {"stem/astronomy.jsonl": "stem", "other/virology.jsonl": "other"}
    write_task(tmp_path, FIRST, "MMLU", files, groups=groups)
    lines = {line.group: line for line in summarise(stored(tmp_path)).lines}
    assert {group: next(iter(line.scores.values())).value for group, line in lines.items()} == {
        "stem": 25.0,
        "other": 100.0,
        "overall": 100.0 * 13 / 16,
    }
    assert [each.value for each in lines["overall"].published] == [44.751, 44.709, 44.801]
    assert lines["stem"].published == ()
    markdown, page = (path.read_text(encoding="utf-8") for path in write_report(tmp_path))
    assert "| MMLU | stem/astronomy.jsonl [letter] | tiny a1a1a1a1 fp32 | Accuracy 25.000 | 4 |" in markdown
    assert "GLM-130B FP16 48.03 |" in markdown and "published, not measured" in markdown
    assert "GLM-130B FP16 44.8, INT8 44.7, INT4 44.8" in markdown
    assert "published, not measured" in page and "GLM-130B, docs/quantization.md, Evaluation Results" in page


def test_perplexities_are_compared_by_the_losses_of_windows(tmp_path: Path):
    def windows(factor: float) -> list[Record]:
        return [
            Record(0, part, loss=factor * (900 + part % 7), tokens=250, words=8000 if part == 0 else 0, bytes=9)
            for part in range(40)
        ]

    write_task(tmp_path, FIRST, "WikiText-2", {("wiki.test.tokens", None): windows(1.0)}, kind="lm")
    later = "2026-01-02T00:00:00+00:00"
    write_task(tmp_path, SECOND, "WikiText-2", {("wiki.test.tokens", None): windows(0.95)}, kind="lm", started=later)
    summary = summarise(stored(tmp_path))
    (line,), (difference,) = summary.lines, summary.differences
    first, second = (line.scores[version.key] for version in summary.versions)
    assert first.interval[0] < first.value < first.interval[1]
    assert first.interval[1] / first.interval[0] < 1.02, "windows that are alike leave little doubt"
    assert difference.value == pytest.approx(second.value - first.value)
    assert difference.interval[0] <= difference.value <= difference.interval[1] < 0
    assert (difference.verdict, difference.losses, line.better) == ("better", 40, -1)


def test_other_rows_are_not_paired_and_the_most_comparable_result_is_taken(tmp_path: Path):
    few, all_rows, other = "1" * 64, "2" * 64, "3" * 64
    right = answers([True, False] * 50)
    write_task(tmp_path, FIRST, "AFQMC", {("dev.jsonl", None): right[:10]}, hash=few, limit=10)
    write_task(tmp_path, FIRST, "AFQMC", {("dev.jsonl", None): right}, hash=all_rows)
    write_task(tmp_path, SECOND, "AFQMC", {("dev.jsonl", None): answers([True] * 30)}, hash=other)
    (difference,) = summarise(stored(tmp_path)).differences
    assert not difference.paired and difference.value == 50.0 and difference.verdict == "better"
    # With the same ten rows asked on both, those are compared.
    write_task(tmp_path, SECOND, "AFQMC", {("dev.jsonl", None): answers([True] * 10)}, hash=few, limit=10)
    summary = summarise(stored(tmp_path))
    (difference,) = summary.differences
    assert difference.paired and difference.rows == 10
    assert {each.result.limit for each in summary.results.values()} == {10}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str | None]] = []
        self.languages: dict[str, int] = {}

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.attributes += attributes
        if tag == "span" and ("lang", "en") in attributes or ("lang", "zh") in attributes:
            code = dict(attributes)["lang"]
            self.languages[code] = self.languages.get(code, 0) + 1


def test_the_page_is_whole_alone_and_in_both_languages(tmp_path: Path):
    name = 'AF<script>"&QMC'
    write_task(tmp_path, FIRST, name, {("dev.jsonl", None): answers([True, False] * 9)})
    write_task(tmp_path, SECOND, name, {("dev.jsonl", None): answers([True, True] * 9)})
    write_task(
        tmp_path, FIRST, "WikiText-2", {("t", None): [Record(0, 0, loss=10.0, tokens=5, words=4, bytes=20)]}, kind="lm"
    )
    _, path = write_report(tmp_path)
    page = path.read_text(encoding="utf-8")
    parser = _Page()
    parser.feed(page)
    assert not [value for name, value in parser.attributes if name in ("src", "href")], "nothing is loaded"
    assert parser.languages["en"] == parser.languages["zh"] > 40
    assert '<script>"&' not in page and "AF&lt;script&gt;" in page
    figures = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(figures) == 3  # scores, perplexity, differences
    for figure in figures:
        shapes = ElementTree.fromstring(figure)
        places = [
            float(value) for shape in shapes.iter() for key, value in shape.attrib.items() if key in ("x", "cx", "x1")
        ]
        assert places and all(0 <= place <= 860 for place in places)
    for key, (english, chinese) in WORDS.items():
        assert re.findall(r"{\w+}", english) == re.findall(r"{\w+}", chinese) or key in ("compared",)
        assert english and chinese


def test_reports_of_only_some_tasks_and_of_none(tmp_path: Path):
    write_task(tmp_path, FIRST, "AFQMC", {("dev.jsonl", None): answers([True, False])})
    write_task(tmp_path, FIRST, "BUSTM", {("dev.jsonl", None): answers([True, False])})
    markdown = write_report(tmp_path, {"BUSTM"})[0].read_text()
    assert "BUSTM" in markdown and "AFQMC" not in markdown
    with pytest.raises(GLMError, match="holds no finished results"):
        write_report(tmp_path, {"C3"})
    (rows,) = (tmp_path / f"{FIRST[:12]}-fp32" / f"AFQMC-{'c' * 12}").glob("0*.jsonl")
    rows.write_text('{"row": 0, "part": 0, "prediction": 1, "logprobs": [], "scores": {}}\n{"row"')
    with pytest.raises(GLMError, match="line 2 is not JSON"):
        write_report(tmp_path)
    rows.unlink()
    with pytest.raises(GLMError, match=r"0{12}\.jsonl can't be read"):
        write_report(tmp_path)
