"""A film strip of a run: the same prompts answered by each of its checkpoints, to see when it learned what.

    strip = asyncio.run(shoot(run))          # asks new checkpoints only, and keeps what they said in film_strip.json
    film_strip_page.write(strip, run)        # film_strip.html, film_strip.md

Checkpoints are the model folders `checkpoints/step-00000100`, ... and `model`. Answers are kept by the hash of the weights. It
works while the run goes on: a folder that is not finished has no config.json yet, and is left for the next time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from engine.errors import GLMError
from engine.glm import blanks
from engine.glm.config import Config, weights_hash
from engine.glm.tokenizer import MASKS, Tokenizer
from engine.serving.pool import Pool
from engine.training.curves import METRICS, SMOOTH, read, smoothed
from engine.training.report import NEW_TOKENS, ask_one, plain
from engine.training.whole_file import write_bytes

log = logging.getLogger(__name__)

CACHE = "film_strip.json"

# Errors that belong to this prompt and these weights, and come again; any other is not an answer.
_LASTING = ("non_finite_logits", "unsupported", "prompt_too_long")


class Prompt(BaseModel):
    """mode: "chat", or "fill" for a text with blanks. wanted: words that a right answer has in it, or None."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    mode: Literal["chat", "fill"]
    text: str
    wanted: str | None = None


