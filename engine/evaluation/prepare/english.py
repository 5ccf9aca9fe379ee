"""LAMBADA, GLUE, SuperGLUE's diagnostics and the question sets of the BLOOM suite.

Each in the forms its publishers and the Hugging Face hub have it in: field names differ, and numbers or words as labels. The
numbers that stand for words in GLUE are the same everywhere, so they are known. English choices begin with their blank: behind
"Answer:" that is how a word goes on, and for icetk's vocabulary, which adds one at a text's beginning, it is the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from engine.evaluation.prepare.converter import Converter, by_split
from engine.evaluation.prepare.rows import Row, bad

Rows = Iterator[dict[str, Any]]

VALIDATION = {"validation": "validation|valid|val|dev"}
TEST = {"test": "test"}
_TWO_WAY = {0: "entailment", 1: "not_entailment", "entailment": "entailment", "not_entailment": "not_entailment"}
_THREE_WAY = {0: "entailment", 1: "neutral", 2: "contradiction"} | {
    word: word for word in ("entailment", "neutral", "contradiction")
}
_YES_NO = {0: "no", 1: "yes", "no": "no", "yes": "yes"}


def lambada(row: Row) -> Rows:
    """The last word of a passage is the target."""
    text = row.text("text")
    context, _, word = text.rpartition(" ")
    if not context.strip():
        raise bad(f"{row.place}: the field 'text' is one word: there is nothing before the target.")
    yield {"inputs_pretokenized": context.rstrip(), "targets_pretokenized": [word]}


def cola(row: Row) -> Rows:
    words = {0: "unacceptable", 1: "acceptable", "unacceptable": "unacceptable", "acceptable": "acceptable"}
    yield {"sentence": row.text("sentence"), "label": row.word("label", words=words)}


def mnli(row: Row) -> Rows:
    yield {
        "premise": row.text("premise", "sentence1"),
        "hypothesis": row.text("hypothesis", "sentence2"),
        "label": row.word("gold_label", "label", words=_THREE_WAY),
    }


def qnli(row: Row) -> Rows:
    yield {
        "question": row.text("question"),
        "sentence": row.text("sentence"),
        "label": row.word("label", words=_TWO_WAY),
    }


def wnli(row: Row) -> Rows:
    # Here 1 is entailment, unlike in the other two-way tasks.
    words = {0: "not_entailment", 1: "entailment", "not_entailment": "not_entailment", "entailment": "entailment"}
    yield {
        "sentence1": row.text("sentence1"),
        "sentence2": row.text("sentence2"),
        "label": row.word("label", words=words),
    }


def diagnostic(row: Row) -> Rows:
    """SuperGLUE's axb and axg."""
    yield {
        "premise": row.text("premise", "sentence1"),
        "hypothesis": row.text("hypothesis", "sentence2"),
        "label": row.word("label", words=_TWO_WAY),
    }


def math_qa(row: Row) -> Rows:
    """The choices are one text: "a ) 38 , b ) 27.675 , c ) 30 , d ) data inadequate , e ) none of these"."""
    options = row.text("options")
    parts = re.split(r"(?:^|,\s*)([a-e])\s*\)\s*", options)
    choices = dict(zip(parts[1::2], (text.strip() for text in parts[2::2]), strict=True))
    if list(choices) != list("abcde"[: len(choices)]) or len(choices) < 2 or not all(choices.values()):
        raise bad(f"{row.place}: the field 'options' is no list of a ) to e ): {options[:60]!r}.")
    letters = {letter: letter for letter in choices}
    yield {
        "question": row.text("Problem", "problem"),
        "choices": [f" {choice}" for choice in choices.values()],
        "label": list(choices).index(row.word("correct", words=letters)),
    }


def mc_taco(row: Row) -> Rows:
    yield {
        "sentence": row.text("sentence"),
        "question": row.text("question"),
        "answer": row.text("answer"),
        "category": row.text("category"),
        "targets": [row.word("label", words=_YES_NO)],
    }


