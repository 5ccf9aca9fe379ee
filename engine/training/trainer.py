"""Train a GLM by a recipe, on DeepSpeed, in a run folder that can be stopped at any moment and resumed.

A run folder holds `tokenizer.model`, `held_out.jsonl`, `metrics.jsonl` (one line a step), `state/` (weights, optimiser and
place in the data at the last save) and, at the end, `model/`, the folder that --model reads. The loss is the sum over
target tokens divided by their number in the whole step. Started under torchrun, several processes share each step's rows.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import torch

from engine.errors import GLMError
from engine.glm import checkpoint
from engine.glm.config import Config, resolve_model
from engine.glm.model import GLM, initialise
from engine.glm.tokenizer import VOCABULARY_FILE, Tokenizer
from engine.training.data import Batch, Mixture, load_source, pack
from engine.training.held_out import digest, held_out_rows
from engine.training.loss import LossModule
from engine.training.objective import Objective
from engine.training.optimizer import MuonAdamW, parameter_groups
from engine.training.recipe import Recipe
from engine.training.sources import find_source, read_rows, row_text
from engine.training.vocabulary import train_vocabulary

log = logging.getLogger(__name__)


class Trainer:
    """One run. `prepare` makes what the folder lacks, `train` goes on from the last saved step to the end."""

    def __init__(self, recipe: Recipe, data: Path, folder: Path) -> None:
        self.recipe, self.data, self.folder = recipe, Path(data), Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.step = 0

    def prepare(self) -> None:
        """Split off the held-out questions first, then train the vocabulary if there is none yet."""
        for name in {name for stage in self.recipe.stages for name in stage.weights}:
            find_source(self.data, name)  # a missing one is said before hours of work
        options, seed = self.recipe.held_out, self.recipe.seed
        if options is not None and options.seed is not None:
            seed = options.seed
        held = held_out_rows(self.data, options, seed) if options else []
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in held)
        path = self.folder / "held_out.jsonl"
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise GLMError(
                "bad_data", f"{path} differs from what recipe and data give now: a new run needs a new folder."
            )
        path.write_text(text, encoding="utf-8")
        self.held_out = held
        log.info("%d questions held out, sha256 %s", len(held), digest(held))
        if self.recipe.initial is not None and not self.tokenizer_file.exists():
            initial = resolve_model(self.recipe.initial)
            if replace(Config.load(initial), name=self.recipe.config.name) != self.recipe.config:
                message = f"{initial} has another shape than {self.recipe.model}: it can't be gone on from."
                raise GLMError("bad_model", message, field="initial")
            shutil.copyfile(initial / VOCABULARY_FILE, self.tokenizer_file)
        if not self.tokenizer_file.exists():
            if self.recipe.vocabulary is None:
                raise GLMError(
                    "bad_data", f"{self.tokenizer_file} is missing and the recipe trains none.", field="vocabulary"
                )
            log.info("training the vocabulary")
            train_vocabulary(self._vocabulary_texts(), self.tokenizer_file, self.recipe.config.vocabulary)
        self.tokenizer = Tokenizer.load(self.tokenizer_file)

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / "tokenizer.model"

    def _vocabulary_texts(self):
        vocabulary = self.recipe.vocabulary
        for name, times in vocabulary.sources.items():
            limit = vocabulary.limit_megabytes.get(name)
            texts = [row_text(row) for row in read_rows(self.data, name, int(limit * 1e6) if limit else None)]
            for _ in range(int(times)):
                yield from texts
            yield from texts[: int(len(texts) * (times - int(times)))]

    def train(self) -> Path:
        """Run to the last step; returns the model folder."""
        import deepspeed

        # gloo needs no shared-memory kernel; without this DeepSpeed would compile one.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if not torch.distributed.is_initialized():
            rendezvous = (
                {} if "MASTER_ADDR" in os.environ else {"init_method": f"file://{self.folder.resolve()}/.rendezvous"}
            )
            (self.folder / ".rendezvous").unlink(missing_ok=True)
            os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists, even for one process without a launcher
            backend = "nccl" if torch.accelerator.is_available() else "gloo"
            deepspeed.init_distributed(
                dist_backend=backend,
                rank=self.rank,
                world_size=self.world,
                auto_mpi_discovery=False,
                verbose=False,
                **rendezvous,
            )
        recipe = self.recipe
        torch.manual_seed(recipe.seed)
        if recipe.initial is None:
            model = GLM(recipe.config)
            initialise(model, torch.Generator().manual_seed(recipe.seed))
        else:
            model = checkpoint.load(resolve_model(recipe.initial)).train()
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())
        options = recipe.optimizer
        groups = parameter_groups(model, options.learning_rate, options.embedding_learning_rate, options.weight_decay)
        optimizer = MuonAdamW(groups, options.learning_rate)
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        engine, *_ = deepspeed.initialize(
            model=LossModule(model),
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": 1,
                "gradient_accumulation_steps": 1,
                "gradient_clipping": options.clip,
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 10**9,
            },
            dist_init_required=False,
        )
        held = frozenset(row["question"] for row in self.held_out)
        names = sorted({name for stage in recipe.stages for name in stage.weights})
        sources = [load_source(self.data, name, recipe.sources.get(name, {}), self.tokenizer, held) for name in names]
        objective = Objective(recipe.span.mask_share, recipe.span.masked_tokens, recipe.span.mean_span)
        mixture = Mixture(sources, recipe.config.chat, self.tokenizer, objective, recipe.seed * 1000 + self.rank)
        self._restore(model, optimizer, mixture)
        stage, stream = None, None
        while self.step < recipe.steps:
            if recipe.stage_at(self.step) is not stage:
                stage = recipe.stage_at(self.step)
                stream = mixture.samples(stage.name, [stage.weights.get(name, 0.0) for name in names], stage.length)
            self._one_step(engine, optimizer, pack(stream, max(1, stage.rows // self.world), stage.length), stage.name)
            if self.step % recipe.save_every == 0 or self.step == recipe.steps:
                self._save(model, optimizer, mixture)
        if self.rank == 0:
            about = {"steps": str(self.step), "held_out": digest(self.held_out)}
            checkpoint.save(model, self.folder / "model", tokenizer=self.tokenizer_file, about=about)
        return self.folder / "model"

    def _one_step(self, engine, optimizer, batch: Batch, stage: str) -> None:
        started = time.perf_counter()
        share = self.recipe.learning_rate_share(self.step)
        for group, peak in zip(optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        loss_sum, count = engine(batch, self.recipe.optimizer.embedding_gradient_share(self.step))
        counts = torch.tensor([count, float(loss_sum.detach()), batch.tokens], dtype=torch.float64)
        if self.world > 1:
            torch.distributed.all_reduce(counts)
        # DeepSpeed averages gradients over ranks: multiply by their number to get the sum.
        engine.backward(loss_sum * (self.world / float(counts[0])))
        norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
        engine.step()
        self.step += 1
        if self.rank == 0:
            seconds = time.perf_counter() - started
            line = {
                "step": self.step,
                "stage": stage,
                "loss": round(float(counts[1] / counts[0]), 4),
                "targets": int(counts[0]),
                "tokens": int(counts[2]),
                "learning_rate_share": round(share, 4),
                "gradient_norm": round(float(norm), 4),
                "seconds": round(seconds, 3),
            }
            with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            if self.step % 10 == 0:
                log.info(
                    "step %d/%d %s loss %.3f %.0f tokens/s",
                    self.step,
                    self.recipe.steps,
                    stage,
                    line["loss"],
                    line["tokens"] / seconds,
                )

    def _save(self, model: GLM, optimizer: MuonAdamW, mixture: Mixture) -> None:
        """Write the state beside the old one, then rename: a killed save leaves the old one whole."""
        path = self.folder / f"state-{self.rank}.pt"
        state = {
            "step": self.step,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "mixture": mixture.state(),
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def _restore(self, model: GLM, optimizer: MuonAdamW, mixture: Mixture) -> None:
        path = self.folder / f"state-{self.rank}.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=model.device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        mixture.restore(state["mixture"])
        self.step = state["step"]
        self._trim_metrics()
        log.info("resumed at step %d", self.step)

    def _trim_metrics(self) -> None:
        """Steps behind the saved one are done again: their old lines go."""
        path = self.folder / "metrics.jsonl"
        if self.rank == 0 and path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text("".join(line for line in lines if json.loads(line)["step"] <= self.step), encoding="utf-8")
