"""The files of a task and their rows, as ids: what is asked, the choices or right answers, and the row as it was written.

Text becomes ids as GLM-130B's evaluation makes them: [MASK] and the like in it are masks. With icetk's vocabulary so are its
other special tokens, "eop" in the middle of a word among them, since its code does that; with a vocabulary of our own, words are
only words. Nothing here needs torch. What can't be read is a GLMError bad_data that names file and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import GLMError
from engine.evaluation.task import GenerationTask, LanguageModelTask, MultipleChoiceTask, RowPrompt, Task
from engine.glm.tokenizer import MASKS, Tokenizer

_MASK = re.compile("(" + "|".join(map(re.escape, MASKS)) + ")")
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file. A language model's row is a document: `inputs` are its ids, `words` and `size` its text's blank-separated
    words and bytes. size is 0 where only ids are given."""

    number: int  # in its file, from 0
    inputs: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...] = ()
    label: int = 0
    targets: tuple[tuple[int, ...], ...] = ()
    raw: dict[str, Any] = field(default_factory=dict)
    choice_sizes: tuple[int, ...] = ()  # bytes of the choices' texts
    words: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A file of a group, or one prompt over it: what is measured by itself."""

    path: Path
    name: str  # relative to the task's path
    group: str
    prompt: str | None = None


def task_files(task: Task, data: Path) -> dict[str, list[TaskFile]]:
    """Group -> files, each once for every prompt. A group may be empty. GLMError bad_data if there is no folder for the task."""
    base = data / task.path
    if not base.is_dir():
        raise GLMError("bad_data", f"Task {task.name}: there is no folder {base} with its rows.", field="data")
    groups: dict[str, list[TaskFile]] = {}
    for group, pattern in task.file_pattern.items():
        try:
            found = sorted(path for path in base.glob(pattern) if path.is_file())
        except (ValueError, NotImplementedError) as error:
            message = f"Task {task.name}: {pattern!r} is no pattern of files: {error}."
            raise GLMError("bad_data", message, field="file_pattern") from error
        groups[group] = [
            TaskFile(path, path.relative_to(base).as_posix(), group, prompt)
            for path in found
            for prompt in (task.prompts or [None])
        ]
    return groups


def read_rows(file: TaskFile, task: Task, tokenizer: Tokenizer, limit: int | None = None) -> list[Row]:
    """The first `limit` rows, or all; of a plain text, which is one document, its first `limit` lines."""
    if isinstance(task, LanguageModelTask) and file.path.suffix not in (".json", ".jsonl"):
        text = _read_text(file.path)
        text = text if limit is None else "".join(line + "\n" for line in text.split("\n")[:limit])
        return [_document(0, text, encode(tokenizer, text), {})]
    rows: list[Row] = []
    for line, item in _items(file.path):
        if limit is not None and len(rows) == limit:
            break
        try:
            if file.prompt is not None:
                item = _prompted(item, task.prompts[file.prompt])
            row = _row(len(rows), item, task, tokenizer)
        except GLMError as error:
            raise GLMError("bad_data", f"{file.path}, line {line}: {error.message}", field="data") from error
        if row is not None:
            rows.append(row)
    return rows


def encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """See the module."""
    if tokenizer.num_image_tokens:
        return tuple(tokenizer.encode(text))
    ids: list[int] = []
    for number, part in enumerate(_MASK.split(text)):
        ids += [tokenizer.special[part]] if number % 2 else tokenizer.encode_plain(part)
    return tuple(ids)


def _items(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line from 1, its object) of JSON lines; blank lines are none."""
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except ValueError as error:
            raise GLMError("bad_data", f"{path}, line {number} is no JSON: {error}.", field="data") from error
        if not isinstance(item, dict):
            raise GLMError("bad_data", f"{path}, line {number} is no JSON object.", field="data")
        yield number, item


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise GLMError("bad_data", f"{path} can't be read: {error}.", field="data") from error


def _row(number: int, item: dict[str, Any], task: Task, tokenizer: Tokenizer) -> Row | None:
    if isinstance(task, LanguageModelTask):
        ids, text = _ids(item, "text", tokenizer), item.get("text_pretokenized", item.get("text"))
        return _document(number, text if isinstance(text, str) else None, ids, item) if ids else None
    inputs = _ids(item, "inputs", tokenizer)
    if isinstance(task, GenerationTask):
        return Row(number, inputs, targets=_lists(item, "targets", tokenizer), raw=item)
    assert isinstance(task, MultipleChoiceTask)
    choices = _lists(item, "choices", tokenizer)
    label = item.get("label")
    if not choices or not all(choices):
        raise GLMError("bad_data", "choices are missing, or one of them is empty.")
    if type(label) is not int or not 0 <= label < len(choices):
        raise GLMError("bad_data", f"label must be the number of a choice, 0 to {len(choices) - 1}, not {label!r}.")
    texts = item.get("choices_pretokenized", ())
    sizes = tuple(len(text.encode()) for text in texts if isinstance(text, str))
    return Row(number, inputs, choices, label, raw=item, choice_sizes=sizes)


def _document(number: int, text: str | None, ids: Sequence[int], item: dict[str, Any]) -> Row:
    """Words are counted as GLM-130B counts them, by single blanks."""
    words = 0 if text is None else len(text.strip().split(" "))
    return Row(number, tuple(ids), raw=item, words=words, size=0 if text is None else len(text.encode()))


def _ids(item: dict[str, Any], key: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Of `key` (ids; a text where it is a document's) or `key_pretokenized` (a text)."""
    value = item.get(key, item.get(f"{key}_pretokenized"))
    if isinstance(value, str):
        return encode(tokenizer, value)
    if isinstance(value, list) and all(type(token) is int for token in value):
        return tuple(value)
    raise GLMError("bad_data", f"{key} or {key}_pretokenized is missing, or is neither ids nor a text.")


def _lists(item: dict[str, Any], key: str, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    values = item.get(key, item.get(f"{key}_pretokenized"))
    if isinstance(values, str):
        values = [values]
    if not isinstance(values, list):
        raise GLMError("bad_data", f"{key} or {key}_pretokenized is missing, or is no list.")
    return tuple(_ids({key: value}, key, tokenizer) for value in values)


def _prompted(item: dict[str, Any], prompt: RowPrompt) -> dict[str, Any]:
    """A raw row as a row of the task format; one that is such a row already stays as it is."""
    if "inputs" in item or "inputs_pretokenized" in item:
        return item
    made = dict(item) | {"inputs_pretokenized": _filled(prompt.inputs, item)}
    for key in ("choices", "targets"):
        wanted = getattr(prompt, key)
        if isinstance(wanted, str):
            found = item.get(wanted)
            made[f"{key}_pretokenized"] = found if isinstance(found, list) else [_field(item, wanted)]
        elif wanted is not None:
            made[f"{key}_pretokenized"] = [_filled(text, item) for text in wanted]
        if f"{key}_pretokenized" in made:
            made.pop(key, None)
    if prompt.choices is not None:
        label = item.get(prompt.label)
        made["label"] = prompt.labels.get(str(label), label)
    return made


def _filled(template: str, item: dict[str, Any]) -> str:
    return _FIELD.sub(lambda found: _field(item, found.group(1)), template)


def _field(item: dict[str, Any], name: str) -> str:
    value = item.get(name)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise GLMError("bad_data", f"The prompt asks for the field {name}, which the row hasn't, or not as a text.")
    return str(value)
