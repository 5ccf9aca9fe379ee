"""To look at a training run: curves and their pictures, the film strip, the report command, the progress line, the peak."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pty
import re
import shutil
import struct
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engine.commands import report as command
from engine.errors import GLMError
from engine.glm import checkpoint
from engine.glm.config import Config, weights_hash
from engine.glm.machine import matmul_peak
from engine.glm.model import GLM, initialise
from engine.training import film_strip, film_strip_page, panels, plot, plot_page
from engine.training.curves import read, smoothed
from engine.training.data import Batch
from engine.training.film_strip import Cell, Column, Prompt, Strip
from engine.training.loss import batch_loss
from engine.training.progress import Line, Recent, State, duration, plain_line, terminal_line
from engine.training.training_flops import attended, training_flops
from tests.browser.conftest import CHROMIUM, FLAGS
from tests.conftest import make_tiny_model


def step(number: int, **changed) -> dict:
    loss = round(8 / number**0.3, 4)
    line = {"step": number, "stage": "first" if number <= 30 else "second", "loss": loss, "targets": 100, "tokens": 250}
    line |= {"learning_rate_share": min(1.0, number / 10), "gradient_norm": 1.5 + number % 7 / 10, "seconds": 0.5}
    return {key: value for key, value in (line | changed).items() if value != "missing"}


def write_metrics(folder: Path, lines: list[dict], end: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end, encoding="utf-8")
    return path


class Page(HTMLParser):
    """Collects what a page would load, and its table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[tuple[str, str]] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes) -> None:
        self.tags.append(tag)
        self.loads += [(tag, name) for name, _ in attributes if name in ("src", "href", "xlink:href", "srcset", "data")]


def assert_needs_no_network(text: str) -> None:
    assert Page(text).loads == []
    assert not re.search(r"url\((?!#)|@import|https?:|fetch\(|XMLHttpRequest", text)
    assert "prefers-color-scheme: dark" in text


