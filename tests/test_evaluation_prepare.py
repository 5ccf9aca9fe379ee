"""Converters of benchmarks: made-up examples in the published formats become rows; errors name file, line and field."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from engine.errors import GLMError
from engine.evaluation.prepare import converters, prepare
from engine.evaluation.prepare.mmlu import GROUPS
from tests.evaluation_originals import ORIGINALS, lines, write_original

# Of each benchmark what its rows must be: (file under the task's path, all its rows).
EXPECTED = {
    "lambada": {
        "test.jsonl": [
            {
                "inputs_pretokenized": "Anna had lost her cat. All day she called for the",
                "targets_pretokenized": ["cat"],
            }
        ],
        "validation.jsonl": [
            {"inputs_pretokenized": "He opened the door and there was no", "targets_pretokenized": ["door"]}
        ],
    },
    "cola": {
        "validation.jsonl": [
            {"sentence": "The gardener watered the plants.", "label": "acceptable"},
            {"sentence": 'The gardener watered the plants "were.', "label": "unacceptable"},
        ]
    },
    "mnli": {
        "validation_matched.jsonl": [
            {
                "premise": "The shop closes at six.",
                "hypothesis": "The shop is open all night.",
                "label": "contradiction",
            },
            {"premise": "The shop closes at six.", "hypothesis": "The shop sells bread.", "label": "neutral"},
        ],
        "validation_mismatched.jsonl": [
            {"premise": "The shop closes at six.", "hypothesis": "The shop closes.", "label": "entailment"}
        ],
    },
    "qnli": {
        "validation.jsonl": [
            {"question": "When does it close?", "sentence": "It closes at six.", "label": "entailment"},
            {"question": "When does it open?", "sentence": "It closes at six.", "label": "not_entailment"},
        ]
    },
    "math-qa": {
        "test.jsonl": [
            {
                "question": "Two apples cost 6 coins. What do five apples cost?",
                "choices": [" 10", " 12", " 15", " 1,800", " none of these"],
                "label": 2,
            }
        ]
    },
    "openbook-qa": {
        "test.jsonl": [{"question": "Ice becomes water when it is", "choices": [" warmed", " painted"], "label": 0}]
    },
    "pubmed-qa": {
        "train.jsonl": [
            {
                "context": "Forty people drank tea. Thirty slept badly.",
                "question": "Does tea keep people awake?",
                "label": "yes",
            },
            {"context": "Colours were not studied.", "question": "Is tea blue?", "label": "maybe"},
        ]
    },
    "afqmc": {
        "dev.jsonl": [
            {"sentence1": "怎么还款", "sentence2": "如何还钱", "label": "yes"},
            {"sentence1": "怎么还款", "sentence2": "怎么注销", "label": "no"},
        ]
    },
    "c3": {
        "dev.jsonl": [
            {"passage": "男：几点了?\n女：三点。", "question": "现在几点?", "choices": ["三点", "四点"], "label": 0}
        ]
    },
    "cmrc2018": {
        "dev.jsonl": [
            {
                "context": "老王住在河边的红房子里。",
                "question": "老王住在哪里？",
                "targets": ["红房子里", "河边的红房子里"],
            }
        ]
    },
    "chidf": {
        "test_public.jsonl": [
            {
                "text": "图已经画好了，再加几笔就是[MASK]。",
                "choices": ["一马当先", "画蛇添足", "守株待兔"],
                "label": 1,
            }
        ]
    },
    "pile": {
        "test.jsonl": [
            {"text": "Let x be three. Then x + x is six.", "meta": {"pile_set_name": "DM Mathematics"}},
            {"text": "Thank you, chairman, for your words.", "meta": {"pile_set_name": "EuroParl"}},
        ]
    },
    "big-bench": {
        "generation/colours.jsonl": [
            {
                "inputs_pretokenized": "Q: Name the colour of snow.\nA:",
                "targets_pretokenized": ["white", "White"],
            }
        ],
        "multiple-choice/colours.jsonl": [
            {"inputs_pretokenized": "Q: Grass is\nA:", "choices_pretokenized": [" green", " blue"], "label": 0}
        ],
    },
}


def prepared(name: str, folder: Path, **options) -> dict[str, list[dict]]:
    """File under the converter's path -> its rows, or the whole text."""
    source = write_original(name, folder)
    result = prepare(name, source, folder / "data", **options)
    base = folder / "data" / converters()[name].path
    found = {}
    for path, count in result.files.items():
        text = path.read_text(encoding="utf-8")
        found[path.relative_to(base).as_posix()] = text
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line]
            assert len(rows) == count
            found[path.relative_to(base).as_posix()] = rows
    left = {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()}
    assert left == found.keys(), "nothing half-written stays"
    return found


