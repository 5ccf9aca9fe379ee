"""The table of what quantising costs: perplexity, answers, and the command that prints it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from engine.errors import GLMError
from engine.glm import checkpoint
from engine.glm.config import Config
from engine.glm.eight_bit import has_onednn
from engine.glm.quantize_folder import quantize_folder
from engine.glm.tokenizer import Tokenizer
from engine.training.quality import compare, perplexity
from tests.command_line import call, run

ROOT = Path(__file__).resolve().parent.parent
TEXT = "The capital of France is Paris. 床前明月光，疑是地上霜。\n" * 20


def test_perplexity_is_that_of_each_token_given_those_before_it(tiny_model_folder: Path) -> None:
    """Token by token, each from a forward pass of its own; a long text window by window."""
    model, tokenizer = checkpoint.load(tiny_model_folder), Tokenizer.load(tiny_model_folder)
    window = model.config.positions - 2
    ids = tokenizer.encode_plain(TEXT)[: window + 9]
    rest = ids[window:]
    total = 0.0
    for count, token in enumerate(rest):
        read = torch.tensor([[tokenizer.gmask, tokenizer.sop, *rest[:count]]])
        with torch.inference_mode():
            last = model(read, torch.arange(count + 2)[None], torch.tensor([1]))[0, -1]
        total += float(F.cross_entropy(last, torch.tensor(token)))
    assert perplexity(model, rest, tokenizer) == pytest.approx(math.exp(total / 9), rel=1e-4)
    total += window * math.log(perplexity(model, ids[:window], tokenizer))
    assert perplexity(model, ids, tokenizer) == pytest.approx(math.exp(total / len(ids)), rel=1e-4)


def test_questions_are_asked_of_the_quantised_model(embedded: Path) -> None:
    questions = [
        {"question": "What is the capital of France?", "answer": "the capital of France is Paris"},
        {"question": "What is the capital of France?", "answer": "The capital of France is Lyon."},
        {"text": "The capital of [MASK] is Tokyo.", "answers": ["Japan"]},
        {"text": "Paris is the capital of [MASK]. The capital of Japan is [MASK].", "answers": ["France", "Tokyo"]},
        {"text": "The capital of [MASK] is Tokyo.", "answers": ["China"]},
    ]
    [found] = compare(embedded, ["int8"], ["bf16"], None, questions)
    assert (found.weights, found.precision, found.right, found.perplexity) == ("int8", "bf16", 3, None)
    assert found.agreement is None


def test_agreement_is_with_the_first_form(embedded: Path) -> None:
    text = "The capital of France is Paris. 法国的首都是巴黎。" * 8
    kinds = [None, "int8", "int4", "w8a8"] if has_onednn(torch.device("cpu")) else [None, "int8", "int4"]
    found = {one.weights: one.agreement for one in compare(embedded, kinds, ["fp32"], text, [])}
    assert found["plain"] == 1
    assert all(0.8 < agreement <= 1 for agreement in found.values())
    assert found["int4"] < found["plain"]


@pytest.mark.parametrize(
    "row, words",
    [
        ({"question": "Who?"}, "neither question and answer"),
        ("Who?", "neither question and answer"),
        ({"text": "[MASK] and [MASK].", "answers": ["one"]}, "1 answers for 2 blanks"),
        ({"text": "[MASK] and [MASK].", "answers": [1, 2]}, "neither question and answer"),
    ],
)
def test_rows_that_are_no_questions(tiny_model_folder: Path, row: object, words: str) -> None:
    with pytest.raises(GLMError, match=f"Row 2 of the questions.*{words}") as caught:
        next(compare(tiny_model_folder, [None], ["fp32"], None, [{"question": "a", "answer": "b"}, row]))
    assert caught.value.kind == "bad_data"


def test_the_command_prints_a_table(tiny_model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "questions.jsonl").write_text(json.dumps({"text": "A [MASK].", "answers": ["B"]}) + "\n")
    files = ["--text", tmp_path / "text.txt", "--questions", tmp_path / "questions.jsonl"]
    ran = run("engine", "compare", "--model", tiny_model_folder, *files, "--kinds", "int4-g32")
    assert ran.returncode == 0, ran.stderr
    head, line, plain, quantised = ([cell.strip() for cell in row.split("|")[1:-1]] for row in ran.stdout.splitlines())
    assert len(head) == len(line) == len(plain) == len(quantised) == 6
    assert (plain[:2], quantised[:2]) == (["plain", "fp32"], ["int4-g32", "fp32"])
    assert plain[5] in ("0 of 1", "1 of 1") and plain[3] != quantised[3]
    assert plain[4] == "100.0%" and 0 < float(quantised[4].rstrip("%")) <= 100
    model, tokenizer = checkpoint.load(tiny_model_folder), Tokenizer.load(tiny_model_folder)
    assert plain[3] == f"{perplexity(model, tokenizer.encode_plain(TEXT), tokenizer):.4g}"


def test_mistakes_in_the_commands_arguments(tiny_model_folder: Path, tmp_path: Path) -> None:
    text, wrong, empty = tmp_path / "text.txt", tmp_path / "wrong.jsonl", tmp_path / "empty"
    text.write_text("Some words.")
    wrong.write_text('{"question": "a", "answer": "b"}\n{"question"\n')
    empty.write_text("")
    model = ["--model", tiny_model_folder]
    for arguments, words in (
        (model, "Give --text, --questions, or both"),
        (["--model", tmp_path, "--text", text], "There is no model in"),
        ([*model, "--text", tmp_path / "none.txt"], "none.txt: No such file"),
        ([*model, "--questions", wrong], "line 2 is not JSON"),
        ([*model, "--questions", empty], "has no questions"),
        ([*model, "--text", empty], "less than two tokens"),
        ([*model, "--text", text, "--kinds", "int4-g128"], "64 columns can't be quantised"),
    ):
        ran = call("engine", "compare", *arguments)
        assert ran.returncode == 2 and not ran.stdout
        assert ran.stderr.startswith("error: ") and words in ran.stderr
        assert ran.stderr.count("\n") == 1
    ran = call("engine", "compare", *model, "--text", text, "--kinds", "int5")
    assert ran.returncode == 2 and "invalid choice" in ran.stderr


def test_a_quantised_folder_is_measured_as_it_is(tiny_model_folder: Path, tmp_path: Path) -> None:
    stored = quantize_folder(tiny_model_folder, tmp_path / "int8", "int8").folder
    assert Config.load(stored).quantization is not None
    [of_stored] = compare(stored, [None], ["fp32"], TEXT, [])
    [of_plain] = compare(tiny_model_folder, ["int8"], ["fp32"], TEXT, [])
    assert of_stored == of_plain and of_stored.right is None
