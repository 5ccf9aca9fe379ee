"""Train a GLM by a recipe, on DeepSpeed, in a run folder that can be stopped at any moment and resumed.

A run folder holds `tokenizer.model`, `held_out.jsonl` and `splits/` (what is kept away from training), `metrics.jsonl` (one
line a step, and one for each event), `state/` (weights, optimiser and place in the data at the last saves), `checkpoints/`
if the recipe asks for them, and at the end `model/`, the folder that --model reads. The loss is the sum over target tokens
divided by their number in the whole step, of all processes. Started under torchrun or the deepspeed launcher, several
processes share each step's rows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from engine.errors import GLMError
from engine.glm import checkpoint, lora
from engine.glm.adapter import read_adapter
from engine.glm.config import Config, resolve_model
from engine.glm.machine import matmul_peak
from engine.glm.model import GLM, initialise
from engine.glm.tokenizer import VOCABULARY_FILE, Tokenizer
from engine.training.backend import Backend
from engine.training.data import Mixture, load_source
from engine.training.grid import Grid
from engine.training.held_out import digest, held_out_rows
from engine.training.left_out import LeftOut
from engine.training.objective import Objective
from engine.training.progress import Line
from engine.training.recipe import Recipe, Stage
from engine.training.shares_of_tokens import stage_weights
from engine.training.sources import find_source, read_rows, row_text
from engine.training.splits import FOLDER as SPLITS
from engine.training.splits import make_splits
from engine.training.state import States, state_name
from engine.training.streams import Streams
from engine.training.training_flops import attended, training_flops
from engine.training.vocabulary import train_vocabulary
from engine.training.watch import Watch

log = logging.getLogger(__name__)

TOKENS = "tokens"  # in the run folder: what `tokenize` made
_PEAK_SECONDS = 0.5  # for measuring the machine


class Trainer:
    """One run. `prepare` makes what the folder lacks, `train` goes on from the last saved step to the end.

    rank among `world` processes: see launch.join.
    """

    def __init__(self, recipe: Recipe, data: Path, folder: Path, rank: int = 0, world: int = 1) -> None:
        self.recipe, self.data, self.folder = recipe, Path(data), Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rank, self.world = rank, world
        self.step = 0
        self._stop_wanted = False

    def stop(self) -> None:
        """Let `train` save its state and end behind the step that it is at; for a signal handler, in any of the processes."""
        self._stop_wanted = True

    def prepare(self) -> None:
        """Split off the held-out questions first, then train the vocabulary if there is none yet. Rank 0 writes."""
        self._check_initial()
        for name in self._names():
            find_source(self.data, name)  # a missing one is said before hours of work
        options, seed = self.recipe.held_out, self.recipe.seed
        if options is not None and options.seed is not None:
            seed = options.seed
        self.held_out = held_out_rows(self.data, options, seed) if options else []
        self.splits = make_splits(self.data, self.recipe.splits, self.recipe.sources, seed)
        if self.rank == 0:
            self._prepare_folder()
        self._barrier()
        self.tokenizer = Tokenizer.load(self.tokenizer_file, self.recipe.config.num_image_tokens)

    def _check_initial(self) -> None:
        if self.recipe.initial is None:
            return
        initial = resolve_model(self.recipe.initial)
        if replace(Config.load(initial), name=self.recipe.config.name) != self.recipe.config:
            message = f"{initial} has another shape than {self.recipe.model}: it can't be gone on from."
            raise GLMError("bad_model", message, field="initial")
        if self.recipe.lora is None and (read_adapter(initial) or self.recipe.config.quantization):
            what = "an adapter" if read_adapter(initial) else "quantised"
            message = f"{initial} is {what}: only an adapter (lora) can be trained from it."
            raise GLMError("unsupported", message, field="lora")

    def _prepare_folder(self) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.held_out)
        path = self.folder / "held_out.jsonl"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise GLMError(
                "bad_data", f"{path} differs from what recipe and data give now: a new run needs a new folder."
            )
        path.write_text(text, encoding="utf-8")
        log.info("%d questions held out, sha256 %s", len(self.held_out), digest(self.held_out))
        if self.splits.rows:
            self.splits.write(self.folder / SPLITS)
            log.info("%d splits held out, sha256 %s", len(self.splits.rows), self.splits.digest())
        if self.recipe.initial is not None and not self.tokenizer_file.exists():
            shutil.copyfile(resolve_model(self.recipe.initial) / VOCABULARY_FILE, self.tokenizer_file)
        if not self.tokenizer_file.exists():
            if self.recipe.vocabulary is None:
                raise GLMError(
                    "bad_data", f"{self.tokenizer_file} is missing and the recipe trains none.", field="vocabulary"
                )
            log.info("training the vocabulary")
            train_vocabulary(self._vocabulary_texts(), self.tokenizer_file, self.recipe.config.vocabulary)

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / "tokenizer.model"

    def _names(self) -> list[str]:
        return sorted({name for stage in self.recipe.stages for name in stage.sources})

    def _barrier(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()

    def _vocabulary_texts(self) -> Iterator[str]:
        vocabulary = self.recipe.vocabulary
        assert vocabulary is not None
        for name, times in vocabulary.sources.items():
            limit = vocabulary.limit_megabytes.get(name)
            texts = [row_text(row) for row in read_rows(self.data, name, int(limit * 1e6) if limit else None)]
            for _ in range(int(times)):
                yield from texts
            yield from texts[: int(len(texts) * (times - int(times)))]

    def train(self) -> Path | None:
        """Run to the last step; returns the model folder, None if `stop` ended it before, with its state saved.

        GLMError internal for a run that does not come to rest.
        """
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        self._grid = grid = Grid.make(self.rank, self.world, recipe.scale.tensor_parallel)
        if recipe.initial is None:
            model = GLM(recipe.config, ranks=grid.tensor)
            initialise(model, torch.Generator().manual_seed(recipe.seed))
        else:
            model = checkpoint.load(resolve_model(recipe.initial), ranks=grid.tensor, training=True)
            model.config = replace(model.config, name=recipe.config.name)
        if recipe.lora is not None and lora.adapter_settings(model) is None:
            lora.add(model, recipe.lora.settings(), torch.Generator().manual_seed(recipe.seed))
        self._backend = Backend(recipe, model, grid)
        held = frozenset(row["question"] for row in self.held_out)
        names = self._names()
        tokens = self.folder / TOKENS if (self.folder / TOKENS).is_dir() else None
        sources = [
            load_source(
                self.data,
                name,
                recipe.sources.get(name, {}),
                self.tokenizer,
                held,
                tokens=tokens,
                seed=recipe.seed,
                left=self.splits.left.get(name),
            )
            for name in names
        ]
        sizes = {source.name: len(source.rows) for source in sources}
        objective = Objective(recipe.span.mask_share, recipe.span.masked_tokens, recipe.span.mean_span)

        def make(stream: int) -> Mixture:
            return Mixture(sources, recipe.config.chat, self.tokenizer, objective, recipe.seed * 1000 + stream)

        self._streams = Streams(recipe.scale.streams, grid.data_rank, grid.data_size, make)
        guard = recipe.guard
        self._watch = Watch(guard.factor, guard.window, guard.patience)
        self._rewinds = 0
        self._states = States(self.folder / "state", recipe.keep_states, self.rank, self._barrier)
        if (last := self._states.latest()) is not None:
            self._restore(last, data=True)
            log.info("resumed at step %d", self.step)
        self._trim_metrics()
        # Of all processes together, if they are as fast as this one and not on the same cores.
        self._peak = self.world * matmul_peak(_PEAK_SECONDS, device=model.device) if self.rank == 0 else 0.0
        with Line(recipe.steps) if self.rank == 0 else contextlib.nullcontext() as line:
            while self.step < recipe.steps:
                if self._all_stop():
                    log.info("stopped at step %d of %d", self.step, recipe.steps)
                    return None
                stage = recipe.stage_at(self.step)
                weights = stage_weights(stage, sizes)
                metrics = self._one_step(stage, [weights.get(name, 0.0) for name in names])
                if line is not None and metrics is not None:
                    line(metrics)
        self._tell_left_out()
        return self._write_model(self.folder / "model")

    def _all_stop(self) -> bool:
        """Whether `stop` was called in one of the processes, which all must know at the same step; the state is saved then."""
        wanted = self._stop_wanted
        if self.world > 1:
            flag = torch.tensor([float(wanted)], device=self._backend.model.device)
            torch.distributed.all_reduce(flag)
            wanted = bool(flag.item())
        last = self._states.latest() if wanted else None
        if wanted and self.step and (last is None or last.name != state_name(self.step)):
            self._states.save(self.step, self._save)
        return wanted

    def _tell_left_out(self) -> None:
        """Rows that could not be used, of all processes: in the log, and in left_out.json with the places of the first ones."""
        last = self._states.latest()
        if self.rank or last is None:
            return
        left_out = LeftOut()
        for own in _trainer_states(last):
            for state in own["streams"].values():
                left_out.merge(state["left_out"])
        for entry in left_out.table():
            log.warning("%(source)s: %(rows)d rows left out, %(reason)s; the first: %(first)s", entry)
        (self.folder / "left_out.json").write_text(json.dumps(left_out.table(), ensure_ascii=False, indent=1) + "\n")

    def _one_step(self, stage: Stage, weights: list[float]) -> dict[str, Any] | None:
        """What was written to metrics.jsonl; None after a return to a saved state."""
        started = time.perf_counter()
        recipe, backend = self.recipe, self._backend
        share = recipe.learning_rate_share(self.step)
        multiple = max(self._grid.data_size, recipe.scale.streams)
        batch = self._streams.batch(stage.name, weights, recipe.rows_at(self.step, multiple), stage.length)
        targets, tokens = self._sum(float((batch.targets >= 0).sum()), float(batch.tokens))
        own = backend.gradients(batch, int(targets), recipe.optimizer.embedding_gradient_share(self.step))
        loss = self._sum(own)[0] / targets
        norm = backend.norm_before()
        line: dict[str, Any] = {"step": self.step + 1, "stage": stage.name, "loss": _rounded(loss)}
        embedding_norm = backend.embedding_norm()
        skipped = backend.skipped
        if self._watch.before(loss, norm) == "good":
            norm = backend.update(share) or norm
        else:
            backend.discard()
            line["event"] = "skip"
        if backend.skipped > skipped:  # fp16's scaling is looking for its place
            line["event"] = "skip"
        self.step += 1
        seconds = time.perf_counter() - started
        line |= {
            "targets": int(targets),
            "tokens": int(tokens),
            "learning_rate_share": round(share, 4),
            "gradient_norm": None if norm is None else _rounded(norm),
            "seconds": round(seconds, 3),
        }
        if embedding_norm is not None:
            line["embedding_gradient_norm"] = _rounded(embedding_norm)
        if backend.loss_scale is not None:
            line["loss_scale"] = backend.loss_scale
        if self.rank == 0 and recipe.lora is None:  # whose share of operations is another
            operations = training_flops(
                recipe.config, int(tokens), int(targets), attended(batch.document) * self._grid.data_size
            )
            line["peak_share"] = round(operations / seconds / self._peak, 4)
        self._write(line)
        if "event" not in line and self._watch.after(loss, norm) == "rewind":
            self._rewind(loss)
            return None
        # Before the state: a run that is killed between the two comes here again from the state before.
        if recipe.snapshot_every and self.step % recipe.snapshot_every == 0:
            self._write_model(self.folder / "checkpoints" / f"step-{self.step:08d}")
        if self.step % recipe.save_every == 0 or self.step == recipe.steps:
            self._states.save(self.step, self._save)
        return line

    def _sum(self, *values: float) -> list[float]:
        """Over all copies of the model."""
        if self._grid.data_size == 1:
            return list(values)
        device = self._backend.model.device
        kind = torch.float64 if device.type != "mps" else torch.float32
        total = torch.tensor(values, dtype=kind, device=device)
        return self._grid.sum_over_copies(total).tolist()

    def _rewind(self, loss: float) -> None:
        """Back to the last saved weights, on with the data from here: the batches that led here don't come again."""
        last = self._states.latest()
        if last is None or self._rewinds == self.recipe.guard.rewinds:
            message = (
                f"The loss was {loss:.4g} at step {self.step}, after {self._rewinds} returns to a saved state. "
                "A lower learning rate or a longer warm-up may help."
            )
            raise GLMError("internal", message)
        self._rewinds += 1
        spoiled = self.step
        self._restore(last, data=False)
        log.warning("the loss was %.4g at step %d: back to step %d, on with new data", loss, spoiled, self.step)
        self._write({"step": spoiled, "event": "rewind", "to": self.step})

    def _write(self, line: dict[str, Any]) -> None:
        if self.rank == 0:
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _write_model(self, folder: Path) -> Path:
        with self._backend.whole_model() as model:
            if model is not None:
                about = {"steps": str(self.step), "held_out": digest(self.held_out), "splits": self.splits.digest()}
                if self.recipe.lora is None:
                    checkpoint.save(model, folder, tokenizer=self.tokenizer_file, about=about)
                else:
                    assert self.recipe.initial is not None
                    name, base = self.recipe.config.name, self.recipe.initial
                    lora.save(model, folder, base=base, name=name, tokenizer=self.tokenizer_file, about=about)
        self._barrier()
        return folder

    def _save(self, folder: Path) -> None:
        """This rank's files of a state."""
        self._backend.save(folder)
        own = {
            "step": self.step,
            "losses": self._watch.losses,
            "rewinds": self._rewinds,
            "streams": self._streams.state(),
        }
        if own["streams"] and self._grid.tensor.rank == 0:
            torch.save(own, folder / f"trainer-{self.rank}.pt")

    def _restore(self, folder: Path, *, data: bool) -> None:
        """data: go back in the data, too."""
        states = _trainer_states(folder)
        if data:
            self._streams.restore({number: state for own in states for number, state in own["streams"].items()})
            self._rewinds = states[0]["rewinds"]
        self._backend.load(folder)
        self._watch.forget(states[0]["losses"])
        self.step = states[0]["step"]

    def _trim_metrics(self) -> None:
        """Steps behind the saved one are done again: their old lines go, and a line that was cut off."""
        path = self.folder / "metrics.jsonl"
        if self.rank == 0 and path.exists():
            kept = []
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if not line.endswith("\n") or json.loads(line)["step"] > self.step:
                    break
                kept.append(line)
            path.write_text("".join(kept), encoding="utf-8")


def _trainer_states(folder: Path) -> list[dict[str, Any]]:
    """What the ranks wrote beside weights and optimiser."""
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("trainer-*.pt"))]


def _rounded(number: float) -> float | None:
    """For JSON, which has no inf and nan."""
    return round(number, 4) if abs(number) < float("inf") else None
