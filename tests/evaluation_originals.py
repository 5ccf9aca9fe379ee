"""Made-up examples in the file formats that benchmarks are published in: name of a converter -> file -> content.

All sentences are our own. Nothing here is a row of a benchmark.
"""

from __future__ import annotations

import json
from pathlib import Path


def lines(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def squad(context: str, *questions: tuple[str, list[str]]) -> str:
    qas = [
        {"id": f"q{number}", "question": question, "answers": [{"text": text, "answer_start": 0} for text in answers]}
        for number, (question, answers) in enumerate(questions)
    ]
    return json.dumps(
        {"version": "1", "data": [{"paragraphs": [{"context": context, "qas": qas}]}]}, ensure_ascii=False
    )


_PAIRS = lines(
    {"id": 1, "sentence1": "怎么还款", "sentence2": "如何还钱", "label": "1"},
    {"id": 2, "sentence1": "怎么还款", "sentence2": "怎么注销", "label": "0"},
)
_RELATIONS = lines(
    {"sentence1": "小猫在睡觉", "sentence2": "有一只动物在休息", "label": "entailment", "id": 1},
    {"sentence1": "小猫在睡觉", "sentence2": "小猫在跑步", "label": "contradiction", "id": 2},
    {"sentence1": "小猫在睡觉", "sentence2": "小猫是白色的", "label": "neutral", "id": 3},
    {"sentence1": "小猫在睡觉", "sentence2": "天气很好", "label": "-", "id": 4},
)
_PRONOUNS = lines(
    {
        "target": {"span1_text": "杯子", "span1_index": 3, "span2_text": "它", "span2_index": 9},
        "idx": 1,
        "label": "true",
        "text": "我把杯子放在桌上，它是蓝色的。",
    },
    {
        "target": {"span1_text": "桌", "span1_index": 6, "span2_text": "它", "span2_index": 9},
        "idx": 2,
        "label": "false",
        "text": "我把杯子放在桌上，它装满了水。",
    },
)
_ABSTRACTS = lines(
    {"id": 1, "abst": "本文研究了猫的睡眠时间。", "keyword": ["猫", "睡眠"], "label": "1"},
    {"id": 2, "abst": "本文研究了猫的睡眠时间。", "keyword": ["猫", "桥梁"], "label": "0"},
)
_DIAGNOSTIC = lines(
    {
        "sentence1": "The box is on the shelf.",
        "sentence2": "Something is on the shelf.",
        "label": "entailment",
        "idx": 0,
    },
    {"sentence1": "The box is heavy.", "sentence2": "The box is red.", "label": "not_entailment", "idx": 1},
)
_MMLU_HEADS = ("dev", "test")


def _mmlu(split: str, subject: str, count: int) -> tuple[str, str]:
    rows = "".join(f'"What is {n} + 1, in {subject}?",{n},{n + 1},{n + 2},{n + 3},B\n' for n in range(count))
    return f"{split}/{subject}_{split}.csv", rows


_ETHOS_COLUMNS = "violence;directed_vs_generalized;gender;race;national_origin;disability;religion;sexual_orientation"

ORIGINALS: dict[str, dict[str, str]] = {
    "lambada": {
        "lambada_test.jsonl": lines({"text": "Anna had lost her cat. All day she called for the cat"}),
        "validation.jsonl": lines({"text": "He opened the door and there was no door"}),
    },
    "cola": {
        "dev.tsv": 'xx01\t1\t\tThe gardener watered the plants.\nxx01\t0\t*\tThe gardener watered the plants "were.\n',
    },
    "mnli": {
        "dev_matched.tsv": "index\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\tThe shop closes at six.\tThe shop is open all night.\tneutral\tcontradiction\n"
        "1\tThe shop closes at six.\tThe shop sells bread.\tneutral\tneutral\n"
        "2\tThe shop closes at six.\tThere is no agreement here.\tneutral\t-\n",
        "dev_mismatched.tsv": "index\tsentence1\tsentence2\tlabel1\tgold_label\n"
        "0\tThe shop closes at six.\tThe shop closes.\tneutral\tentailment\n",
    },
    "qnli": {
        "dev.tsv": "index\tquestion\tsentence\tlabel\n0\tWhen does it close?\tIt closes at six.\tentailment\n"
        "1\tWhen does it open?\tIt closes at six.\tnot_entailment\n",
    },
    "wnli": {
        "dev.tsv": "index\tsentence1\tsentence2\tlabel\n0\tThe key did not fit the lock as it was bent.\tThe key was bent.\t1\n"
        "1\tThe key did not fit the lock as it was bent.\tThe lock was bent.\t0\n",
    },
    "math-qa": {
        "test.json": json.dumps(
            [
                {
                    "Problem": "Two apples cost 6 coins. What do five apples cost?",
                    "Rationale": "-",
                    "options": "a ) 10 , b ) 12 , c ) 15 , d ) 1,800 , e ) none of these",
                    "correct": "c",
                }
            ]
        ),
    },
    "mc-taco": {
        "dev_3783.tsv": "Tom boiled an egg.\tHow long did it take?\tseven minutes\tyes\tEvent Duration\n"
        "Tom boiled an egg.\tHow long did it take?\tseven years\tno\tEvent Duration\n"
        "Tom boiled an egg.\tWhen did he do it?\tat breakfast\tyes\tTypical Time\n",
    },
    "openbook-qa": {
        "test.jsonl": lines(
            {
                "id": "1",
                "question": {
                    "stem": "Ice becomes water when it is",
                    "choices": [{"text": "warmed", "label": "A"}, {"text": "painted", "label": "B"}],
                },
                "answerKey": "A",
            }
        ),
    },
    "pubmed-qa": {
        "ori_pqal.json": json.dumps(
            {
                "101": {
                    "QUESTION": "Does tea keep people awake?",
                    "CONTEXTS": ["Forty people drank tea.", "Thirty slept badly."],
                    "final_decision": "yes",
                },
                "102": {
                    "QUESTION": "Is tea blue?",
                    "CONTEXTS": ["Colours were not studied."],
                    "final_decision": "maybe",
                },
            }
        ),
    },
    "axb": {"AX-b.jsonl": _DIAGNOSTIC},
    "axg": {"AX-g.jsonl": _DIAGNOSTIC.replace("sentence1", "premise").replace("sentence2", "hypothesis")},
    "mmlu": dict(
        _mmlu(split, subject, 6)
        for subject in ("philosophy", "astronomy", "nutrition", "sociology")
        for split in _MMLU_HEADS
    ),
    "afqmc": {"dev.json": _PAIRS},
    "c3": {
        "m-dev.json": json.dumps(
            [
                [
                    ["男：几点了?", "女：三点。"],
                    [{"question": "现在几点?", "choice": ["三点", "四点"], "answer": "三点"}],
                    "1-1",
                ]
            ],
            ensure_ascii=False,
        ),
    },
    "cluewsc": {"dev.json": _PRONOUNS},
    "cmnli": {"dev.json": _RELATIONS},
    "cmrc2018": {
        "cmrc2018_dev.json": squad("老王住在河边的红房子里。", ("老王住在哪里？", ["红房子里", "河边的红房子里"]))
    },
    "csl": {"dev.json": _ABSTRACTS},
    "drcd": {"DRCD_dev.json": squad("老王住在河邊的紅房子裡。", ("老王住在哪裡？", ["紅房子裡"]))},
    "ocnli": {"dev.json": _RELATIONS},
    "bustm": {"test_public.json": _PAIRS, "dev_0.json": _PAIRS},
    "chidf": {
        "test_public.json": lines(
            {
                "id": 1,
                "candidates": ["一马当先", "画蛇添足", "守株待兔"],
                "content": "图已经画好了，再加几笔就是#idiom#。",
                "answer": 1,
            }
        ),
    },
    "cluewscf": {"test_public.json": _PRONOUNS},
    "cslf": {"test_public.json": _ABSTRACTS},
    "eprstmt": {
        "test_public.json": lines(
            {"id": 1, "sentence": "很好用，下次还买。", "label": "Positive"},
            {"id": 2, "sentence": "第二天就坏了。", "label": "Negative"},
        ),
    },
    "ocnlif": {"test_public.json": _RELATIONS},
    "crows-pairs": {
        "crows_pairs_anonymized.csv": ",sent_more,sent_less,stereo_antistereo,bias_type,annotations\n"
        '0,"Tall people are always late, they say.","Short people are always late, they say.",stereo,physical-appearance,[]\n'
        "1,Old people dance badly.,Young people dance badly.,antistereo,age,[]\n",
    },
    "stereoset": {
        "dev.json": json.dumps(
            {
                "version": "1",
                "data": {
                    "intersentence": [
                        {
                            "id": "a",
                            "target": "baker",
                            "bias_type": "profession",
                            "context": "Our neighbour is a baker.",
                            "sentences": [
                                {"id": "1", "sentence": "He rises early.", "gold_label": "stereotype"},
                                {"id": "2", "sentence": "He sleeps until noon.", "gold_label": "anti-stereotype"},
                                {"id": "3", "sentence": "Rivers flow downhill.", "gold_label": "unrelated"},
                            ],
                        }
                    ],
                    "intrasentence": [
                        {
                            "id": "b",
                            "target": "baker",
                            "bias_type": "profession",
                            "context": "The baker was BLANK in the morning.",
                            "sentences": [
                                {
                                    "id": "1",
                                    "sentence": "The baker was tired in the morning.",
                                    "gold_label": "anti-stereotype",
                                },
                                {
                                    "id": "2",
                                    "sentence": "The baker was floury in the morning.",
                                    "gold_label": "stereotype",
                                },
                                {
                                    "id": "3",
                                    "sentence": "The baker was triangular in the morning.",
                                    "gold_label": "unrelated",
                                },
                            ],
                        }
                    ],
                },
            }
        ),
    },
    "ethos": {
        "Ethos_Dataset_Binary.csv": "comment;isHate\n"
        + "".join(f"I like the weather of day {number};0.0\n" for number in range(8))
        + "a comment that counts as hateful;0.9\n",
        "Ethos_Dataset_Multi_Label.csv": f"comment;{_ETHOS_COLUMNS}\n"
        + "".join(f"made-up gender comment {number};0;0;0.8;0.1;0;0;0;0\n" for number in range(4))
        + "".join(f"made-up race comment {number};0;0;0;1;0;0;0;0\n" for number in range(4)),
    },
    "wikitext-2": {
        "wiki.test.tokens": " \n = A small town = \n \n The town has a bridge , a mill and a school . \n",
        "wiki.valid.tokens": " \n = A river = \n \n It is short . \n",
    },
    "wikitext-103": {"wiki.test.tokens": " \n = A small town = \n \n The town has a bridge , a mill and a school . \n"},
    "ptb": {"ptb.test.txt": " the company sold N shares \n prices fell \n"},
    "pile": {
        "test.jsonl": lines(
            {"text": "Let x be three. Then x + x is six.", "meta": {"pile_set_name": "DM Mathematics"}},
            {"text": "Thank you, chairman, for your words.", "meta": {"pile_set_name": "EuroParl"}},
        ),
    },
    "big-bench": {
        "colours/task.json": json.dumps(
            {
                "name": "colours",
                "examples": [
                    {"input": "Grass is", "target_scores": {"green": 1, "blue": 0}},
                    {"input": "Name the colour of snow.", "target": ["white", "White"]},
                ],
            }
        ),
    },
}


def write_original(name: str, folder: Path) -> Path:
    """The example files of a converter, in a folder of their own. Returns the folder, which is SOURCE."""
    source = folder / f"original-{name}"
    for file, content in ORIGINALS[name].items():
        path = source / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="")
    return source
