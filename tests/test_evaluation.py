"""Task files, rows and prompts of the evaluation; what needs a model is in test_evaluation_runs.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import GLMError
from engine.evaluation import prompts
from engine.evaluation.custom.crows_pairs import CrowsPairs
from engine.evaluation.custom.lambada import Lambada
from engine.evaluation.custom.pile import Pile
from engine.evaluation.custom.stereoset import StereoSet
from engine.evaluation.kinds import Generation, LanguageModel, MultipleChoice, Question, kind_of
from engine.evaluation.rows import Row, TaskFile, encode, read_rows, task_files
from engine.evaluation.server import socket_url
from engine.evaluation.task import MODULES, Task, find_task_files, load_task, parse_task, settings_hash
from engine.glm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(vocabulary_file: Path) -> Tokenizer:
    return Tokenizer.load(vocabulary_file)


def task(kind: str = "mul", **more: Any) -> Task:
    return parse_task({"name": "test", "type": kind, "file_pattern": "*.jsonl"} | more, "test.yaml")


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path, task: Task, tokenizer: Tokenizer, prompt: str | None = None):
    return read_rows(TaskFile(path, path.name, "all", prompt), task, tokenizer)


def make_row(inputs: tuple[int, ...], **values: Any) -> Row:
    return Row(0, inputs, **values)


# Task files


def test_keys_of_both_cases_and_defaults_of_each_type() -> None:
    values = {
        "name": "a",
        "type": "gen",
        "file-pattern": {"test": "**/test.jsonl"},
        "max_gen_length": 5,
        "use-task-mask": True,
    }
    found = parse_task(values, "a.yaml")
    assert (found.max_gen_length, found.use_task_mask, found.metrics) == (5, True, ["EM", "F1"])
    assert (found.num_beams, found.length_penalty, found.no_repeat_ngram_size, found.sampling_strategy) == (
        4,
        1.0,
        3,
        "BaseStrategy",
    )
    assert (
        task().metrics == ["Accuracy"] and task().max_seq_length == 2048 and task().file_pattern == {"all": "*.jsonl"}
    )
    assert task("lm").generation_length == 256 and task("lm").metrics == ["PPL"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"type": "mul", "name": "a", "num-beams": 3}, "num_beams"),
        ({"type": "mul", "name": "a", "file-pattern": "a", "file_pattern": "b"}, "file_pattern is given twice"),
        ({"type": "sum", "name": "a"}, "'mul'"),
        ({"type": "mul"}, "name"),
        ({"type": "lm", "name": "a", "unidirectional": True}, "unidirectional needs use-task-mask"),
        ({"type": "gen", "name": "a", "max-gen-length": 30, "max-seq-length": 32}, "no room for inputs"),
        ({"type": "gen", "name": "a", "min-gen-length": 9, "max-gen-length": 8}, "min-gen-length"),
        ({"type": "lm", "name": "a", "generation-length": 4096}, "generation-length"),
        ({"type": "mul", "name": "a", "use-multitask-encoding": True}, "not supported"),
        ({"type": "gen", "name": "a", "num-beams": 99}, "num_beams"),
        (["name"], "holds no keys"),
    ],
)
def test_a_wrong_task_file_is_told_in_a_sentence(values: Any, said: str) -> None:
    with pytest.raises(GLMError, match="my.yaml") as caught:
        parse_task(values, "my.yaml")
    assert caught.value.kind == "bad_data" and said in caught.value.message and "\n" not in caught.value.message


def test_files_of_folders_and_names_of_our_own(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.yaml", "sub/a.yaml"):
        (tmp_path / name).write_text("name: x\ntype: mul\n")
    assert find_task_files([tmp_path, tmp_path / "b.yaml"]) == [tmp_path / "b.yaml", tmp_path / "sub" / "a.yaml"]
    assert [path.name for path in find_task_files(["lambada/lambada.yaml"])] == ["lambada.yaml"]
    for wrong in ("nothing", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(GLMError, match="There is no task file"):
            find_task_files([wrong])
    (tmp_path / "b.yaml").write_text("a: [")
    with pytest.raises(GLMError, match="not readable YAML"):
        load_task(tmp_path / "b.yaml")


def test_what_decides_the_numbers_is_in_the_hash() -> None:
    same = settings_hash(task(micro_batch_size=30, path="elsewhere", description="x"))
    assert settings_hash(task()) == same
    assert settings_hash(task(use_task_mask=True)) != same and settings_hash(task("gen")) != same


def test_classes_of_tasks() -> None:
    assert (kind_of(task()), kind_of(task("gen")), kind_of(task("lm"))) == (MultipleChoice, Generation, LanguageModel)
    for module, kind, expected in (
        ("tasks.lambada.task.LAMBADA", "gen", Lambada),
        ("tasks.ethnic.crows-pair.tasks.CrowsPairTask", "mul", CrowsPairs),
        ("tasks.ethnic.stereoset.tasks.StereoSetTask", "mul", StereoSet),
        ("tasks.language-modeling.pile.Pile", "lm", Pile),
        ("tasks.mmlu.task.MMLU", "mul", MultipleChoice),
    ):
        assert module in MODULES and kind_of(task(kind, module=module)) is expected
    for module, said in (
        ("no.such.Class", "can't be had"),
        ("Class", "can't be had"),
        ("json.JSONDecoder", "is no class"),
    ):
        with pytest.raises(GLMError, match=said):
            kind_of(task(module=module))
    with pytest.raises(GLMError, match="is no class of a mul task"):
        kind_of(task(module="tasks.lambada.task.LAMBADA"))


# Rows


def test_groups_files_and_prompts(tmp_path: Path) -> None:
    for name in ("one/test.jsonl", "two/test.jsonl", "two/val.jsonl"):
        write(tmp_path / "cola" / name, {})
    wanted = {"test": "**/test.jsonl", "val": "**/val.jsonl", "train": "**/train.jsonl"}
    found = task_files(task(path="cola", file_pattern=wanted), tmp_path)
    assert {group: [file.name for file in files] for group, files in found.items()} == {
        "test": ["one/test.jsonl", "two/test.jsonl"],
        "val": ["two/val.jsonl"],
        "train": [],
    }
    prompted = task(path="cola", file_pattern="**/val.jsonl", prompts={"p": {"inputs": "x"}, "q": {"inputs": "y"}})
    assert [file.prompt for file in task_files(prompted, tmp_path)["all"]] == ["p", "q"]
    with pytest.raises(GLMError, match="no folder"):
        task_files(task(path="none"), tmp_path)
    with pytest.raises(GLMError, match="is no pattern"):
        task_files(task(path="cola", file_pattern="/x"), tmp_path)


def test_texts_ids_and_masks(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(
        tmp_path / "a.jsonl",
        {"inputs_pretokenized": "people say [MASK] here", "choices_pretokenized": ["yes", "not at all"], "label": 1},
        {"inputs": [5, 6, 7], "choices": [[8], [9, 10]], "label": 0, "extra": {"x": 1}},
    )
    first, second = rows_of(path, task(), tokenizer)
    before, after = tokenizer.encode_plain("people say "), tokenizer.encode_plain(" here")
    assert first.inputs == (*before, tokenizer.mask, *after), "words are only words, masks are masks"
    assert first.choices == tuple(tuple(tokenizer.encode_plain(text)) for text in ("yes", "not at all"))
    assert first.choice_sizes == (3, 10) and (first.number, second.number) == (0, 1)
    assert second.inputs == (5, 6, 7) and second.choices == ((8,), (9, 10)) and second.raw["extra"] == {"x": 1}
    path = write(
        tmp_path / "b.jsonl",
        {"inputs_pretokenized": "a", "targets_pretokenized": ["b", "c"]},
        {"inputs": [1], "targets": [[2]]},
    )
    assert [len(row.targets) for row in rows_of(path, task("gen"), tokenizer)] == [2, 1]
    assert len(read_rows(TaskFile(path, "b", "all"), task("gen"), tokenizer, limit=1)) == 1


def test_with_the_vocabulary_of_glm_130b_special_tokens_are_found_in_words(tokenizer: Tokenizer) -> None:
    icetk = Tokenizer(tokenizer.model, num_image_tokens=20)
    assert encode(icetk, "a eop b") == tuple(icetk.encode("a eop b")) and icetk.eop in encode(icetk, "a eop b")
    assert tokenizer.eop not in encode(tokenizer, "a eop b")


def test_documents(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plain = tmp_path / "wiki.tokens"
    plain.write_text(" one two  three\nfour 五 ", encoding="utf-8")
    [row] = rows_of(plain, task("lm"), tokenizer)
    assert row.words == 5, "between single blanks, as GLM-130B counts: an empty one, and a line's end is none"
    assert row.size == len(plain.read_bytes())
    assert row.inputs == encode(tokenizer, " one two  three\nfour 五 ")
    [first] = read_rows(TaskFile(plain, plain.name, "all"), task("lm"), tokenizer, limit=1)
    assert first.inputs == encode(tokenizer, " one two  three\n") and first.words == 4
    path = write(tmp_path / "a.jsonl", {"text": "a b"}, {"text": []}, {"text": [4, 5], "text_pretokenized": "x y z"})
    assert [(row.number, row.words, row.size) for row in rows_of(path, task("lm"), tokenizer)] == [(0, 2, 3), (1, 3, 5)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"inputs": [1], "choices": [[2]], "label": 1}', "label must be"),
        ('{"inputs": [1], "choices": [[2], []], "label": 0}', "one of them is empty"),
        ('{"inputs": [1], "choices": [], "label": 0}', "choices are missing"),
        ('{"inputs": [1], "label": 0}', "choices or choices_pretokenized"),
        ('{"inputs": "x"', "is no JSON"),
        ("[1]", "is no JSON object"),
        ('{"inputs": [1.5], "choices": [[2]], "label": 0}', "inputs or inputs_pretokenized"),
    ],
)
def test_a_wrong_row_is_told_with_its_line(tmp_path: Path, tokenizer: Tokenizer, row: str, said: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"inputs": [1], "choices": [[2]], "label": 0}\n\n' + row + "\n")
    with pytest.raises(GLMError, match="line 3") as caught:
        rows_of(path, task(), tokenizer)
    assert caught.value.kind == "bad_data" and said in caught.value.message


def test_prompts_over_raw_rows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    prompt = {"inputs": "{s} Good?", "choices": [" no", " {word}"], "label": "ok", "labels": {"bad": 0, "fine": 1}}
    other = {"inputs": "{s}", "choices": "options", "label": "number"}
    asks = task(prompts={"a": prompt, "b": other})
    raw = {"s": "He go", "word": "yes", "ok": "bad", "options": ["x", "y"], "number": 1}
    ready = {"inputs": [1], "choices": [[2], [3]], "label": 1}
    path = write(tmp_path / "a.jsonl", raw, ready)
    first, second = rows_of(path, asks, tokenizer, "a")
    assert (first.inputs, first.label) == (encode(tokenizer, "He go Good?"), 0)
    assert first.choices == (encode(tokenizer, " no"), encode(tokenizer, " yes"))
    assert (second.inputs, second.label) == ((1,), 1), "a row of the format stays as it is"
    [first, _] = rows_of(path, asks, tokenizer, "b")
    assert first.choices == (encode(tokenizer, "x"), encode(tokenizer, "y")) and first.label == 1
    generated = task("gen", prompts={"a": {"inputs": "{s}", "targets": "word"}})
    assert rows_of(write(tmp_path / "b.jsonl", raw), generated, tokenizer, "a")[0].targets == (
        encode(tokenizer, "yes"),
    )
    with pytest.raises(GLMError, match="asks for the field s"):
        rows_of(write(tmp_path / "c.jsonl", {"t": 1}), asks, tokenizer, "a")


# Prompts (their exact form is compared with recorded runs in test_reference.py)


def test_too_long_texts_lose_their_beginning(tokenizer: Tokenizer) -> None:
    kind = MultipleChoice(task(max_seq_length=16), tokenizer, 512)
    row = make_row(inputs=tuple(range(30, 60)), choices=((1, 2), (3, 4, 5)))
    [question] = kind.questions(row)
    assert question.truncated and question.prompt.ids == (*range(51, 60), tokenizer.mask, tokenizer.sop)
    single = make_row(inputs=tuple(range(30, 60)), choices=((1,), (3,)))
    assert kind.questions(single)[0].prompt.ids[:-2] == tuple(range(47, 60)), "one sop serves single tokens"
    assert MultipleChoice(task(), tokenizer, 16).longest == 16, "the model's positions are a limit, too"
    many = make_row(inputs=(1, 2, 3, 4, 5), choices=((1,) * 6, (2,) * 9))
    assert kind.questions(many)[0].prompt.ids[:-2] == (1, 2, 3, 4, 5), "with the longest, where all don't fit"
    with pytest.raises(GLMError, match="no room"):
        kind.questions(make_row(inputs=(1,), choices=((1,) * 20, (2,))))


def test_a_mask_in_the_text_is_the_place(tokenizer: Tokenizer) -> None:
    text = (5, tokenizer.mask, 6)
    prompt = prompts.masked(text, tokenizer, gmask=False)
    assert (prompt.ids, prompt.positions, prompt.next_position, prompt.position_step) == (
        (*text, tokenizer.sop),
        (0, 1, 2, 1),
        1,
        0,
    )
    assert prompts.masked((5,), tokenizer, gmask=True, unidirectional=True).ids == (tokenizer.gmask, tokenizer.sop, 5)
    with pytest.raises(GLMError, match="from left to right"):
        prompts.masked((5, tokenizer.gmask), tokenizer, gmask=True, unidirectional=True)


def test_windows_cover_every_token_once(tokenizer: Tokenizer) -> None:
    ids = tuple(range(100, 200))
    for length in (1, 14, 15, 16, 17, 29, 100):
        for step in (3, 15, 40):
            found = prompts.windows(ids[:length], task("lm", max_seq_length=40, generation_length=step), tokenizer, 16)
            assert [token for window in found for token in window.text] == list(ids[:length])
            assert all(len(window.prompt.ids) - 1 + len(window.text) <= 16 for window in found)
    assert prompts.windows((), task("lm"), tokenizer, 16) == []


def test_questions_are_sorted_by_what_they_cost(tokenizer: Tokenizer) -> None:
    prompt = prompts.masked((1, 2), tokenizer, gmask=True)
    assert Question(0, 0, prompt, ((1,), (2, 3))).tokens == 7
    made = Generation(task("gen", max_gen_length=9), tokenizer, 64).sampling(prompt)
    assert Question(0, 0, prompt, sampling=made).tokens == 13


def test_addresses_of_servers() -> None:
    assert socket_url("http://localhost:8000") == "ws://localhost:8000/ws"
    assert socket_url("https://host/glm/") == "wss://host/glm/ws" and socket_url("ws://host/ws") == "ws://host/ws"
    with pytest.raises(GLMError, match="takes a URL"):
        socket_url("localhost:8000")