def openbook_qa(row: Row) -> Rows:
    if row.has("question_stem"):  # the hub
        question, options = row.text("question_stem"), row.inside("choices")
        letters, choices = options.texts("label"), options.texts("text")
    else:  # AllenAI's JSON lines
        stem = row.inside("question")
        question, options = stem.text("stem"), stem.each("choices")
        letters, choices = [each.text("label") for each in options], [each.text("text") for each in options]
    if len(letters) != len(choices):
        raise bad(f"{row.place}: the field 'choices' has {len(choices)} texts and {len(letters)} labels.")
    yield {
        "question": question,
        "choices": [f" {choice}" for choice in choices],
        "label": row.place_of("answerKey", among=letters),
    }


def pubmed_qa(row: Row) -> Rows:
    """The labelled part, pqa_labeled on the hub, ori_pqal.json as published: one object of all questions by their number."""
    known = {"yes": "yes", "no": "no", "maybe": "maybe"}
    if row.has("final_decision"):
        contexts = row.inside("context").texts("contexts")
        yield {
            "context": " ".join(contexts),
            "question": row.text("question"),
            "label": row.word("final_decision", words=known),
        }
        return
    for number in row.values:
        question = row.inside(number)
        yield {
            "context": " ".join(question.texts("CONTEXTS")),
            "question": question.text("QUESTION"),
            "label": question.word("final_decision", words=known),
        }


CONVERTERS = (
    Converter(
        "lambada",
        "lambada/lambada",
        "JSON lines or Parquet with \"text\" (OpenAI's lambada_test.jsonl, or the hub's lambada), test and validation",
        by_split(TEST | VALIDATION | {"test": "(lambada_)?test|original"}, lambada),
    ),
    Converter(
        "cola",
        "bloom/glue_cola",
        "GLUE's CoLA/dev.tsv, or the hub's glue/cola validation",
        by_split(VALIDATION, cola, headerless=("source", "label", "judgement", "sentence")),
    ),
    Converter(
        "mnli",
        "bloom/glue_mnli",
        "GLUE's dev_matched.tsv and dev_mismatched.tsv, or the hub's glue/mnli",
        by_split(
            {f"validation_{kind}": f"(validation|dev)_{kind}" for kind in ("matched", "mismatched")},
            mnli,
            unlabelled=lambda row: row.values.get("gold_label", row.values.get("label")) in ("-", -1),
        ),
    ),
    Converter(
        "qnli", "bloom/glue_qnli", "GLUE's QNLI/dev.tsv, or the hub's glue/qnli validation", by_split(VALIDATION, qnli)
    ),
    Converter(
        "wnli", "bloom/glue_wnli", "GLUE's WNLI/dev.tsv, or the hub's glue/wnli validation", by_split(VALIDATION, wnli)
    ),
    Converter(
        "math-qa",
        "bloom/math_qa",
        "MathQA's test.json and dev.json, or the hub's math_qa",
        by_split(TEST | VALIDATION, math_qa),
    ),
    Converter(
        "mc-taco",
        "bloom/mc_taco",
        "MC-TACO's test_9442.tsv and dev_3783.tsv, or the hub's mc_taco",
        by_split(
            {"validation": "(validation|dev)(_3783)?", "test": "test(_9442)?"},
            mc_taco,
            headerless=("sentence", "question", "answer", "label", "category"),
        ),
    ),
    Converter(
        "openbook-qa",
        "bloom/openbookqa_main",
        "OpenBookQA's Main/test.jsonl and dev.jsonl, or the hub's openbookqa/main",
        by_split(TEST | VALIDATION, openbook_qa),
    ),
    Converter(
        "pubmed-qa",
        "bloom/pubmed_qa_pqa_labeled",
        "PubMedQA's ori_pqal.json, or the hub's pubmed_qa/pqa_labeled",
        by_split({"train": "train|ori_pqal"}, pubmed_qa),
    ),
    Converter(
        "axb",
        "bloom/super_glue_axb",
        "SuperGLUE's AX-b.jsonl, or the hub's super_glue/axb",
        by_split({"test": "test|ax-b"}, diagnostic),
    ),
    Converter(
        "axg",
        "bloom/super_glue_axg",
        "SuperGLUE's AX-g.jsonl, or the hub's super_glue/axg",
        by_split({"test": "test|ax-g"}, diagnostic),
    ),
)