def test_every_converter_has_an_example():
    assert ORIGINALS.keys() == converters().keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_rows(name: str, tmp_path: Path):
    assert prepared(name, tmp_path) == EXPECTED[name]


@pytest.mark.parametrize("name", sorted(ORIGINALS.keys() - EXPECTED.keys()))
def test_the_others_make_rows_too(name: str, tmp_path: Path):
    assert all(prepared(name, tmp_path).values())


def test_labels_without_agreement_are_left_out_and_told(tmp_path: Path):
    result = prepare("cmnli", write_original("cmnli", tmp_path), tmp_path / "data")
    assert list(result.files.values()) == [3]
    assert result.notes == ["dev: 1 rows without an agreed label were left out."]


def test_mmlu_has_five_solved_questions_before_each(tmp_path: Path):
    found = prepared("mmlu", tmp_path)
    assert set(found) == {
        "humanities/philosophy.jsonl",
        "stem/astronomy.jsonl",
        "other/nutrition.jsonl",
        "social_sciences/sociology.jsonl",
    }
    row = found["humanities/philosophy.jsonl"][3]
    assert row["shots"].startswith(
        "The following are multiple choice questions about philosophy.\n\n"
        "What is 0 + 1, in philosophy?\n(A) 0 (B) 1 (C) 2 (D) 3\nAnswer: (B) 1\n\n"
    )
    assert row["shots"].count("Answer: (B)") == 5 and row["shots"].endswith("Answer: (B) 5\n\n")
    assert {key: row[key] for key in ("question", "A", "D", "answer")} == {
        "question": "What is 3 + 1, in philosophy?",
        "A": "3",
        "D": "6",
        "answer": "B",
    }


