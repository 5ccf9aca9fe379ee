"""Rows kept away from training: chosen by their text alone, gone from every source that has them, measured afterwards."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest

from engine.errors import GLMError
from engine.glm.config import EMBEDDED_FOLDER
from engine.glm.tokenizer import Tokenizer
from engine.training.data import load_source
from engine.training.measures import measure
from engine.training.recipe import Split
from engine.training.row_files import RowFile
from engine.training.source_options import SourceOptions
from engine.training.sources import find_source
from engine.training.splits import make_splits, read_splits, whole_text
from engine.training.token_writer import TokenWriter

SENTENCES = [f"The {animal} lives in house number {n}." for n, animal in enumerate(["cat", "dog", "cow", "hen"] * 5)]
POEMS = [f"题{n}\n一去{n}里，烟村四五家。\n亭台{n}座，八九十枝花。" for n in range(12)]


def write(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    cloze = []
    for text in SENTENCES:
        words = text.split()
        for place in (1, 3):  # the same sentence twice, with another word missing
            question = " ".join("[MASK]" if number == place else word for number, word in enumerate(words))
            cloze.append([{"role": "user", "content": question}, {"role": "assistant", "content": words[place]}])
    write(tmp_path / "cloze.jsonl", [{"messages": messages} for messages in cloze])
    write(tmp_path / "pairs.jsonl", [{"text": f"Before. {text} 之后。"} for text in SENTENCES])
    write(tmp_path / "poems.jsonl", [{"text": poem} for poem in POEMS])
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(EMBEDDED_FOLDER)


CLOZE = {"cloze": Split(source="cloze", count=4, without=["pairs"])}
VERSES = {"verses": Split(source="poems", count=3, keep_documents=True, keep=["一去7里"])}


def test_the_text_of_a_row() -> None:
    assert whole_text({"text": "a"}) == "a"
    assert whole_text({"text": "[MASK] b [sMASK].", "answers": ["a", "c"]}) == "a b c."
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert whole_text({"messages": messages}) == "Hi\nHello"


def test_a_held_out_text_is_in_no_source(data: Path, tokenizer: Tokenizer) -> None:
    splits = make_splits(data, CLOZE, {}, seed=1)
    held = {whole_text(row) for row in splits.rows["cloze"]}
    assert len(splits.rows["cloze"]) == 4 and held <= set(SENTENCES)
    trained = load_source(data, "cloze", {}, tokenizer, frozenset(), left=splits.left["cloze"]).rows
    assert {whole_text(row) for row in trained} == set(SENTENCES) - held
    pairs = load_source(data, "pairs", {}, tokenizer, frozenset(), left=splits.left["pairs"])
    assert len(pairs.rows) == len(SENTENCES) - len(held)
    texts = [tokenizer.decode([int(token) for token in row["ids"]]) for row in pairs.rows]
    assert not any(sentence in text for sentence in held for text in texts)


def test_tokenised_sources_lose_the_same_rows(data: Path, tokenizer: Tokenizer) -> None:
    left = make_splits(data, CLOZE, {}, seed=1).left["pairs"]
    with TokenWriter(data / "tokens", tokenizer, 1) as writer:
        writer.write("pairs", RowFile(find_source(data, "pairs")), SourceOptions())
    for options in ({}, {"cap": 5}):
        read = load_source(data, "pairs", options, tokenizer, frozenset(), left=left)
        mapped = load_source(data, "pairs", options, tokenizer, frozenset(), tokens=data / "tokens", left=left)
        assert list(map(int, mapped.lines)) == list(read.lines)


def test_the_choice_is_the_texts_own(data: Path) -> None:
    """Neither the order of the file nor another row changes it; another seed does."""
    first = make_splits(data, CLOZE, {}, seed=1)
    rows = [json.loads(line) for line in (data / "cloze.jsonl").read_text().splitlines()]
    write(data / "cloze.jsonl", rows[::-1])
    again = make_splits(data, CLOZE, {}, seed=1)
    texts = {whole_text(row) for row in first.rows["cloze"]}
    assert {whole_text(row) for row in again.rows["cloze"]} == texts
    assert {whole_text(row) for row in make_splits(data, CLOZE, {}, seed=2).rows["cloze"]} != texts


def test_questions_go_and_their_documents_stay(data: Path, tokenizer: Tokenizer) -> None:
    options = {"poems": {"split": "couplets"}}
    splits = make_splits(data, VERSES, options, seed=1)
    assert len(splits.rows["verses"]) == 3 * 2 * 3  # of each poem's two couplets two blanks and a question
    held = {row["text"].replace("[MASK]", row["answers"][0]) for row in splits.rows["verses"] if "text" in row}
    source = load_source(data, "poems", options["poems"], tokenizer, frozenset(), left=splits.left["poems"])
    documents = [row for row in source.rows if "ids" in row]
    assert len(documents) == len(POEMS)
    asked = [whole_text(row) for row in source.rows if "answers" in row]
    assert asked and not set(asked) & held and any("一去7里" in text for text in asked)
    assert len(source.rows) == len(POEMS) + (len(POEMS) - 3) * 6


def test_files_are_not_replaced_by_others(data: Path) -> None:
    splits = make_splits(data, CLOZE, {}, seed=1)
    folder = data / "splits"
    splits.write(folder)
    splits.write(folder)
    assert read_splits(folder) == splits.rows
    assert make_splits(data, CLOZE, {}, seed=1).digest() == splits.digest()
    with pytest.raises(GLMError, match="a new run needs a new folder"):
        make_splits(data, CLOZE, {}, seed=2).write(folder)


def test_a_split_that_is_too_large_is_named(data: Path) -> None:
    with pytest.raises(GLMError) as caught:
        make_splits(data, {"much": Split(source="poems", count=13)}, {}, seed=1)
    assert caught.value.kind == "bad_data" and caught.value.field == "splits.much.count" and caught.value.limit == 12


def test_measures_of_the_embedded_model() -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    rows = {
        "mixed": [
            {"text": "The capital of [MASK] is Tokyo.", "answers": ["Japan"]},
            {"text": "The capital of [MASK] is Tokyo.", "answers": ["Peru"]},
            {"messages": [*question, {"role": "assistant", "content": "the capital of France is Paris"}]},
        ],
        "text": [{"text": "Paris is the capital of France. " * 40}, {"text": "长城在中国。"}],
        "words": [
            {"messages": [*question, {"role": "assistant", "content": "Paris."}], "wanted": "paris"},
            {"messages": [*question, {"role": "assistant", "content": "Paris."}]},
        ],
        "likely": [{"text": "The capital of [MASK] is Tokyo.", "answers": ["Japan"]}],
    }
    found = asyncio.run(measure(EMBEDDED_FOLDER, rows))
    assert found["mixed"] | {"perplexity": 0} == {
        "blanks": 2, "blanks_right": 1, "questions": 1, "questions_right": 1, "perplexity": 0
    }  # fmt: skip
    assert (found["words"]["questions"], found["words"]["questions_right"]) == (
        2,
        1,
    )  # the second is not the whole answer
    assert found["text"]["documents"] == 2
    assert found["text"]["bytes"] == sum(len(row["text"].encode()) for row in rows["text"])
    assert 0 < found["text"]["bits_per_byte"] < 4
    assert found["likely"]["perplexity"] < 2 < found["mixed"]["perplexity"]
    assert math.isfinite(found["mixed"]["perplexity"])
