"""`python -m engine generate`, as a person runs it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from engine.glm import blanks
from engine.glm.tokenizer import Tokenizer
from engine.serving.replica import PACKAGE_ROOT
from tests.command_line import call
from tests.lively import make_lively_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, vocabulary_file: Path) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("lively"), vocabulary_file)


def run(
    *arguments: str, model: Path | None = None, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "engine", *arguments]
    if model is not None:
        command += ["--model", str(model), "--threads", "1"]
    return subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=180,
        cwd=PACKAGE_ROOT,
        env=os.environ | environment,
    )


def generate(folder: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return run("generate", *arguments, model=folder, stdin=stdin)


def test_help_and_unknown_commands() -> None:
    found = run("--help")
    assert found.returncode == 0 and "generate" in found.stdout and "train" in found.stdout
    assert call("engine").returncode == 2
    found = call("engine", "gnerate")
    assert found.returncode == 2 and "gnerate" in found.stderr and "generate" in found.stderr
    found = call("engine", "generate", "--help")
    assert found.returncode == 0
    for option in ("--input-source", "--output-path", "--max-new-tokens", "--out-seq-length", "--min-gen-length", "--top-k",
                   "--top-p", "--temperature", "--seed", "--with-id", "--model", "--chat", "--json"):  # fmt: skip
        assert option in found.stdout


def test_a_text_with_two_blanks(folder: Path) -> None:
    text = "The [MASK] is [sMASK]."
    found = generate(folder, "--input-source", text, "--max-new-tokens", "5", "--seed", "3", "--json")
    assert found.returncode == 0, found.stderr
    [line] = found.stdout.splitlines()
    record = json.loads(line)
    assert set(record) == {"input", "text", "blanks", "new_tokens", "tokens_per_second", "seed", "model"}
    assert record["input"] == text and record["seed"] == 3 and record["model"] == "lively"
    assert record["text"] == "The {} is {}.".format(*record["blanks"])
    plain = generate(folder, "--input-source", text, "--max-new-tokens", "5", "--seed", "3")
    assert plain.stdout == record["text"] + "\n" and plain.stderr == ""


def test_the_most_confident_first(folder: Path, tmp_path: Path) -> None:
    """More blanks at a time than the slots and the queue of as many plain lines have room for."""
    texts = ["a [MASK] b [MASK] c [MASK] d [MASK] e [MASK]"] * 12
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    options = (
        "--input-source",
        str(tmp_path / "texts.txt"),
        "--json",
        "--max-new-tokens",
        "3",
        "--seed",
        "4",
        "--slots",
        "2",
    )
    found = generate(folder, *options, "--order", "confident")
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    left = json.loads(generate(folder, *options).stdout.splitlines()[0])
    for row in rows:
        first, second, third, fourth, fifth = row["blanks"]
        assert row["text"] == f"a {first} b {second} c {third} d {fourth} e {fifth}"
        assert row["text"] == rows[0]["text"] and row["new_tokens"] > sum(range(1, 6))
    assert rows[0]["text"] != left["text"]


def test_a_file_keeps_its_order_and_loses_no_line(folder: Path, tmp_path: Path) -> None:
    lines = [f"Line {number} says [{'g' * (number % 2)}MASK]" for number in range(40)]
    lines[7] = "A [XMASK] is no mask"
    lines[20] = "word " * 300
    source, out = tmp_path / "in.txt", tmp_path / "results" / "out.jsonl"
    source.write_text("\n".join([*lines[:3], "", *lines[3:]]) + "\n", encoding="utf-8")
    found = generate(
        folder,
        "--input-source",
        str(source),
        "--max-new-tokens",
        "6",
        "--seed",
        "1",
        "--json",
        "--output-path",
        str(out),
    )
    assert found.returncode == 1  # something failed
    records = [json.loads(line) for line in found.stdout.splitlines()]
    assert [record["input"] for record in records] == lines
    assert {number: record["error"]["kind"] for number, record in enumerate(records) if "error" in record} == {
        7: "unknown_mask",
        20: "prompt_too_long",
    }
    assert out.read_text(encoding="utf-8") == found.stdout
    alone = generate(folder, "--input-source", lines[30], "--max-new-tokens", "6", "--seed", "1")
    assert alone.stdout == records[30]["text"] + "\n"


def test_ids_name_the_outputs(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("first\tHello [MASK]\nno id here\n../evil\tHello\nlast one\tBye [MASK]\n", encoding="utf-8")
    out = tmp_path / "out"
    found = generate(
        folder,
        "--input-source",
        str(source),
        "--max-new-tokens",
        "4",
        "--with-id",
        "--seed",
        "1",
        "--output-path",
        str(out),
    )
    assert found.returncode == 1 and "Input 2 must be an id" in found.stderr and "Input 3" in found.stderr
    shown = dict(line.split("\t") for line in found.stdout.splitlines())
    assert set(shown) == {"first", "last one"}
    assert {path.name for path in out.iterdir()} == {"first.txt", "last one.txt", "00002.txt", "00003.txt"}
    assert (out / "first.txt").read_text(encoding="utf-8") == shown["first"] + "\n"
    assert not (tmp_path / "evil.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--temperature", "hot"), "--temperature"),
        (("--temperature", "-1"), "temperature must be from 0"),
        (("--input-source", "missing.txt"), "There is no file missing.txt"),
        (("--input-source", " "), "--input-source is empty"),
        (("--input-source", "A [MUSK] and a [ MASK ]"), "[ MASK ] is not a mask"),
        (("--input-source", "One two three four", "--out-seq-length", "4"), "no room for an answer in a total of 4"),
        (("--input-source", "word " * 300), "tokens; the model takes 255"),
        (("--input-source", "x", "--slots", "0"), "--slots"),
        (("--nonsense",), "--nonsense"),
        (("--input-source", "x", "--order", "right"), "--order"),
        (("--input-source", "x", "--order", "confident", "--chat"), "--order is for texts"),
        (("--input-source", "x", "--order", "confident", "--num-beams", "2"), "Beam search fills from left to right"),
        (("--input-source", "[MASK]" * 17, "--order", "confident"), "takes 16 blanks; the text has 17"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_a_sentence(folder: Path, arguments: tuple[str, ...], words: str) -> None:
    found = call("engine", "generate", *arguments, "--model", folder, "--threads", 1)
    assert found.returncode == 2 and words in found.stderr and found.stdout == "" and "Traceback" not in found.stderr


def test_a_model_that_is_none(tmp_path: Path) -> None:
    found = call("engine", "generate", "--input-source", "Hello", "--model", tmp_path / "nothing")
    assert found.returncode == 2 and "There is no model" in found.stderr and "Traceback" not in found.stderr


def test_total_length(folder: Path) -> None:
    prompt = len(blanks.parse("One [MASK]", Tokenizer.load(folder)).ids) + 1
    found = generate(
        folder, "--input-source", "One [MASK]", "--out-seq-length", str(prompt + 7), "--min-gen-length", "50", "--json"
    )
    assert json.loads(found.stdout)["new_tokens"] == 7


def test_a_conversation_remembers(folder: Path) -> None:
    options = ("--chat", "--max-new-tokens", "5", "--seed", "4", "--json")
    together = generate(folder, *options, stdin="Hello\nAnd you?\nclear\nAnd you?\n\nstop\nnot read\n")
    assert together.returncode == 0, together.stderr
    first, second, third = (json.loads(line) for line in together.stdout.splitlines())
    assert [record["input"] for record in (first, second, third)] == ["Hello", "And you?", "And you?"]
    alone = json.loads(generate(folder, *options, "--input-source", "And you?").stdout)
    assert third["text"] == alone["text"] != second["text"]
    assert first["blanks"] == [first["text"]]


def test_colour_only_for_people(folder: Path) -> None:
    """On a terminal a filled blank is coloured, unless NO_COLOR is set."""
    for no_color in ("", "1"):
        ours, theirs = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, "-m", "engine", "generate", "--model", str(folder), "--threads", "1", "--seed", "1",
             "--max-new-tokens", "3", "--min-gen-length", "3", "--input-source", "The [MASK] is"],
            stdin=subprocess.DEVNULL, stdout=theirs, cwd=PACKAGE_ROOT, env=os.environ | {"NO_COLOR": no_color},
        )  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while block := os.read(ours, 4096):
                shown += block
        except OSError:  # how a pseudo terminal says that the other side is closed
            pass
        os.close(ours)
        assert child.wait(60) == 0
        assert (b"The \x1b[32;4m" in shown) == (not no_color), shown
        assert b" is" in shown


def test_a_reader_that_leaves(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("Hello [MASK]\n" * 2000, encoding="utf-8")
    child = subprocess.Popen(
        [sys.executable, "-m", "engine", "generate", "--model", str(folder), "--threads", "1", "--input-source", str(source)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=PACKAGE_ROOT,
    )  # fmt: skip
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline().startswith("Hello")
    child.stdout.close()
    assert "Traceback" not in child.stderr.read()
    assert child.wait(60) == 0
