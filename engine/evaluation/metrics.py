"""What is measured, by name. Percent, but for PPL and BPB. Torch-free.

Accuracy, EM, F1, PPL, Precision, Recall and F1_mul are GLM-130B's, number for number: EM and F1 are SQuAD's (lower case, no
English articles or punctuation, words between blanks; the best of all right answers counts), PPL is by blank-separated words,
Precision, Recall and F1_mul average over all rows, which makes each of them the accuracy. Ours: F1_binary (of choice 1),
F1_characters (Chinese characters and Latin words count as words, as in CMRC 2018), PPL_tokens, BPB (bits a byte of UTF-8).
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.errors import GLMError
from engine.evaluation.record import Record
from engine.evaluation.rows import Row
from engine.glm.tokenizer import Tokenizer

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)
_HAN_OR_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W\u3400-\u9fff\uf900-\ufaff]+")
_MOST = 20.0  # of a perplexity's logarithm, as in GLM-130B

RowScore = Callable[[Record, Row, Tokenizer], float]
FileScore = Callable[[Sequence[Record], Sequence[Row]], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """Either the mean of a score of each row, from 0 to 1 and then in percent, or a number of all rows together."""

    types: tuple[str, ...]  # of tasks that it is for
    of_row: RowScore | None = None
    of_file: FileScore | None = None


def normalized(text: str) -> str:
    """Lower case, without punctuation, English articles and superfluous blanks (SQuAD's evaluation script)."""
    plain = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(prediction: str, target: str) -> float:
    return float(normalized(prediction) == normalized(target))


def word_f1(prediction: str, target: str) -> float:
    return _f1(normalized(prediction).split(), normalized(target).split())


def character_f1(prediction: str, target: str) -> float:
    return _f1(_HAN_OR_WORD.findall(prediction.lower()), _HAN_OR_WORD.findall(target.lower()))


def best_of_targets(score: Callable[[str, str], float]) -> RowScore:
    """The answer's best score against any right one, as texts made of ids on both sides; 0 without right ones."""

    def of_row(record: Record, row: Row, tokenizer: Tokenizer) -> float:
        assert record.text is not None
        return max((score(record.text, tokenizer.decode(target)) for target in row.targets), default=0.0)

    return of_row


def right_choice(record: Record, row: Row, tokenizer: Tokenizer) -> float:
    return float(record.choice == row.label)


def binary_f1(records: Sequence[Record], rows: Sequence[Row]) -> float:
    chosen = sum(record.choice == 1 for record in records)
    real = sum(row.label == 1 for row in rows)
    both = sum(record.choice == row.label == 1 for record, row in zip(records, rows, strict=True))
    return 200.0 * both / (chosen + real) if both else 0.0


def word_perplexity(records: Sequence[Record], rows: Sequence[Row]) -> float:
    return _perplexity(records, sum(record.words for record in records))


def token_perplexity(records: Sequence[Record], rows: Sequence[Row]) -> float:
    return _perplexity(records, sum(record.tokens for record in records))


def bits_a_byte(records: Sequence[Record], rows: Sequence[Row]) -> float:
    size = sum(record.bytes for record in records)
    return total_loss(records) / size / math.log(2) if size else math.nan


def total_loss(records: Sequence[Record]) -> float:
    """In nats."""
    return math.fsum(record.loss for record in records)


def _perplexity(records: Sequence[Record], count: int) -> float:
    return math.exp(min(_MOST, total_loss(records) / count)) if count else math.nan


def _f1(prediction: Sequence[str], target: Sequence[str]) -> float:
    same = sum((Counter(prediction) & Counter(target)).values())
    if not same:
        return 0.0
    precision, recall = same / len(prediction), same / len(target)
    return 2 * precision * recall / (precision + recall)


METRICS: dict[str, Metric] = {
    "Accuracy": Metric(("mul",), of_row=right_choice),
    "Precision": Metric(("mul",), of_row=right_choice),
    "Recall": Metric(("mul",), of_row=right_choice),
    "F1_mul": Metric(("mul",), of_row=right_choice),
    "F1_binary": Metric(("mul",), of_file=binary_f1),
    "EM": Metric(("gen",), of_row=best_of_targets(exact_match)),
    "F1": Metric(("gen",), of_row=best_of_targets(word_f1)),
    "F1_characters": Metric(("gen",), of_row=best_of_targets(character_f1)),
    "PPL": Metric(("lm",), of_file=word_perplexity),
    "PPL_tokens": Metric(("lm",), of_file=token_perplexity),
    "BPB": Metric(("lm",), of_file=bits_a_byte),
}


def find_metric(name: str, kind: str) -> Metric:
    """GLMError bad_data for a name that there is none of, or that is not for this type of task."""
    metric = METRICS.get(name)
    if metric is None or kind not in metric.types:
        known = ", ".join(name for name, metric in METRICS.items() if kind in metric.types)
        raise GLMError("bad_data", f"{name!r} is no metric of {kind} tasks; those are {known}.", field="metrics")
    return metric
