"""CLUE and FewCLUE, in the files of their repositories (JSON lines under the name .json) or the Hugging Face hub's Parquet.

Labels as numbers are understood only where they mean the same everywhere (AFQMC, BUSTM, CSL: 1 is yes). For CMNLI, OCNLI and
CLUEWSC the hub's own versions disagree; its Parquet files say what theirs mean, which rows.py reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.evaluation.prepare.converter import Converter, by_split
from engine.evaluation.prepare.rows import Row, bad

Rows = Iterator[dict[str, Any]]

_DEV = {"dev": "validation|dev"}
_FEW = {"dev_few_all": "dev_few_all", "dev_0": "dev_0", "test_public": "test_public"}
_YES = {0: "no", 1: "yes"}
_BOOLEAN = {"true": "yes", "false": "no"}
_RELATIONS = {word: word for word in ("entailment", "neutral", "contradiction")}
_IDIOM = "#idiom#"


def pair(row: Row) -> Rows:
    """AFQMC, BUSTM: do two sentences mean the same?"""
    yield {
        "sentence1": row.text("sentence1"),
        "sentence2": row.text("sentence2"),
        "label": row.word("label", words=_YES),
    }


def inference(row: Row) -> Rows:
    """CMNLI, OCNLI."""
    yield {
        "premise": row.text("sentence1"),
        "hypothesis": row.text("sentence2"),
        "label": row.word("label", words=_RELATIONS),
    }


def winograd(row: Row) -> Rows:
    """CLUEWSC2020: does the pronoun mean that name?"""
    target = row.inside("target")
    yield {
        "text": row.text("text"),
        "name": target.text("span1_text"),
        "pronoun": target.text("span2_text"),
        "label": row.word("label", words=_BOOLEAN),
    }


def keywords(row: Row) -> Rows:
    """CSL: are all of these keywords the abstract's own?"""
    yield {
        "abstract": row.text("abst"),
        "keywords": "，".join(row.texts("keyword")),
        "label": row.word("label", words=_YES),
    }


def sentiment(row: Row) -> Rows:
    """EPRSTMT."""
    words = {"Positive": "positive", "Negative": "negative"}
    yield {"sentence": row.text("sentence"), "label": row.word("label", words=words)}


def idiom(row: Row) -> Rows:
    """CHID: which idiom belongs in the gap?"""
    text, candidates = row.text("content"), row.texts("candidates")
    if text.count(_IDIOM) != 1:
        raise bad(f"{row.place}: the field 'content' has {text.count(_IDIOM)} gaps ({_IDIOM}), not one.")
    answer = row.get("answer")
    if type(answer) is not int or not 0 <= answer < len(candidates):
        raise bad(f"{row.place}: the field 'answer' is {answer!r}, not a number from 0 to {len(candidates) - 1}.")
    yield {"text": text.replace(_IDIOM, "[MASK]"), "choices": candidates, "label": answer}


def dialogue(row: Row) -> Rows:
    """C3: a text, or a dialogue line by line, and questions with two to four choices each."""
    passage = "\n".join(row.texts("passage", "context"))
    questions = [row] if row.has("choice") else row.each("questions")
    for question in questions:
        choices = question.texts("choice")
        if len(choices) < 2:
            raise bad(f"{question.place}: the field 'choice' has one choice only.")
        yield {
            "passage": passage,
            "question": question.text("question"),
            "choices": choices,
            "label": question.place_of("answer", among=choices),
        }


def reading(row: Row) -> Rows:
    """CMRC2018, DRCD: as SQuAD is published, one object of articles, paragraphs and questions; or a question a row."""
    if row.has("data"):
        for article in row.each("data"):
            for paragraph in article.each("paragraphs"):
                for question in paragraph.each("qas"):
                    yield _question(paragraph, question)
    elif row.has("qas"):  # CMRC2018's files before they had SQuAD's form
        for question in row.each("qas"):
            yield _question(row, question)
    else:
        yield _question(row, row)


def _question(paragraph: Row, question: Row) -> dict[str, Any]:
    answers = question.get("answers")
    if isinstance(answers, dict):  # the hub
        texts = question.inside("answers").texts("text")
    elif isinstance(answers, list) and answers and isinstance(answers[0], dict):
        texts = [each.text("text") for each in question.each("answers")]
    else:
        texts = question.texts("answers")
    return {
        "context": paragraph.text("context", "context_text"),
        "question": question.text("question", "query_text"),
        "targets": list(dict.fromkeys(texts)),
    }


def _undecided(row: Row) -> bool:
    return row.values.get("label") in ("-", "", None, -1)


_READING = {"dev": "validation|dev|cmrc2018_dev|drcd_dev"}
_C3 = {"dev": "validation|dev|(m-|d-|c3-[dm]-)dev"}

CONVERTERS = (
    Converter("afqmc", "CLUE/afqmc", "CLUE's afqmc_public (dev.json)", by_split(_DEV, pair)),
    Converter(
        "c3",
        "CLUE/c3",
        "one of C3's dialogue and mixed-text files (d-dev.json, m-dev.json), or the hub's clue/c3",
        by_split(_C3, dialogue, lists=("passage", "questions", "id")),
    ),
    Converter("cluewsc", "CLUE/cluewsc", "CLUE's cluewsc2020_public (dev.json)", by_split(_DEV, winograd)),
    Converter(
        "cmnli", "CLUE/cmnli", "CLUE's cmnli_public (dev.json)", by_split(_DEV, inference, unlabelled=_undecided)
    ),
    Converter(
        "cmrc2018",
        "CLUE/cmrc2018",
        "CMRC 2018's cmrc2018_dev.json, or the hub's clue/cmrc2018",
        by_split(_READING, reading),
    ),
    Converter("csl", "CLUE/csl", "CLUE's csl_public (dev.json)", by_split(_DEV, keywords)),
    Converter(
        "drcd",
        "CLUE/drcd",
        "DRCD's DRCD_dev.json (in traditional characters, and they stay so)",
        by_split(_READING, reading),
    ),
    Converter(
        "ocnli", "CLUE/ocnli", "CLUE's ocnli_public (dev.json)", by_split(_DEV, inference, unlabelled=_undecided)
    ),
    Converter("bustm", "CLUE/bustm", "FewCLUE's bustm folder", by_split(_FEW, pair)),
    Converter("chidf", "CLUE/chid-fc", "FewCLUE's chid folder", by_split(_FEW, idiom)),
    Converter("cluewscf", "CLUE/cluewsc-fc", "FewCLUE's cluewsc folder", by_split(_FEW, winograd)),
    Converter("cslf", "CLUE/csl-fc", "FewCLUE's csl folder", by_split(_FEW, keywords)),
    Converter("eprstmt", "CLUE/eprstmt-fc", "FewCLUE's eprstmt folder", by_split(_FEW, sentiment)),
    Converter("ocnlif", "CLUE/ocnli-fc", "FewCLUE's ocnli folder", by_split(_FEW, inference, unlabelled=_undecided)),
)