PROMPTS = tuple(
    Prompt(mode=mode, text=text, wanted=wanted)
    for mode, text, wanted in (
        ("fill", "The capital of France is [MASK].", "Paris"),
        ("fill", "The capital of [MASK] is Tokyo.", "Japan"),
        ("fill", "法国的首都是[MASK]。", "巴黎"),
        ("fill", "[MASK]的首都是东京。", "日本"),
        ("fill", "Rome is the capital of [MASK]. The capital of Japan is [MASK].", "Italy. The capital of Japan is Tokyo"),
        ("fill", "The opposite of hot is [MASK], and the opposite of big is [MASK].", "cold, and the opposite of big is small"),
        ("fill", "床前明月光，[MASK]。", "疑是地上霜"),
        ("fill", "Once upon a time there was [sMASK] And they lived happily ever after.", None),
        ("fill", "The Eiffel Tower is [gMASK]", "Paris"),
        ("fill", "长城是[gMASK]", None),
        ("chat", "What is the capital of France?", "Paris"),
        ("chat", "法国的首都是哪里？", "巴黎"),
        ("chat", "Hello!", None),
        ("chat", "你好", None),
        ("chat", "Who are you?", "GLM"),
        ("chat", "你是谁？", "GLM"),
        ("chat", "Why is the sky blue?", None),
        ("chat", "“床前明月光”的下一句是什么？", "疑是地上霜"),
        ("chat", "What is 2 + 3?", "= 5"),
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cell:
    """What a checkpoint said. fills: of the blanks. problem: why it said nothing, as a sentence."""

    answer: str
    fills: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A checkpoint. step, loss (mean of the last steps before it): None if metrics.jsonl doesn't tell. cells: one a prompt."""

    name: str
    step: int | None
    loss: float | None
    weights_sha256: str
    cells: tuple[Cell, ...]

    def right(self, prompts: Sequence[Prompt]) -> int:
        """Answers that have the wanted words in them."""
        return sum(is_right(prompt, cell) is True for prompt, cell in zip(prompts, self.cells, strict=True))


@dataclass(frozen=True, slots=True)
class Strip:
    """Columns in the order of the run. left_out: sentences about checkpoints that could not be asked."""

    prompts: tuple[Prompt, ...]
    columns: tuple[Column, ...]
    left_out: tuple[str, ...] = ()


def is_right(prompt: Prompt, cell: Cell) -> bool | None:
    """None where nothing is wanted."""
    return None if prompt.wanted is None else plain(prompt.wanted) in plain(cell.answer)


def checkpoints(run: Path) -> list[tuple[str, int | None, Path]]:
    """(name, step, folder) of the finished model folders of a run in order. The step of `model` is not known here."""
    found = []
    for folder in (Path(run) / "checkpoints").glob("step-*"):
        step = re.fullmatch(r"step-(\d+)", folder.name)
        if step and (folder / "config.json").is_file():
            found.append((folder.name, int(step[1]), folder))
    found.sort(key=lambda one: one[1])
    last = Path(run) / "model"
    return [*found, ("model", None, last)] if (last / "config.json").is_file() else found


async def shoot(run: Path, prompts: Sequence[Prompt] = PROMPTS, most: int | None = None) -> Strip:
    """Ask the checkpoints what they were not asked before. most: so many of them, evenly spread, the last one included.

    GLMError bad_data for a run without checkpoints; unknown_mask; those of Pool that are not the checkpoint's own fault.
    """
    run = Path(run)
    chosen = _spread(checkpoints(run), most)
    if not chosen:
        raise GLMError("bad_data", f"{run} has no checkpoints and no model yet.", field="run")
    said = _read_cache(run / CACHE)
    columns: list[Column] = []
    left_out: list[str] = []
    for name, step, folder in chosen:
        try:
            digest = weights_hash(folder)
            known = said.setdefault(digest, {})
            new = [prompt for prompt in prompts if (prompt.mode, prompt.text) not in known]
            if new:
                log.info("asking %s", name)
                known.update(await _asked(folder, new))
                _write_cache(run / CACHE, said)
        except (FileNotFoundError, GLMError) as error:
            if isinstance(error, GLMError) and error.kind not in ("bad_model", "model_not_found"):
                raise
            left_out.append(f"{name} was left out: {error}")  # removed meanwhile, say; the others can be asked
            log.warning(left_out[-1])
            continue
        cells = tuple(known[prompt.mode, prompt.text] for prompt in prompts)
        columns.append(Column(name, step, None, digest, cells))
    return Strip(tuple(prompts), tuple(_from_metrics(columns, run / METRICS)), tuple(left_out))


def load_prompts(path: Path) -> tuple[Prompt, ...]:
    """Read a list from YAML or JSON: texts, or {"mode", "text", "wanted"}. A text with a mask is one to fill, else chat.

    GLMError bad_data, naming the entry.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError as error:
        raise GLMError("bad_data", f"There is no file {path}.", field="prompts") from error
    except (ValueError, yaml.YAMLError) as error:  # of which are UnicodeDecodeError and JSONDecodeError
        message = (
            f"{path} is not readable {'JSON' if path.suffix == '.json' else 'YAML'}: {' '.join(str(error).split())}"
        )
        raise GLMError("bad_data", message, field="prompts") from error
    if not isinstance(rows, list) or not rows:
        raise GLMError("bad_data", f"{path} must be a list of prompts.", field="prompts")
    rows = [_with_mode(row) if isinstance(row, str) else row for row in rows]
    try:
        prompts = TypeAdapter(tuple[Prompt, ...]).validate_python(rows)
    except ValidationError as error:
        first = error.errors()[0]
        number, *where = first["loc"]
        what = ".".join(map(str, where)) or "it"
        raise GLMError(
            "bad_data", f"{path}, prompt {int(number) + 1}: {what}: {first['msg']}.", field="prompts"
        ) from error
    return tuple(dict.fromkeys(prompts))


def _with_mode(text: str) -> dict:
    return {"mode": "fill" if any(mask in text for mask in MASKS) else "chat", "text": text}


def _spread(found: list, most: int | None) -> list:
    if most is None or len(found) <= most:
        return found
    if most == 1:
        return found[-1:]
    return [found[round(number * (len(found) - 1) / (most - 1))] for number in range(most)]


async def _asked(folder: Path, prompts: Sequence[Prompt]) -> dict[tuple[str, str], Cell]:
    config, tokenizer = Config.load(folder), Tokenizer.load(folder)
    for prompt in prompts:
        if prompt.mode == "fill":
            blanks.parse(prompt.text, tokenizer)  # an unknown mask is said before the model is loaded

    async def one(prompt: Prompt) -> Cell:
        try:
            asked = await ask_one(pool, tokenizer, config, prompt.mode, prompt.text)
        except GLMError as error:
            if error.kind not in _LASTING:
                raise
            return Cell("", problem=str(error))
        return Cell(asked.answer, asked.fills if prompt.mode == "fill" else ())

    async with Pool(folder, slots=min(16, len(prompts)), queue=len(prompts)) as pool:
        cells = await asyncio.gather(*(one(prompt) for prompt in prompts))
    return {(prompt.mode, prompt.text): cell for prompt, cell in zip(prompts, cells, strict=True)}


def _from_metrics(columns: list[Column], metrics: Path) -> list[Column]:
    """With the losses and the model's step. The last checkpoint goes where the model is the same: written at the same step (the
    files differ in the order of their metadata, so that hashes don't tell)."""
    if not metrics.exists():
        return columns
    curves = read(metrics)
    losses = smoothed(curves.get("loss"), SMOOTH)
    found: list[Column] = []
    for column in columns:
        step = column.step
        if column.name == "model" and curves.steps:
            step = curves.steps[-1]
            if found and found[-1].step == step and found[-1].cells == column.cells:
                found.pop()
        place = 0 if step is None else bisect_right(curves.steps, step)
        found.append(replace(column, step=step, loss=losses[place - 1] if place else None))
    return found


def _read_cache(path: Path) -> dict[str, dict[tuple[str, str], Cell]]:
    """Nothing from a file that is not ours, or of other settings: it is asked again then."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["new_tokens"] != NEW_TOKENS:
            return {}
        return {
            digest: {
                (row["mode"], row["text"]): Cell(row["answer"], tuple(row["fills"]), row["problem"]) for row in rows
            }
            for digest, rows in kept["answers"].items()
        }
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        log.warning("%s can't be read: all checkpoints are asked again", path)
        return {}


def _write_cache(path: Path, said: dict[str, dict[tuple[str, str], Cell]]) -> None:
    answers = {
        digest: [
            {"mode": mode, "text": text, "answer": cell.answer, "fills": list(cell.fills), "problem": cell.problem}
            for (mode, text), cell in cells.items()
        ]
        for digest, cells in said.items()
        if cells
    }
    kept = {"new_tokens": NEW_TOKENS, "answers": answers}
    write_bytes(path, (json.dumps(kept, ensure_ascii=False, indent=1) + "\n").encode())