def pictures(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


# Curves


def test_curves_of_a_whole_run(tmp_path) -> None:
    curves = read(write_metrics(tmp_path, [step(number) for number in range(1, 61)]))
    assert curves.steps == list(range(1, 61))
    assert curves.tokens[-1] == 60 * 250
    assert curves.spans == [("first", 0, 29), ("second", 30, 59)]
    assert curves.speed == [500.0] * 60
    totals = curves.totals()
    expected = sum(step(number)["loss"] for number in range(36, 61)) / 25
    assert totals == {"steps": 60, "tokens": 15000, "targets": 6000, "hours": 0.01, "last_loss": round(expected, 3)}


def test_lines_that_are_no_steps(tmp_path) -> None:
    """Half lines, gaps, numbers that are none: each costs its own value and nothing else."""
    path = write_metrics(
        tmp_path,
        [step(1), step(2, loss=float("nan")), step(3, gradient_norm=None, seconds=0), step(4, tokens="missing")]
        + [step(5, loss="many", stage="missing"), step(6, loss=float("inf"))],
        '{"step": 7, "los\n[1, 2]\n{"loss": 3}\n{"step": true}\n\n\x00\xff\n'
        + json.dumps(step(8))
        + '\n{"step": 9, "lo',
    )
    curves = read(path)
    assert curves.steps == [1, 2, 3, 4, 5, 6, 8]
    assert [value is None for value in curves.get("loss")] == [False, True, False, False, True, True, False]
    assert [curves.get("gradient_norm")[2], curves.speed[2], curves.speed[3], curves.speed[4]] == [
        None,
        None,
        None,
        500.0,
    ]
    assert curves.tokens == [250, 500, 750, 750, 1000, 1250, 1500]
    assert curves.unreadable == 5  # the last line is still being written
    assert curves.get("never") == [None] * 7


def test_steps_that_a_rewind_gave_up_are_not_counted(tmp_path) -> None:
    lines = [step(number) for number in range(1, 11)] + [step(11, loss=90.0), step(12, loss=80.0, event="spike")]
    rewind = {"step": 12, "event": "rewind", "to": 10}
    before = read(write_metrics(tmp_path, [*lines, rewind]))
    assert before.steps == list(range(1, 11))
    assert before.given_up == [(11, 90.0), (12, 80.0)]
    assert [(event.step, event.text) for event in before.events] == [(12, "spike"), (12, "rewind (to 10)")]
    after = read(write_metrics(tmp_path, [*lines, rewind, step(11), step(12), step(13, skipped=True)]))
    assert after.steps == list(range(1, 14))
    assert after.given_up == before.given_up
    assert max(after.get("loss")) == 8.0
    assert after.tokens[-1] == 13 * 250
    assert after.seconds == 15 * 0.5
    assert [event.kind for event in after.events] == ["spike", "rewind", "skip"]
    # A trainer that says nothing about it: the same steps once more replace what they were.
    assert read(write_metrics(tmp_path, [*lines, step(11)])).steps == list(range(1, 12))


def test_smoothing() -> None:
    assert smoothed([4.0, 2.0, None, 6.0], 2) == [4.0, 3.0, 2.0, 6.0]
    assert smoothed([None, None, 3.0], 2) == [None, None, 3.0]
    assert smoothed([1.0, 2.0, 3.0, 4.0, 5.0], 3, after=1) == [1.5, 2.0, 3.0, 4.0, 4.5]
    assert smoothed([], 25) == []
    values = [1e30, *numpy.random.default_rng(1).random(100).tolist()]
    assert smoothed(values, 10)[50] == pytest.approx(sum(values[41:51]) / 10)  # a huge value is gone with its window


# Pictures


def demo(folder: Path) -> Path:
    """A run with all that there is: stages, a rewind, skips, a gap, fp16's scale, the share of the peak."""
    more = {"embedding_gradient_norm": 0.3, "loss_scale": 65536.0, "peak_share": 0.4}
    lines = [step(number, **more) for number in range(1, 41)]
    lines[0]["event"] = "skip"
    lines[7]["loss"] = None
    lines += [step(41, loss=500.0, gradient_norm=1e4, **more), {"step": 41, "event": "rewind", "to": 30}]
    lines += [step(number, **more) for number in range(31, 61)] + [{"step": 60, "event": "<b>odd</b>"}]
    return write_metrics(folder, lines, '{"step"').parent


def test_a_run_is_drawn_as_picture_and_page(tmp_path) -> None:
    page, picture = plot.draw(demo(tmp_path / "<run> & $more"))
    assert (page.name, picture.name) == ("training.html", "training.png")
    assert sorted(path.name for path in page.parent.iterdir()) == ["metrics.jsonl", "training.html", "training.png"]
    head = picture.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    assert width > 1000 and height > 800
    text = page.read_text(encoding="utf-8")
    assert_needs_no_network(text)
    assert "<b>odd" not in text and "&lt;b&gt;odd" in text
    assert "<title>&lt;run&gt; &amp; $more: training</title>" in text
    found = pictures(text)
    titles = (
        "Loss over steps, Loss over tokens, Learning rate, Gradient norm, Speed, Share of the matmul peak, Loss scale"
    )
    assert [picture.get("aria-label") for picture in found] == titles.split(", ")
    for picture in found:
        kinds = [line.get("class") for line in picture.iter("line")]
        assert kinds.count("event rewind") == kinds.count("event skip") == kinds.count("event other") == 1
        assert [rect.get("class") for rect in picture.iter("rect") if rect.get("class")] == ["stage0", "stage1"]
    paths = {path.get("class"): path.get("d") for path in found[0].iter("path")}
    assert paths["raw line0"].count("M") == 2  # the gap at step 8
    assert len(list(found[0].iter("circle"))) == 11  # of the steps that were given up


def test_the_page_knows_the_values_under_the_pointer(tmp_path) -> None:
    text = plot.draw(demo(tmp_path))[0].read_text(encoding="utf-8")
    data = json.loads(re.search(r"const data = (.*);\n", text)[1])
    assert data["steps"] == list(range(1, 61))
    name, values, smooth = data["panels"][0]["lines"][0]
    assert (name, values[7], values[59]) == ("loss", None, f"{step(60)['loss']:.4g}")
    assert len(smooth) == len(data["panels"][0]["x"]) == 60
    places = data["panels"][1]["x"]
    assert places == sorted(places)


def test_the_page_in_a_browser(tmp_path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    program = next((path for name in CHROMIUM if (path := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    path = plot.draw(demo(tmp_path))[0]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=FLAGS)
        page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="dark")
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(path.as_uri())
        legend = page.locator("output").first.text_content()
        box = page.locator("svg").first.bounding_box()
        page.mouse.move(box["x"] + 0.96 * box["width"], box["y"] + box["height"] / 2)
        shown = page.locator("output").all_text_contents()
        assert shown[0].startswith(f"step 60 second, 15k tokens: loss {step(60)['loss']:.4g} (mean ")
        assert all("step 60" in words for words in shown)
        assert page.locator(".pointer").first.get_attribute("visibility") == "visible"
        page.mouse.move(1, 1)
        assert page.locator("output").first.text_content() == legend
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
        assert problems == []
        browser.close()


@pytest.mark.parametrize("lines", [[], [step(1)], [step(1, loss=None)], [{"step": 3, "event": "resumed"}]])
def test_runs_of_nearly_nothing_are_drawn(tmp_path, lines: list[dict]) -> None:
    page, picture = plot.draw(write_metrics(tmp_path, lines).parent)
    assert picture.stat().st_size > 1000
    text = page.read_text(encoding="utf-8")
    assert len(pictures(text)) == 5
    assert ("no values" in text) == (lines != [step(1)])


def test_a_long_run_makes_a_small_page_that_keeps_its_spike(tmp_path) -> None:
    lines = [step(number, loss=100.0 if number == 3333 else 2 + number % 3) for number in range(1, 20001)]
    curves = read(write_metrics(tmp_path, lines))
    page = plot.draw_page(curves, tmp_path / "page.html", "long")
    assert page.stat().st_size < 1e6
    panel = panels.panels(curves)[0]
    low, high = panel.limits()
    assert high < 5 and low < 2  # one value does not make a flat line of all others
    path = next(path for path in pictures(page.read_text())[0].iter("path") if path.get("class") == "raw line0").get(
        "d"
    )
    heights = [float(place) for place in re.findall(r"[ML][\d.]+ (-?[\d.]+)", path)]
    assert len(heights) <= 1300
    assert min(heights) < 0  # it leaves the picture at the top


def test_without_matplotlib_there_is_still_the_page(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)  # as if it were not installed
    with pytest.raises(GLMError, match="matplotlib is not installed") as caught:
        plot.draw(demo(tmp_path))
    assert caught.value.kind == "unsupported"
    assert (tmp_path / "training.html").exists()
    assert not (tmp_path / "training.png").exists()


def test_ticks() -> None:
    assert plot_page.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert plot_page.ticks(1, 1250) == [200, 400, 600, 800, 1000, 1200]
    assert plot_page.log_ticks(0.5, 30) == [0.5, 1, 2, 5, 10, 20]
    assert plot_page.log_ticks(1e-6, 1e8)[0] == 1e-6
    assert len(plot_page.log_ticks(1e-6, 1e8)) <= 8
    assert len(plot_page.log_ticks(60000, 70000)) > 2
    assert [plot_page.short(value) for value in (0.25, 1250, 12500, 4.9e6, 3e9)] == [
        "0.25",
        "1250",
        "12.5k",
        "4.9M",
        "3G",
    ]


# The film strip

PROMPTS = (
    Prompt(mode="fill", text="The capital of [MASK] is Tokyo.", wanted="Japan"),
    Prompt(mode="fill", text="法国的首都是[gMASK]"),
    Prompt(mode="chat", text="Hello!"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, vocabulary_file: Path) -> Path:
    """A run with two checkpoints, after the second of which the model was written."""
    run = tmp_path_factory.mktemp("trained")
    write_metrics(run, [step(number) for number in range(1, 31)])
    for number in (10, 30):
        folder = run / "checkpoints" / f"step-{number:08d}"
        folder.mkdir(parents=True)
        make_tiny_model(folder, vocabulary_file, seed=number)
    shutil.copytree(folder, run / "model")
    (run / "splits").mkdir()
    (run / "splits" / "mixed.jsonl").write_text('{"text": "Hello there."}\n{"text": "A [MASK].", "answers": ["b"]}\n')
    (run / "held_out.jsonl").write_text(
        '{"question": "What?", "answer": "That.", "lang": "en"}\n{"question": "什么？", "answer": "这个。", "lang": "zh"}\n'
    )
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_checkpoints_are_asked_once(run: Path) -> None:
    strip = asyncio.run(film_strip.shoot(run, PROMPTS))
    assert [(column.name, column.step) for column in strip.columns] == [("step-00000010", 10), ("model", 30)]
    assert strip.columns[0].loss == pytest.approx(sum(step(number)["loss"] for number in range(1, 11)) / 10)
    first, last = (column.cells for column in strip.columns)
    assert first != last
    assert first[0].answer == f"The capital of {first[0].fills[0].strip()} is Tokyo."
    assert first[1].answer.startswith("法国的首都是") and first[2].fills == ()

    cache = run / "film_strip.json"
    kept = json.loads(cache.read_text(encoding="utf-8"))
    digest = weights_hash(run / "checkpoints" / "step-00000010")
    assert list(kept["answers"]) == [digest, weights_hash(run / "model")]
    kept["answers"][digest][0]["answer"] = "from the cache"
    cache.write_text(json.dumps(kept), encoding="utf-8")
    # The run went on: a new checkpoint, and one that is being written. A prompt is new, too.
    folder = run / "checkpoints" / "step-00000020"
    shutil.copytree(run / "checkpoints" / "step-00000010", folder)
    model = checkpoint.load(folder)
    with torch.no_grad():
        model.final_layernorm.weight.mul_(0.5)
    checkpoint.save(model, folder, tokenizer=folder / "tokenizer.model")
    (run / "checkpoints" / "step-00000031").mkdir()
    more = asyncio.run(film_strip.shoot(run, (*PROMPTS, Prompt(mode="chat", text="你好"))))
    assert [column.name for column in more.columns] == ["step-00000010", "step-00000020", "model"]
    assert more.columns[0].cells[0].answer == "from the cache"
    assert more.columns[2].cells[:3] == last
    assert all(len(column.cells) == 4 for column in more.columns)


def test_a_checkpoint_that_says_nothing(run: Path, caplog) -> None:
    """Weights that are not finite give no answers; a folder that can't be read is left out; the others are asked."""
    from safetensors.torch import load_file, save_file

    broken = run / "checkpoints" / "step-00000030"
    tensors = load_file(broken / "model.safetensors")
    tensors["final_layernorm.weight"][:] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    (run / "checkpoints" / "step-00000010" / "model.safetensors").unlink()
    strip = asyncio.run(film_strip.shoot(run, PROMPTS[2:]))
    assert [column.step for column in strip.columns] == [30, 30]
    assert "inf or nan" in strip.columns[0].cells[0].problem or "finite" in strip.columns[0].cells[0].problem
    assert strip.columns[1].cells[0].problem is None
    assert len(strip.left_out) == 1 and strip.left_out[0].startswith("step-00000010 was left out: ")
    text = film_strip_page.html(strip, "run")
    assert 'class="problem"' in text and "step-00000010 was left out" in text


def test_a_broken_cache_is_no_obstacle(run: Path) -> None:
    for text in ("{", '{"new_tokens": 1, "answers": {}}', '{"new_tokens": 64, "answers": [1]}'):
        (run / "film_strip.json").write_text(text)
        strip = asyncio.run(film_strip.shoot(run, PROMPTS[2:], most=1))
        assert [column.name for column in strip.columns] == ["model"]


def test_few_of_many_checkpoints(tmp_path) -> None:
    for number in range(1, 11):
        folder = tmp_path / "checkpoints" / f"step-{number}"
        folder.mkdir(parents=True)
        (folder / "config.json").touch()
    found = film_strip.checkpoints(tmp_path)
    assert [step for _, step, _ in found] == list(range(1, 11))  # by number, not by name
    assert [step for _, step, _ in film_strip._spread(found, 4)] == [1, 4, 7, 10]
    assert [step for _, step, _ in film_strip._spread(found, 1)] == [10]
    assert film_strip._spread(found, 20) == found


def column(number: int, *answers: tuple[str, tuple[str, ...]]) -> Column:
    return Column(
        f"step-{number}", number, 2.5, f"hash {number}", tuple(Cell(answer, fills) for answer, fills in answers)
    )


def test_the_page_shows_what_changed(run: Path) -> None:
    chat = Prompt(mode="chat", text="<Hi|there>")
    strip = Strip(
        (PROMPTS[0], chat),
        (
            column(10, ("The capital of the is Tokyo.", ("the",)), ("I am\na <model>", ())),
            column(1200, ("The capital of Japan is Tokyo.", ("Japan",)), ("I am\na <model>", ())),
        ),
    )
    text = film_strip_page.html(strip, "a & b")
    assert_needs_no_network(text)
    assert "<title>a &amp; b: film strip</title>" in text
    assert Page(text).tags.count("tr") == 3 and Page(text).tags.count("td") == 4
    cells = re.findall(r"<td.*?</div>", text, re.DOTALL)
    assert "of <u>the</u> is" in cells[0] and "<mark>" not in cells[0]
    assert "of <mark><u>Japan</u></mark> is" in cells[1] and "✓" in cells[1]
    assert "<td class=same>" in cells[3] and "&lt;model&gt;" in cells[3]
    assert "<th>step 1,200<br>" in text and "1 of 1 ✓" in text and "0 of 1 ✓" in text
    lines = film_strip_page.markdown(strip, "a").splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "| prompt | step 10, loss 2.500, 0 of 1 ✓ | step 1,200, loss 2.500, 1 of 1 ✓ |"
    assert table[2].endswith("| The capital of the is Tokyo. | The capital of Japan is Tokyo. ✓ |")
    assert table[3] == r"| chat: \<Hi\|there\> | I am / a \<model\> | 〃 |"
    written = film_strip_page.write(strip, run)
    assert [path.name for path in written] == ["film_strip.html", "film_strip.md"]
    assert all(path.stat().st_size for path in written)


@pytest.mark.parametrize(
    "text, answer, fills, expected",
    [
        ("A [MASK] c", "A b c", ("b",), ["A ", "b", " c"]),
        ("A [MASK] c", "A b c", (" b",), ["A ", "b", " c"]),  # the space before a blank belongs to its fill
        ("[MASK] b [MASK].", "a b c.", ("a", "c"), ["a", " b ", "c", "."]),
        ("No mask", "No mask more", (" more",), ["No mask", " more"]),
        ("A [MASK].", "Something else", ("b",), ["Something else"]),
    ],
)
def test_fills_are_found_in_the_text(text: str, answer: str, fills: tuple[str, ...], expected: list[str]) -> None:
    found = film_strip_page.parts(Prompt(mode="fill", text=text), Cell(answer, fills))
    assert [part for part, _ in found] == expected
    if len(expected) > 1:
        assert [part for part, own in found if own] == [fill.strip() if fill != " more" else fill for fill in fills]


def test_lists_of_prompts(tmp_path) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(
        "- Hello!\n- Der [MASK] ist rot.\n- {mode: chat, text: 你好, wanted: 你好}\n- Hello!\n", encoding="utf-8"
    )
    assert [(prompt.mode, prompt.wanted) for prompt in film_strip.load_prompts(path)] == [
        ("chat", None),
        ("fill", None),
        ("chat", "你好"),
    ]
    other = tmp_path / "prompts.json"
    other.write_text('["Hello!"]')
    assert film_strip.load_prompts(other) == (Prompt(mode="chat", text="Hello!"),)
    for text, words in (
        ("- a\n- {mode: sing, text: b}", "prompt 2: mode"),
        ("- {text: b}", "prompt 1: mode"),
        ("- {mode: chat, text: b, max: 3}", "prompt 1: max"),
        ("- 3", "prompt 1: it"),
        ("a: b", "must be a list"),
        ("[", "not readable YAML"),
    ):
        path.write_text(text)
        with pytest.raises(GLMError, match=words) as caught:
            film_strip.load_prompts(path)
        assert caught.value.kind == "bad_data" and "\n" not in str(caught.value)


# The command


def call(capsys, *arguments: object) -> tuple[int, str, str]:
    try:
        status = command.main([str(argument) for argument in arguments])
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_report_of_a_run_without_a_model(tmp_path, capsys) -> None:
    status, out, err = call(capsys, demo(tmp_path / "run"))
    assert status == 0
    assert out.startswith("60 steps, 0.01 million tokens")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"metrics.jsonl", "training.html", "training.png"}
    assert [line.split(":")[0] for line in err.splitlines()] == ["answers", "held-out", "splits", "film-strip"]


def test_report_of_a_whole_run(run: Path, tmp_path, capsys) -> None:
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("- Hello!\n")
    status, out, err = call(capsys, run, "--prompts", prompts, "--checkpoints", "1")
    assert status == 0, err
    found = json.loads((run / "model" / "evaluation.json").read_text(encoding="utf-8"))
    assert list(found) == ["model", "parameters", "weights_sha256", "examples", "held_out", "training", "splits"]
    assert found["splits"]["mixed"]["documents"] == found["splits"]["mixed"]["blanks"] == 1
    assert "| mixed | " in out and " bits per byte of 12 | 0 of 1 |" in out
    assert found["parameters"] == Config.load(run / "model").parameters()
    assert found["held_out"]["questions"] == 2
    assert found["held_out"]["by_language"] == {"en": [0, 1], "zh": [0, 1]}
    assert {row["question"] for row in found["held_out"]["wrong"]} == {"What?", "什么？"}
    assert found["training"] == read(run / "metrics.jsonl").totals()
    for row in found["examples"]:
        assert f"{row['mode']:5} {row['question']}\n      {row['answer']}\n" in out
    assert "held-out questions answered exactly: 0 of 2 {'en': [0, 1], 'zh': [0, 1]}" in out
    for name in ("training.html", "training.png", "film_strip.html", "film_strip.md"):
        assert f"{run / name}\n" in out and (run / name).is_file()
    assert (run / "model" / "loss.png").read_bytes()[:4] == b"\x89PNG"
    assert (run / "film_strip.md").read_text(encoding="utf-8").count("\n|") == 3

    # One part alone leaves the others as they were.
    status, out, _ = call(capsys, run, "--parts", "held-out")
    assert status == 0 and out.startswith("held-out questions")
    assert json.loads((run / "model" / "evaluation.json").read_text(encoding="utf-8")) == found


def test_mistakes_in_the_arguments_of_report(run: Path, tmp_path, capsys) -> None:
    empty, metrics_only = tmp_path / "empty", demo(tmp_path / "metrics")
    empty.mkdir()
    (tmp_path / "broken").mkdir()
    (run / "held_out.jsonl").write_text('{"question": "a"}\n')
    for arguments, words in (
        ((), "run"),
        ((tmp_path / "none",), "There is no run folder"),
        ((empty,), "has no metrics.jsonl"),
        ((metrics_only, "--parts", "answers"), "has no model yet"),
        ((metrics_only, "--parts", "plot", "film-strip"), "has no checkpoints"),
        ((metrics_only, "--parts", "song"), "invalid choice"),
        ((metrics_only, "--parts", "plot", "--checkpoints", "3"), "film strip"),
        ((metrics_only, "--model", empty), "There is no model in"),
        ((run, "--checkpoints", "0"), "not a whole number from 1 on"),
        ((run, "--prompts", empty / "none.yaml"), "There is no file"),
        ((run, "--parts", "held-out"), "line 1 has no question, answer and lang"),
        ((run, "--nothing"), "unrecognized"),
    ):
        status, out, err = call(capsys, *arguments)
        assert (status, out) == (2, ""), arguments
        assert err.startswith("error: ") and words in err and err.count("\n") == 1, err


def test_report_without_matplotlib_says_so(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, err = call(capsys, demo(tmp_path), "--parts", "plot")
    assert status == 0
    assert "training.html" in out and "training.png" not in out
    assert "training.png was not drawn: matplotlib is not installed" in err


# The peak


def test_the_operations_of_a_step_are_those_that_torch_counts() -> None:
    """With attention written out, as the flop counter knows no fused attention on a CPU."""
    config = Config("tiny", 2, 64, 128, 4, 2048, 256)
    model = GLM(config)
    initialise(model, torch.Generator().manual_seed(1))
    random = numpy.random.default_rng(1)
    rows, length = 3, 96
    targets = numpy.where(random.random((rows, length)) < 0.4, random.integers(0, 2048, (rows, length)), -1)
    document = numpy.ones((rows, length), dtype=numpy.int64)
    ids, positions = random.integers(0, 2048, (rows, length)), numpy.tile(numpy.arange(length), (rows, 1))
    batch = Batch(ids, positions, targets, document, document > 1)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss, count = batch_loss(model, batch)
        loss.backward()
    found = training_flops(config, batch.tokens, count, attended(batch.document))
    assert found == pytest.approx(counter.get_total_flops(), rel=0.01)
    without = training_flops(config, batch.tokens, count, 0)
    assert found - without == 12 * 2 * 64 * rows * length**2


def test_what_attends_to_itself() -> None:
    document = numpy.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    assert attended(document) == 9 + 4 + 36


def test_the_matmul_peak() -> None:
    found = matmul_peak(0.2)
    assert 1e8 < found < 1e17
    left = torch.randn(256, 256)
    with FlopCounterMode(display=False) as counter:
        torch.mm(left, left)
    assert counter.get_total_flops() == 2 * 256**3  # the unit that `measure` counts in


# The progress line

STATE = State(30, 1250, "pretrain", 5.1234, 1042.7, 0.384, 3723.0)


def test_lines() -> None:
    whole = "step 30/1250 pretrain loss 5.123 1043 tokens/s, 38% of the matmul peak, 1:02:03 left"
    assert plain_line(STATE) == whole
    assert plain_line(State(1, 5, "", None, None, None, None)) == "step 1/5"
    assert terminal_line(STATE, 200) == f"[{'.' * 20}]   2% {whole}"
    assert terminal_line(State(5, 10, "all", 2.0, None, None, 7.4), 200) == (
        f"[{'#' * 10}{'.' * 10}]  50% step 5/10 all loss 2.000, 0:07 left"
    )
    for width in (0, 1, 40, 84, 85, 92, 120):
        assert len(terminal_line(STATE, width)) <= max(0, width - 1)
    assert terminal_line(STATE, 86) == whole
    assert terminal_line(State(3, 5, "预训练", None, None, None, None), 13) == "step 3/5 预"


def test_durations() -> None:
    found = [duration(seconds) for seconds in (-3, 0, 59.6, 3599, 3600, 90000, 200000, float("inf"))]
    assert found == ["0:00", "0:00", "1:00", "59:59", "1:00:00", "1 day 1:00:00", "2 days 7:33:20", "?"]


def test_estimates_come_from_the_last_steps() -> None:
    clock = iter([0.0, 2.0, 4.0, *range(10, 10 + 4 * 60, 4)])
    recent = Recent(100, clock=lambda: next(clock))
    first = recent.add(step(1))
    assert (first.loss, first.tokens_per_second, first.seconds_left) == (8.0, 500.0, 99 * 0.5)
    second = recent.add(step(2, loss=None, seconds=1.5, peak_share=0.2))
    assert second.loss == 8.0
    assert second.tokens_per_second == 500 / 2.0
    assert second.peak_share == 0.2
    assert second.seconds_left == pytest.approx(98 * (0.5 + 2.0) / 2)  # between the calls, not the step's own time
    recent.add(step(3, loss=float("nan"), tokens="missing"))
    for number in range(4, 64):
        last = recent.add(step(number, loss=3.0))
    assert last.loss == 3.0
    assert last.seconds_left == pytest.approx(37 * 4.0)
    assert last.tokens_per_second == 500.0


def test_the_line_on_a_terminal_makes_room_for_the_log() -> None:
    main, terminal = pty.openpty()
    logger = logging.getLogger("tests.look")
    with os.fdopen(terminal, "w") as stream:
        handler = logging.StreamHandler(stream)
        logging.getLogger().addHandler(handler)
        try:
            with Line(3, stream=stream) as line:
                line(step(1))
                logger.warning("back to step 0")
                line(step(2))
            logger.warning("done")
        finally:
            logging.getLogger().removeHandler(handler)
        assert handler.filters == []
        stream.flush()
        seen = ""
        while not seen.endswith("done\r\n"):  # a terminal gives its lines one by one
            seen += os.read(main, 10000).decode()
    os.close(main)
    clear = "\r\x1b[K"
    first, second = (f"step {number}/3" for number in (1, 2))
    assert re.fullmatch(
        rf"{re.escape(clear)}[^\r]*{first}[^\r]*{re.escape(clear)}back to step 0\r\n"
        rf"{re.escape(clear)}[^\r]*{second}[^\r]*\r\ndone\r\n",
        seen,
    ), repr(seen)


def test_elsewhere_one_line_in_ten_is_logged(tmp_path, caplog) -> None:
    with (tmp_path / "stderr").open("w") as stream, caplog.at_level(logging.INFO), Line(25, stream=stream) as line:
        for number in range(1, 26):
            line(step(number))
    assert (tmp_path / "stderr").read_text() == ""
    assert [message.split()[1] for message in caplog.messages] == ["10/25", "20/25", "25/25"]
