"""The task files: each loads, fits its converter's rows, and runs to its end; on real rows where those are at hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from engine.evaluation import published
from engine.evaluation.asker import PoolAsker
from engine.evaluation.kinds import kind_of
from engine.evaluation.prepare import converters, prepare
from engine.evaluation.prepare.mmlu import GROUPS
from engine.evaluation.reports import stored, write_report
from engine.evaluation.reports.summary import summarise
from engine.evaluation.result import TaskResult
from engine.evaluation.rows import read_rows, task_files
from engine.evaluation.runner import Evaluation
from engine.evaluation.task import MultipleChoiceTask, Task, find_task_files, load_task
from engine.glm.tokenizer import Tokenizer
from engine.serving.pool import Pool
from tests.conftest import HERE, make_tiny_model
from tests.evaluation_originals import ORIGINALS, write_original

TASKS = HERE.parent / "engine" / "evaluation" / "tasks"
REAL = HERE.parent.parent / "shared" / "data" / "eval"

_MULTIPLE_CHOICE = """MMLU AFQMC C3 CLUEWSC2020 CMNLI CSL OCNLI_50K BUSTM CHIDF CLUEWSCF CSLF EPRSTMT OCNLIF glue_cola glue_mnli
    glue_qnli glue_wnli math_qa openbook_qa pubmed_qa superglue_axb superglue_axg CROWS StereoSet ETHOS_zeroshot ETHOS_oneshot
    ETHOS_fewshot_single ETHOS_fewshot_multi big-bench-multiple-choice"""

# Name of the task -> its type: all that GLM-130B's repository lists, and BIG-bench.
LISTED = {
    **dict.fromkeys(
        ("LAMBADA", "LAMBADA-unidirectional", "CMRC2018", "DRCD", "mc_taco", "big-bench-generation"), "gen"
    ),
    **dict.fromkeys(("Pile", "Penn Treebank", "WikiText-2", "WikiText-103"), "lm"),
    **dict.fromkeys(_MULTIPLE_CHOICE.split(), "mul"),
}

# Converter -> what of the real rows it reads, and tasks that read those.
REAL_ROWS = {
    "lambada": ("lambada/original.jsonl", ("LAMBADA", "LAMBADA-unidirectional")),
    "cola": ("glue_cola/validation.original.jsonl", ("glue_cola",)),
    "mmlu": ("mmlu/original", ("MMLU",)),
    "wikitext-2": ("wikitext-2/wiki.test.jsonl", ("WikiText-2",)),
    "afqmc": ("clue/afqmc/dev.original.jsonl", ("AFQMC",)),
    "c3": ("clue/c3/dev.original.jsonl", ("C3",)),
    "ocnli": ("clue/ocnli/dev.original.jsonl", ("OCNLI_50K",)),
    "cmrc2018": ("clue/cmrc2018/dev.original.jsonl", ("CMRC2018",)),
    "drcd": ("clue/drcd/dev.original.jsonl", ("DRCD",)),
    "bustm": ("fewclue/bustm/test_public.original.jsonl", ("BUSTM",)),
    "chidf": ("fewclue/chid/test_public.original.jsonl", ("CHIDF",)),
    "cluewscf": ("fewclue/cluewsc/test_public.original.jsonl", ("CLUEWSCF",)),
    "cslf": ("fewclue/csl/test_public.original.jsonl", ("CSLF",)),
    "eprstmt": ("fewclue/eprstmt/test_public.original.jsonl", ("EPRSTMT",)),
    "ocnlif": ("fewclue/ocnli/test_public.original.jsonl", ("OCNLIF",)),
}


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    found = [load_task(path) for path in find_task_files([TASKS])]
    assert len({task.name for task in found}) == len(found)
    return {task.name: task for task in found}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The made-up examples of all converters, as rows."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ORIGINALS:
        prepare(name, write_original(name, folder), folder / "data")
    return folder / "data"


def test_the_listed_tasks_are_there(tasks: dict[str, Task]):
    assert {name: task.type for name, task in tasks.items()} == LISTED
    assert {task.path for task in tasks.values()} == {converter.path for converter in converters().values()}
    assert all(task.description for task in tasks.values())


@pytest.mark.parametrize("name", LISTED)
def test_prompts_fit_the_rows_of_their_converter(name: str, tasks: dict[str, Task], data: Path, vocabulary_file: Path):
    task, tokenizer = tasks[name], Tokenizer.load(vocabulary_file)
    files = [file for group in task_files(task, data).values() for file in group]
    assert files, "the converter writes what the task's pattern finds"
    kind = kind_of(task)(task, tokenizer, 512)
    labels = set()
    for file in files:
        rows = read_rows(file, task, tokenizer)
        assert rows
        for row in rows:
            questions = kind.questions(row)
            assert questions and not any(question.truncated for question in questions)
            for question in questions:
                masks = sum(question.prompt.ids.count(mask) for mask in (tokenizer.mask, tokenizer.gmask))
                assert masks == 1, "one place for the answer"
                assert len(question.prompt.ids) + max(map(len, question.choices), default=0) <= 512
            if isinstance(task, MultipleChoiceTask):
                assert len(set(row.choices)) == len(row.choices)
                labels.add(row.label)
            text = tokenizer.decode(row.inputs)
            assert "{" not in text, "every field is filled in"
    if task.prompts and isinstance(task, MultipleChoiceTask):
        named = {name for prompt in task.prompts.values() for name in prompt.labels.values()}
        assert labels <= named or not named


def test_a_prompt_and_its_choices_as_they_are_read(tasks: dict[str, Task], data: Path, vocabulary_file: Path):
    tokenizer = Tokenizer.load(vocabulary_file)

    def shown(name: str, prompt: str) -> list[tuple[str, str]]:
        task = tasks[name]
        files = [file for group in task_files(task, data).values() for file in group if file.prompt == prompt]
        rows = read_rows(files[0], task, tokenizer)
        # A mask's token has no text of its own.
        parts = [(row.inputs, row.choices[row.label]) for row in rows]
        return [
            (
                "[MASK]".join(tokenizer.decode(part) for part in _split(inputs, tokenizer.mask)),
                tokenizer.decode(right),
            )
            for inputs, right in parts
        ]

    assert shown("OCNLI_50K", "zh_blank") == [
        ("小猫在睡觉？[MASK]，有一只动物在休息", "对"),
        ("小猫在睡觉？[MASK]，小猫在跑步", "错"),
        ("小猫在睡觉？[MASK]，小猫是白色的", "也许"),
    ]
    assert shown("EPRSTMT", "zh")[0] == ("很好用，下次还买。\n这条评价是[MASK]评。", "好")
    assert shown("CHIDF", "gap") == [("图已经画好了，再加几笔就是[MASK]。", "画蛇添足")]
    assert shown("glue_cola", "mistake") == [
        (f"Does the following sentence have a mistake in its grammar?\n{sentence}\nAnswer:", answer)
        for sentence, answer in (
            ("The gardener watered the plants.", " no"),
            ('The gardener watered the plants "were.', " yes"),
        )
    ]
    inputs, right = shown("MMLU", "letter")[0]
    assert inputs.endswith("What is 0 + 1, in astronomy?\n(A) 0 (B) 1 (C) 2 (D) 3\nAnswer: (") and right == "B"


def _split(ids: tuple[int, ...], at: int) -> list[tuple[int, ...]]:
    place = ids.index(at) if at in ids else len(ids)
    return [ids[:place], ids[place + 1 :]] if at in ids else [ids]


async def run_all(
    model: Path, tasks: list[Task], data: Path, out: Path, limit: int | None = None
) -> dict[str, TaskResult]:
    async with Pool(model, threads=1) as pool:
        asker = PoolAsker(pool, Tokenizer.load(model / "tokenizer.model"))
        evaluation = Evaluation(asker, data, out, lambda event: None, limit=limit)
        return {task.name: await evaluation.run(task, f"{task.name}.yaml") for task in tasks}


async def test_all_run_to_their_end_and_are_reported(
    tasks: dict[str, Task], data: Path, tiny_model_folder: Path, vocabulary_file: Path, tmp_path: Path
):
    """On the made-up rows and a random model: what they measure has the names that published values are found by. Then some on
    other weights: the reports compare both on the same rows."""
    results = await run_all(tiny_model_folder, list(tasks.values()), data, tmp_path / "out")
    for name, result in results.items():
        assert result.overall and all(file.count for file in result.files)
        assert all(math.isfinite(value) for file in result.files for value in file.metrics.values()), name
        for each in published.tasks().get(name, ()):
            bases = {metric.partition(":")[0] for metric in result.overall}
            assert each.metric.partition(":")[0] in bases, f"{name} measures no {each.metric}"
            assert each.group is None or each.group in result.groups
    assert set(results["mc_taco"].overall) == {"EM", "EM_questions"}
    assert {"CP", "CP: age", "CP: physical-appearance"} == set(results["CROWS"].overall)
    assert {"LMS", "SS", "ICAT", "LMS: profession"} <= set(results["StereoSet"].overall)
    assert {"BPB", "BPB: EuroParl"} <= set(results["Pile"].overall)

    other = make_tiny_model(tmp_path / "other", vocabulary_file, seed=2)
    again = [tasks[name] for name in ("LAMBADA", "glue_cola", "Penn Treebank")]
    await run_all(other, again, data, tmp_path / "out")
    summary = summarise(stored(tmp_path / "out"))
    assert {line.task for line in summary.lines} == set(LISTED) and len(summary.versions) == 2
    assert {each.line.task for each in summary.differences if each.paired} >= {"LAMBADA", "glue_cola"}
    assert {line.task for line in summary.lines if len(line.scores) == 2} == {task.name for task in again}
    cola = next(line for line in summary.lines if line.task == "glue_cola")
    assert next(iter(cola.scores.values())).chance == 50.0 and cola.published[0].value == 57.6
    for path in write_report(tmp_path / "out"):
        text = path.read_text(encoding="utf-8")
        assert all(version.label in text for version in summary.versions)
        assert all(name in text for name in ("CP: age", "EM_questions", "published, not measured", *LISTED))


def test_published_values_belong_to_tasks_and_are_told_as_such(tasks: dict[str, Task]):
    assert published.tasks().keys() <= tasks.keys()
    assert [str(each) for each in published.published("LAMBADA", "Accuracy")] == [
        "GLM-130B FP16 80.206",
        "GLM-130B INT8 80.206",
        "GLM-130B INT4 79.468",
    ]
    (astronomy,) = published.published("MMLU", "Accuracy", "stem", "astronomy")
    assert astronomy.value == 48.03 and astronomy.origin == "GLM-130B paper (arXiv 2210.02414), Table 15"
    assert published.published("glue_mnli", "Accuracy") == ()
    assert published.published("no such task") == ()
    subjects = [each for each in published.tasks()["MMLU"] if each.file is not None]
    assert {(each.group, each.file) for each in subjects} == {
        (group, subject) for group, inside in GROUPS.items() for subject in inside
    }


@pytest.mark.skipif(not REAL.is_dir(), reason="the real rows (../shared/data/eval) are not beside this checkout")
@pytest.mark.heavy
async def test_real_rows_on_the_embedded_model(tasks: dict[str, Task], embedded: Path, tmp_path: Path):
    """A few rows of every benchmark that is at hand, from its publisher's form to numbers."""
    names = []
    for converter, (source, of) in REAL_ROWS.items():
        path = REAL / source
        if converter == "wikitext-2":  # whole articles take minutes
            path = tmp_path / "wiki.test.tokens"
            path.write_text((REAL / source).read_text(encoding="utf-8")[len('{"text": "') : 4000], encoding="utf-8")
        prepare(converter, path, tmp_path / "data", limit=2)
        names += of
    results = await run_all(embedded, [tasks[name] for name in names], tmp_path / "data", tmp_path / "out")
    for name, result in results.items():
        assert result.fingerprint["model"] == "glm-embedded"
        assert all(file.count <= 2 or result.type == "lm" for file in result.files), name
        values = [value for file in result.files for value in file.metrics.values()]
        assert values and all(math.isfinite(value) for value in values), name
    assert len(results["MMLU"].files) == 11
    # The model knows some English: a guess among its whole vocabulary would be a perplexity of 10,048.
    assert 20 < results["WikiText-2"].overall["PPL_tokens"].average < 1000
