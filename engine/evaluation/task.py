"""A task file: one YAML file that names the rows of a benchmark, how they are shown to the model and what is measured.

The keys are those of GLM-130B's task files, in kebab or snake case (`file-pattern`, `file_pattern`), so its own files can be
read; keys marked (own) are ours. What a key does not say has GLM-130B's default. An unknown key, a key of another type of task,
a value that can't be: GLMError bad_data, in one sentence that names file and key.

    name: "CoLA"
    type: "mul"                      # mul: multiple choice; gen: generation; lm: language modelling
    path: "glue_cola"                # folder of the rows, in the folder that --data names
    file-pattern:                    # group -> glob in `path`; a single glob is the group "all"
      validation: "**/validation.jsonl"

Every file that a group's pattern finds is measured by itself: GLM-130B keeps one folder for each prompt of a task, so a group's
max, median and average are over prompts. With `prompts` (own) one file of raw rows serves several prompts.

Rows, one JSON object a line. Each of the first three is text (`inputs_pretokenized`) or ids (`inputs`):
    mul  inputs, choices: [...], label: number of the right choice
    gen  inputs, targets: [...]      a list, even of one
    lm   files ending in .json or .jsonl: {"text": "..."} a row, each row a document of its own; any other file is one document
A [MASK] in the inputs ([gMASK] with use-task-mask) is the place of the answer; without one it comes after the inputs.

`module` names a class that replaces how a type of task asks and measures, derived from one of engine.evaluation.kinds: LAMBADA,
CrowS-Pairs, StereoSet and Pile are in engine/evaluation/custom. GLM-130B's own names of them are understood (MODULES).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from engine.errors import GLMError
from engine.serving.protocol import MAX_BEAMS, MAX_STOP_STRINGS

STRATEGIES = ("BaseStrategy", "BeamSearchStrategy")
TASKS = Path(__file__).parent / "tasks"  # the task files that are here
ALL = "all"  # the group of a pattern without a name

# What GLM-130B's own task files call the classes that are here. None: what its class did is done for every task.
MODULES: dict[str, str | None] = {
    "evaluation.MultiChoiceTask": None,
    "evaluation.GenerationTask": None,
    "evaluation.LanguageModelTask": None,
    "tasks.mmlu.task.MMLU": None,
    "tasks.lambada.task.LAMBADA": "engine.evaluation.custom.lambada.Lambada",
    "tasks.ethnic.crows-pair.tasks.CrowsPairTask": "engine.evaluation.custom.crows_pairs.CrowsPairs",
    "tasks.ethnic.stereoset.tasks.StereoSetTask": "engine.evaluation.custom.stereoset.StereoSet",
    "tasks.language-modeling.pile.Pile": "engine.evaluation.custom.pile.Pile",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RowPrompt(_Strict):
    """(own) How a raw row becomes a row of the format above. `{field}` in a text is the row's field of that name.

    choices: texts, or the name of the field that holds them. label: the name of the field with the number of the right choice,
    or with a word that `labels` turns into a number. targets: texts, or the name of the field that holds them.
    """

    inputs: str
    choices: list[str] | str | None = None
    label: str = "label"
    labels: dict[str, int] = {}
    targets: list[str] | str | None = None


class _Task(_Strict):
    name: str = Field(min_length=1)
    path: str = "."
    module: str | None = None
    metrics: list[str] = Field(min_length=1)  # see engine.evaluation.metrics
    use_task_mask: bool = False  # [gMASK], whose answer's positions run on; else [MASK], whose answer has the mask's
    use_multitask_encoding: bool = False  # of GLM-130B's format; it never supported it, nor do we
    unidirectional: bool = False  # the model sees only what is before a token
    max_seq_length: int = Field(2048, ge=8)  # tokens of prompt and answer; the beginning of longer inputs is cut off
    file_pattern: dict[str, str] = {ALL: "**/*.json*"}
    micro_batch_size: int = Field(1, ge=1)  # of GLM-130B's format; rows run as they fit here, so it changes nothing
    save_prediction: bool = False  # of GLM-130B's format; predictions are always kept here
    prompts: dict[str, RowPrompt] = {}  # (own) name -> prompt; each is measured as a file of its own
    description: str | None = None  # (own) what it measures, for reports

    @model_validator(mode="before")
    @classmethod
    def _one_pattern(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("file_pattern"), str):
            return values | {"file_pattern": {ALL: values["file_pattern"]}}
        return values

    @model_validator(mode="after")
    def _agrees(self) -> _Task:
        if self.unidirectional and not self.use_task_mask:
            raise ValueError("unidirectional needs use-task-mask: [MASK] is read with what follows it")
        if self.use_multitask_encoding:
            raise ValueError("use-multitask-encoding is not supported")
        return self


class MultipleChoiceTask(_Task):
    """Which of its choices the model finds most likely."""

    type: Literal["mul"]
    metrics: list[str] = Field(["Accuracy"], min_length=1)
    length_normalized: Literal["none", "tokens", "bytes"] = (
        "none"  # (own) log-probabilities divided by a choice's length
    )

    @model_validator(mode="after")
    def _one_way(self) -> MultipleChoiceTask:
        if self.unidirectional:
            raise ValueError("unidirectional is for gen and lm: choices are scored behind the whole text")
        return self


class GenerationTask(_Task):
    """What the model writes. Lengths in tokens; end tokens are eop and eos, always."""

    type: Literal["gen"]
    metrics: list[str] = Field(["EM", "F1"], min_length=1)
    sampling_strategy: Literal["BaseStrategy", "BeamSearchStrategy"] = "BaseStrategy"  # the most likely token; beams
    num_beams: int = Field(4, ge=1, le=MAX_BEAMS)
    length_penalty: float = Field(1.0, ge=-10, le=10)
    no_repeat_ngram_size: int = Field(3, ge=0)  # these three are of beam search only, as in GLM-130B
    min_gen_length: int = Field(0, ge=0)
    max_gen_length: int = Field(128, ge=1)
    end_tokens: list[Annotated[str, Field(min_length=1)]] = Field(
        [], max_length=MAX_STOP_STRINGS
    )  # texts that end an answer

    @model_validator(mode="after")
    def _lengths(self) -> GenerationTask:
        if self.max_gen_length + 2 >= self.max_seq_length:
            raise ValueError("max-gen-length leaves no room for inputs in max-seq-length")
        if self.min_gen_length > self.max_gen_length:
            raise ValueError("min-gen-length is above max-gen-length")
        if self.end_tokens and self.sampling_strategy != STRATEGIES[0]:
            raise ValueError("end-tokens are for BaseStrategy")
        return self


class LanguageModelTask(_Task):
    """How likely a text is: read in windows of max-seq-length, each but the first judged on its last generation-length tokens."""

    type: Literal["lm"]
    metrics: list[str] = Field(["PPL"], min_length=1)
    generation_length: int = Field(256, ge=1)

    @model_validator(mode="after")
    def _windows(self) -> LanguageModelTask:
        if self.generation_length > self.max_seq_length:
            raise ValueError("generation-length is above max-seq-length")
        if self.prompts:
            raise ValueError("prompts are for mul and gen")
        return self


Task = MultipleChoiceTask | GenerationTask | LanguageModelTask
_TASK: TypeAdapter[Task] = TypeAdapter(Annotated[Task, Field(discriminator="type")])


def load_task(path: str | Path) -> Task:
    """Read a task file. GLMError bad_data, field `task`."""
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise GLMError("bad_data", f"The task file {path} can't be read: {error}.", field="task") from error
    except yaml.YAMLError as error:
        raise GLMError("bad_data", f"{path} is not readable YAML: {error}", field="task") from error
    return parse_task(values, str(path))


def parse_task(values: Any, origin: str) -> Task:
    """Of what a YAML file holds. origin: what messages call it."""
    if not isinstance(values, dict):
        raise GLMError("bad_data", f"{origin} is no task: it holds no keys.", field="task")
    named: dict[str, Any] = {}
    for key, value in values.items():
        snake = str(key).replace("-", "_")
        if snake in named:
            raise GLMError("bad_data", f"{origin}: {snake} is given twice.", field="task")
        named[snake] = value
    try:
        return _TASK.validate_python(named)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("mul", "gen", "lm"))
        said = str(first["msg"]).removeprefix("Value error, ")
        raise GLMError("bad_data", f"{origin}: {where + ': ' if where else ''}{said}.", field="task") from error


def find_task_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files named, and all *.yaml in the folders named, in order; a name that is not there may be one of TASKS, as "mmlu" or
    "lambada/lambada.yaml". GLMError bad_data if there is none of it."""
    found: list[Path] = []
    for named in map(Path, paths):
        path = named if named.exists() else TASKS / named
        if path.is_dir():
            inside = sorted(path.glob("**/*.yaml"))
            if not inside:
                raise GLMError("bad_data", f"There is no task file (*.yaml) in {path}.", field="task")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise GLMError("bad_data", f"There is no task file or folder {named}.", field="task")
    return list(dict.fromkeys(found))


def settings_hash(task: Task) -> str:
    """sha256 (hex) of what decides a task's numbers, without its rows."""
    values = task.model_dump(mode="json", exclude={"micro_batch_size", "save_prediction", "description", "path"})
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