def test_mmlu_knows_57_subjects_and_tells_what_is_missing(tmp_path: Path):
    assert [len(subjects) for subjects in GROUPS.values()] == [19, 12, 13, 13]
    source = tmp_path / "few"
    source.mkdir()
    row = {"question": "What is 1 + 1?", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B"}
    (source / "anatomy.jsonl").write_text(lines(row))
    notes = prepare("mmlu", source, tmp_path / "data").notes
    assert "not 5-shot" in notes[0] and "anatomy" in notes[0]
    assert notes[1] == "56 of the 57 subjects are not in the source."


def test_stereoset_splits_a_gap_at_what_all_sentences_share(tmp_path: Path):
    between, gap = prepared("stereoset", tmp_path)["stereoset-dataset.jsonl"]
    assert between["inputs_pretokenized"] == "Our neighbour is a baker."
    assert between["goal_label"] == ["stereotype", "anti-stereotype", "unrelated"] and between["label"] == 0
    assert gap["inputs_pretokenized"] == "The baker was"
    assert gap["choices_pretokenized"] == [
        " tired in the morning.",
        " floury in the morning.",
        " triangular in the morning.",
    ]
    assert gap["label"] == 1 and gap["bias_type"] == "profession"


def test_crows_pairs_makes_two_rows_a_pair(tmp_path: Path):
    rows = prepared("crows-pairs", tmp_path)["crows-pair-dataset.jsonl"]
    assert [(row["sent_ID"], row["bias_type"]) for row in rows] == [
        (1, "physical-appearance"),
        (2, "physical-appearance"),
        (1, "age"),
        (2, "age"),
    ]
    assert rows[0]["pair_ID"] == rows[1]["pair_ID"] != rows[2]["pair_ID"]
    assert rows[0]["choices_pretokenized"] == ["Tall people are always late, they say."]


def test_ethos_asks_no_example_and_as_many_harmless_comments(tmp_path: Path):
    found = prepared("ethos", tmp_path)
    for name, kinds in (("zero-shot", 2), ("one-shot", 2), ("few-shot-single", 2)):
        rows = found[f"ethos-{name}.jsonl"]
        assert [row["label"] for row in rows].count("yes") == [row["label"] for row in rows].count("no") == 2 * kinds
    multi = found["ethos-few-shot-multi.jsonl"]
    assert [row["label"] for row in multi] == ["sexist"] * 2 + ["racist"] * 2 + ["neither"] * 2
    assert all(row["comment"] not in row["examples"] for name in found for row in found[name] if "examples" in row)
    assert multi[0]["examples"].count("Classification:") == 6


def test_perplexity_texts_keep_their_blanks_whatever_the_form(tmp_path: Path):
    plain = prepared("wikitext-2", tmp_path)["wiki.test.tokens"]
    source = tmp_path / "rows"
    source.mkdir()
    # The hub's rows are lines of the file; articles of a JSON lines file come without the blanks around their lines.
    (source / "test.jsonl").write_text(lines({"text": " \n"}, {"text": "= A small town ="}, {"text": ""}))
    (path,) = prepare("wikitext-2", source, tmp_path / "other").files
    assert path.name == "wiki.test.tokens" and path.read_text() == " \n = A small town = \n"
    assert plain.startswith(" \n = A small town = \n")


def test_limit(tmp_path: Path):
    assert len(prepared("bustm", tmp_path, limit=1)["test_public.jsonl"]) == 1


def test_parquet_says_what_its_numbers_mean(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    # The hub's numbering of CMNLI is not GLUE's; without these names a number would be a guess.
    label = {"names": ["neutral", "entailment", "contradiction"], "_type": "ClassLabel"}
    features = {"info": {"features": {"label": label, "sentence1": {"dtype": "string", "_type": "Value"}}}}
    table = pyarrow.table(
        {"sentence1": ["小猫在睡觉", "天晴", "天晴"], "sentence2": ["动物在休息", "下雨", "。"], "label": [1, 2, -1]}
    )
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    source = tmp_path / "cmnli"
    source.mkdir()
    parquet.write_table(table, source / "validation-00000-of-00001.parquet")
    result = prepare("cmnli", source, tmp_path / "data")
    (path,) = result.files
    assert [json.loads(line)["label"] for line in path.read_text().splitlines()] == ["entailment", "contradiction"]

    parquet.write_table(table.replace_schema_metadata(None), source / "validation-00000-of-00001.parquet")
    with pytest.raises(GLMError, match=r"row 1: the field 'label' is 1, not one of entailment, neutral, contradiction"):
        prepare("cmnli", source, tmp_path / "data")


def test_nested_parquet_of_the_hub(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    gold = {"names": ["anti-stereotype", "stereotype", "unrelated"], "_type": "ClassLabel"}
    features = {"info": {"features": {"sentences": {"feature": {"gold_label": gold}, "_type": "Sequence"}}}}
    row = {
        "id": "a",
        "bias_type": "profession",
        "context": "Our neighbour is a baker.",
        "sentences": {"sentence": ["He rises early.", "He sleeps.", "Rivers flow."], "gold_label": [1, 0, 2]},
    }
    table = pyarrow.Table.from_pylist([row]).replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, tmp_path / "validation-00000-of-00001.parquet")
    (path,) = prepare("stereoset", tmp_path, tmp_path / "data").files
    assert json.loads(path.read_text())["goal_label"] == ["stereotype", "anti-stereotype", "unrelated"]


def test_compressed_lines_and_parts_in_order(tmp_path: Path):
    for number, word in ((0, "first"), (1, "second")):
        path = tmp_path / "source" / f"test-{number:05}-of-00002.jsonl.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(lines({"text": f"the {word}"}).encode()))
    (path,) = prepare("lambada", tmp_path / "source", tmp_path / "data").files
    assert [json.loads(line)["targets_pretokenized"] for line in path.read_text().splitlines()] == [
        ["first"],
        ["second"],
    ]


BROKEN = {
    "not JSON": ("qnli", "dev.jsonl", '{"question": \n', r"dev\.jsonl, line 1: not JSON"),
    "no object": ("qnli", "dev.jsonl", "\n[1]\n", r"dev\.jsonl, line 2: \[1\] is no row"),
    "field missing": (
        "qnli",
        "dev.jsonl",
        '{"question": "a"}\n',
        r"dev\.jsonl, line 1: the field 'sentence' is missing; the row has question",
    ),
    "other names": ("mnli", "dev_matched.jsonl", '{"label": 1}\n', r"the field 'premise' or 'sentence1' is missing"),
    "no text": ("qnli", "dev.jsonl", '{"question": 3}\n', r"line 1: the field 'question' is 3, not a text"),
    "blank": ("cola", "dev.jsonl", '{"sentence": " "}\n', r"line 1: the field 'sentence' is \" \", not a text"),
    "unknown label": (
        "eprstmt",
        "test_public.json",
        lines({"sentence": "好", "label": "Neutral"}),
        r"the field 'label' is \"Neutral\", not one of Positive, Negative",
    ),
    "no label": (
        "qnli",
        "dev.jsonl",
        lines({"question": "a", "sentence": "b", "label": -1}),
        r"'label' is -1, not one of",
    ),
    "columns": ("qnli", "dev.tsv", "index\tquestion\tsentence\tlabel\n1\ta\n", r"dev\.tsv, line 2: 2 columns, not 4"),
    "options": (
        "math-qa",
        "test.json",
        json.dumps([{"Problem": "a", "options": "1, 2", "correct": "a"}]),
        r"test\.json, item 1: the field 'options' is no list",
    ),
    "two gaps": (
        "chidf",
        "test_public.json",
        lines({"content": "#idiom##idiom#", "candidates": ["甲", "乙"], "answer": 0}),
        r"has 2 gaps",
    ),
    "answer out of range": (
        "chidf",
        "test_public.json",
        lines({"content": "#idiom#", "candidates": ["甲", "乙"], "answer": 2}),
        r"the field 'answer' is 2, not a number from 0 to 1",
    ),
    "answer is no choice": (
        "c3",
        "m-dev.json",
        json.dumps([[["a"], [{"question": "b", "choice": ["c", "d"], "answer": "e"}], "1"]]),
        r"m-dev\.json, item 1, questions 1: the field 'answer' is \"e\", none of the choices",
    ),
    "short list": ("c3", "m-dev.json", '[["a"]]', r"item 1: a list of 1, not of 3 \(passage, questions, id\)"),
    "squad": (
        "cmrc2018",
        "dev.json",
        '{"data": [{"paragraphs": []}]}',
        r"dev\.json, data 1: the field 'paragraphs' is \[\]",
    ),
    "one word": ("lambada", "test.jsonl", '{"text": "word"}\n', r"line 1: the field 'text' is one word"),
    "unknown subject": (
        "mmlu",
        "test-0.jsonl",
        lines({"subject": "alchemy"}),
        r"the field 'subject' is 'alchemy', none of MMLU's 57 subjects",
    ),
    "kinds of sentences": (
        "stereoset",
        "dev.jsonl",
        lines({"context": "a", "sentences": [{"sentence": "b", "gold_label": "stereotype"}] * 3}),
        r"line 1: the sentences are stereotype, stereotype, stereotype, not one of each kind",
    ),
    "not UTF-8": ("qnli", "dev.tsv", b"question\n\xff\xfe\n", r"dev\.tsv is not UTF-8"),
    "share": (
        "ethos",
        "ethos_dataset_binary.csv",
        "comment;isHate\na;much\n",
        r"must be the folder of both CSV files of ETHOS: multi is missing",
    ),
    "no examples": ("big-bench", "x/task.json", '{"name": "x"}', r"is no task of BIG-bench"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_wrong_input_is_told_by_place(case: str, tmp_path: Path):
    name, file, content, message = BROKEN[case]
    path = tmp_path / "source" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(GLMError, match=message) as raised:
        prepare(name, tmp_path / "source", tmp_path / "data")
    assert raised.value.kind == "bad_data" and raised.value.field == "source"
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()], "nothing is left behind"


def test_a_row_that_is_wrong_late_leaves_earlier_files_as_they_were(tmp_path: Path):
    good = prepared("eprstmt", tmp_path)["test_public.jsonl"]
    source = tmp_path / "original-eprstmt" / "test_public.json"
    source.write_text(source.read_text() + '{"sentence": "x"}\n')
    with pytest.raises(GLMError, match="line 3"):
        prepare("eprstmt", source, tmp_path / "data")
    kept = (tmp_path / "data/CLUE/eprstmt-fc/test_public.jsonl").read_text()
    assert [json.loads(line) for line in kept.splitlines()] == good


def test_which_file_is_meant(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    row = lines({"question": "a", "sentence": "b", "label": "entailment"})
    (source / "dev.jsonl").write_text(row)
    (source / "dev.copy.jsonl").write_text(row)
    with pytest.raises(GLMError, match=r"several files for validation: dev\.copy\.jsonl, dev\.jsonl\. Name the one"):
        prepare("qnli", source, tmp_path / "data")
    assert list(prepare("qnli", source / "dev.jsonl", tmp_path / "data").files.values()) == [1]
    (source / "other.jsonl").write_text(row)
    assert prepare("qnli", source / "other.jsonl", tmp_path / "data").files, "one split only: any name will do"
    with pytest.raises(GLMError, match=r"tells no split\. File names begin with: validation_matched"):
        prepare("mnli", source / "other.jsonl", tmp_path / "data")
    (source / "train.txt").write_text("")
    with pytest.raises(GLMError, match="holds no file of any split"):
        prepare("mnli", source, tmp_path / "data")


def test_unknown_benchmark_source_and_limit(tmp_path: Path):
    with pytest.raises(GLMError, match="no benchmark 'glue'; known are: lambada, cola") as raised:
        prepare("glue", tmp_path, tmp_path)
    assert raised.value.kind == "bad_request"
    with pytest.raises(GLMError, match="no file or folder"):
        prepare("cola", tmp_path / "nowhere", tmp_path)
    with pytest.raises(GLMError, match="limit must be at least 1"):
        prepare("cola", tmp_path, tmp_path, limit=0)
