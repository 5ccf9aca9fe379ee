"""MMLU: 57 subjects in 4 groups, each question behind five solved ones of its subject, in the form of GLM-130B's paper (C.6).

SOURCE is the folder of the published archive, with dev/SUBJECT_dev.csv and test/SUBJECT_test.csv, or a folder of Parquet or JSON
lines files named by split (the hub's cais/mmlu, whose rows name their subject) or by subject. Without a dev split questions stand
alone, and a note says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import GLMError
from engine.evaluation.prepare.converter import Converter, Made, split_of
from engine.evaluation.prepare.rows import ENDINGS, Row, bad, ending, read

_SUBJECTS = {
    "stem": """abstract_algebra anatomy astronomy college_biology college_chemistry college_computer_science
        college_mathematics college_physics computer_security conceptual_physics electrical_engineering
        elementary_mathematics high_school_biology high_school_chemistry high_school_computer_science
        high_school_mathematics high_school_physics high_school_statistics machine_learning""",
    "social_sciences": """econometrics high_school_geography high_school_government_and_politics
        high_school_macroeconomics high_school_microeconomics high_school_psychology human_sexuality
        professional_psychology public_relations security_studies sociology us_foreign_policy""",
    "humanities": """formal_logic high_school_european_history high_school_us_history high_school_world_history
        international_law jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory
        professional_law world_religions""",
    "other": """business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing
        medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology""",
}
GROUPS = {group: tuple(subjects.split()) for group, subjects in _SUBJECTS.items()}
SHOTS = 5
_GROUP_OF = {subject: group for group, subjects in GROUPS.items() for subject in subjects}
_LETTERS = "ABCD"
_COLUMNS = ("question", *_LETTERS, "answer")


@dataclass(frozen=True, slots=True)
class Question:
    subject: str
    split: str
    text: str
    choices: tuple[str, ...]
    answer: str  # a letter

    def asked(self) -> str:
        choices = " ".join(f"({letter}) {choice}" for letter, choice in zip(_LETTERS, self.choices, strict=True))
        return f"{self.text}\n{choices}\nAnswer: ("

    def solved(self) -> str:
        return f"{self.asked()}{self.answer}) {self.choices[_LETTERS.index(self.answer)]}"


def make(source: Path, notes: list[str]) -> Made:
    """Of each subject a file GROUP/SUBJECT.jsonl with `shots`, `question`, the choices as A to D and `answer`."""
    solved: dict[str, list[Question]] = {}
    asked: dict[str, list[Question]] = {}
    for question in _questions(source):
        if question.split == "dev":
            solved.setdefault(question.subject, []).append(question)
        else:
            asked.setdefault(question.subject, []).append(question)
    if few := sorted(subject for subject in asked if len(solved.get(subject, ())) < SHOTS):
        shown = ", ".join(few[:5]) + (", …" if len(few) > 5 else "")
        notes.append(
            f"Fewer than {SHOTS} solved questions of the dev split for {len(few)} subjects ({shown}): not {SHOTS}-shot."
        )
    if missing := len(_GROUP_OF) - len(asked):
        notes.append(f"{missing} of the {len(_GROUP_OF)} subjects are not in the source.")
    for subject, questions in sorted(asked.items()):
        examples = solved.get(subject, ())[:SHOTS]
        head = f"The following are multiple choice questions about {subject.replace('_', ' ')}.\n\n"
        shots = head + "".join(f"{example.solved()}\n\n" for example in examples)
        for question in questions:
            yield f"{_GROUP_OF[subject]}/{subject}.jsonl", _row(shots, question)


def _row(shots: str, question: Question) -> dict[str, Any]:
    return {
        "shots": shots,
        "question": question.text,
        **dict(zip(_LETTERS, question.choices, strict=True)),
        "answer": question.answer,
    }


def _questions(source: Path) -> Iterator[Question]:
    if not source.exists():
        raise GLMError("bad_request", f"There is no file or folder {source}.", field="source")
    files = sorted(source.rglob("*")) if source.is_dir() else [source]
    found = False
    for path in files:
        if not path.is_file() or ending(path) is None:
            continue
        subject, split = _named(path)
        if split is None:
            continue
        for row in read(path, headerless=_COLUMNS):
            found = True
            yield _question(row, subject, split)
    if not found:
        raise bad(
            f"{source} holds no questions: there must be files of the dev and test splits, or named by subject, ending in "
            f"{', '.join(ENDINGS)}."
        )


def _named(path: Path) -> tuple[str | None, str | None]:
    """(subject, split) as the file's name or its folder tells. Split None: validation or training questions, not used."""
    name = split_of(path).lower()
    for ending_, split in (("_test", "test"), ("_dev", "dev"), ("_val", None)):
        if name.endswith(ending_) and name.removesuffix(ending_) in _GROUP_OF:
            return name.removesuffix(ending_), split
    if name in _GROUP_OF:
        return name, "dev" if path.parent.name == "dev" else "test"
    for split in ("test", "dev"):
        if name == split or name.startswith(f"{split}-"):
            subject = path.parent.name.lower()
            return subject if subject in _GROUP_OF else None, split
    return None, None


def _question(row: Row, subject: str | None, split: str) -> Question:
    if subject is None:
        subject = row.text("subject")
        if subject not in _GROUP_OF:
            raise bad(f"{row.place}: the field 'subject' is {subject!r}, none of MMLU's {len(_GROUP_OF)} subjects.")
    # Choices may be numbers in a CSV file, and in JSON, too; an empty cell is a missing field.
    choices = row.texts("choices") if row.has("choices") else [row.text(letter) for letter in _LETTERS]
    if len(choices) != len(_LETTERS):
        raise bad(f"{row.place}: {len(choices)} choices, not {len(_LETTERS)}.")
    letters = dict(enumerate(_LETTERS)) | {letter: letter for letter in _LETTERS}
    return Question(subject, split, row.text("question"), tuple(choices), row.word("answer", words=letters))


CONVERTERS = (
    Converter("mmlu", "MMLU", "the folder of MMLU's archive (dev and test), or the hub's cais/mmlu (all)", make),
)
