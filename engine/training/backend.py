"""DeepSpeed around our loss: forward and backward of a step in parts, one update, whole weights, and states on disk.

Stage 0 keeps weights and optimiser whole in every rank: any of our optimisers, states that load on any number of ranks, and
gradients that can be looked at before the update. Stages 1 to 3 are ZeRO's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from engine.errors import GLMError
from engine.glm import lora
from engine.glm.model import GLM
from engine.glm.parallel import WHOLE, join, partition
from engine.training.data import Batch
from engine.training.grid import Grid
from engine.training.loss import LossModule
from engine.training.optimizer import MuonAdamW, adamw_groups, parameter_groups
from engine.training.recipe import Recipe
from engine.training.resharding import resharded
from engine.training.streams import rows_of

_WEIGHTS = "weights-{}.pt"
_PARTS, _UNIVERSAL = "zero", "universal"  # folders of a state from stage 1 on: each rank's part; any number of ranks'
_LOSS_SCALE_POWER = 16  # fp16 begins at 2 ** 16 and halves it until nothing overflows


class Backend:
    """model: in fp32, this rank's part of it (grid.tensor); it belongs to the backend from then on."""

    def __init__(self, recipe: Recipe, model: GLM, grid: Grid) -> None:
        import deepspeed

        self.recipe, self.model, self.grid = recipe, model, grid
        # Parameters that ranks have parts of; the others are the same in all of them.
        self._split = {
            name for name, _ in model.named_parameters() if grid.tensor.size > 1 and partition(name) != WHOLE
        }
        for name, parameter in model.named_parameters():
            parameter.tensor_model_parallel = name in self._split  # for DeepSpeed's norm
        self._zero, self._norm = recipe.scale.zero, 0.0
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if device is not None:
            model.to(device)
        if recipe.scale.compile:
            for layer in model.layers:
                layer.compile()
        module = LossModule(model, checkpointing=recipe.scale.checkpointing)
        if self._zero == 3:  # the logits read the embedding outside of its own forward
            deepspeed.zero.register_external_parameter(module, model.word_embeddings.weight)
        self.optimizer = _optimizer(recipe, model, grid)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        try:
            self._engine, *_ = deepspeed.initialize(
                model=module,
                optimizer=self.optimizer,
                config=settings(recipe),
                dist_init_required=False,
                mpu=grid if grid.tensor.size > 1 else None,
            )
        except ValueError as error:  # "Type fp16 is not supported on your device."
            raise GLMError("unsupported", f"DeepSpeed refuses: {error}", field="scale.precision") from error
        if self._zero == 0:
            self._engine.enable_backward_allreduce = False  # done below, where the norm is known before the update

    def gradients(self, batch: Batch, count: int, embedding_gradient: float) -> float:
        """Forward and backward of this rank's rows. count: target tokens of all ranks. Returns this rank's share of the loss's
        sum."""
        total = 0.0
        size = self.recipe.scale.micro_rows or len(batch.ids)
        for start in range(0, len(batch.ids), size):
            loss, _ = self._engine(rows_of(batch, slice(start, start + size)), embedding_gradient)
            # Gradients are averaged over the copies: times their number it is the sum.
            self._engine.backward(loss * (self.grid.data_size / count))
            total += float(loss.detach())
        return total

    def norm_before(self) -> float | None:
        """Of the gradient of the whole step, if it can be known before the update."""
        if self._zero:
            return None
        for gradient in self._gradients.values():
            self.grid.sum_over_copies(gradient).div_(self.grid.data_size)
        self._norm = self._norm_of(self._gradients)
        return self._norm

    def embedding_norm(self) -> float | None:
        """Of the embedding's gradient, where `norm_before` is known."""
        name = "word_embeddings.weight"
        gradient = self._gradients.get(name)
        return None if self._zero or gradient is None else self._norm_of({name: gradient})

    @property
    def _gradients(self) -> dict[str, torch.Tensor]:
        found = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        return {name: gradient for name, gradient in found.items() if gradient is not None}

    def _norm_of(self, gradients: dict[str, torch.Tensor]) -> float:
        """Of whole gradients, whose parts ranks may have."""
        own = torch.nn.utils.get_total_norm([gradient for name, gradient in gradients.items() if name in self._split])
        same = torch.nn.utils.get_total_norm([gradients[name] for name in gradients if name not in self._split])
        return float((self.grid.tensor.reduce(own.square()) + same.square()).sqrt())

    def update(self, share: float) -> float | None:
        """One step of the optimiser with a share of the peak learning rates. Returns the gradient's norm where it is known now."""
        for group, peak in zip(self._engine.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        if self._zero == 0 and self._norm > self.recipe.optimizer.clip:
            for gradient in self._gradients.values():
                gradient.mul_(self.recipe.optimizer.clip / self._norm)
        self._engine.step()
        return float(self._engine.get_global_grad_norm()) if self._zero else None

    def discard(self) -> None:
        """Forget the gradients instead."""
        self._engine.zero_grad()

    @property
    def loss_scale(self) -> float | None:
        """Of fp16."""
        # The engine itself tells the setting, which is 0 for a scale that moves.
        return float(self._engine.optimizer.loss_scale) if self.recipe.scale.precision == "fp16" else None

    @property
    def skipped(self) -> int:
        """Updates that fp16's scaling left out, since the start of this process."""
        return int(self._engine.skipped_steps)

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[GLM | None]:
        """The model on the CPU in rank 0, None in the others; all must ask."""
        import deepspeed

        ranks = self.grid.tensor
        if self._zero < 3 and ranks.size == 1:
            yield self.model if self.grid.rank == 0 else None
            return
        copy = GLM(self.model.config) if self.grid.rank == 0 else None
        targets = dict(copy.named_parameters()) if copy is not None else {}
        for name, parameter in self.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self._zero == 3), torch.no_grad():
                whole: torch.Tensor = parameter
                if ranks.size > 1:
                    parts = [torch.empty_like(parameter) for _ in range(ranks.size)]
                    torch.distributed.all_gather(parts, parameter.contiguous(), group=ranks.group)
                    whole = join(partition(name), parts)
                if copy is not None:
                    targets[name].copy_(whole)
        yield copy

    def save(self, folder: Path) -> None:
        """Weights and optimiser; called in all ranks."""
        if self._zero:
            self._engine.save_checkpoint(str(folder), tag=_PARTS, save_latest=False)
        elif self.grid.data_rank == 0:
            state = {"model": self._trained(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, folder / _WEIGHTS.format(self.grid.tensor.rank))

    def _trained(self) -> dict[str, torch.Tensor]:
        """What changes in training: an adapter's base doesn't."""
        if self.recipe.lora is None:
            return self.model.state_dict()
        return {name: matrix.detach() for name, matrix in lora.named_parameters(self.model).items()}

    def load(self, folder: Path) -> None:
        """What `save` wrote, by any number of ranks. GLMError bad_data if it was another kind of stage's, or can't be
        rearranged."""
        saved = len(list(folder.glob(_WEIGHTS.format("*"))))
        if bool(saved) != (self._zero == 0):
            message = f"{folder} was saved with another ZeRO stage: go on with that one."
            raise GLMError("bad_data", message, field="scale.zero")
        if self._zero:
            tag = _PARTS
            parts = len(list((folder / _PARTS).glob("*zero_pp_rank_*_optim_states.pt")))
            if parts != self.grid.data_size * self.grid.tensor.size:
                if self.grid.tensor.size > 1:
                    message = f"{folder} was saved by {parts} processes: with tensor_parallel it takes as many again."
                    raise GLMError("bad_data", message, field="scale.tensor_parallel", limit=parts)
                tag = _UNIVERSAL
                if self.grid.rank == 0:
                    rearrange(folder)
                torch.distributed.barrier()
                self._engine._config.load_universal_checkpoint = True
            groups = [_hyperparameters(group) for group in self._engine.optimizer.param_groups]
            self._engine.load_checkpoint(str(folder), tag=tag)
            self._engine._config.load_universal_checkpoint = False
            if tag == _UNIVERSAL:  # ZeRO-3 gave all groups the first one's weight decay, and one step counter for all
                for group, own in zip(self._engine.optimizer.param_groups, groups, strict=True):
                    group.update(own)
                for state in self.optimizer.state.values():
                    if "step" in state:
                        state["step"] = torch.as_tensor(state["step"]).clone()
            return
        if saved == self.grid.tensor.size:
            own = folder / _WEIGHTS.format(self.grid.tensor.rank)
            state = torch.load(own, map_location=self.model.device, weights_only=True)
        else:
            paths = [folder / _WEIGHTS.format(rank) for rank in range(saved)]
            names = {parameter: name for name, parameter in self.model.named_parameters()}
            ordered = [names[one] for group in self.optimizer.param_groups for one in group["params"]]
            state = resharded(paths, ordered, self.grid.tensor)
        self.model.load_state_dict(state["model"], strict=self.recipe.lora is None)
        self.optimizer.load_state_dict(state["optimizer"])


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def rearrange(folder: Path) -> None:
    """Write the ranks' parts of a state again, by DeepSpeed's own tool, in the form that any number of ranks reads.

    GLMError bad_data if it can't be done. Once done it stays there.
    """
    if (folder / _UNIVERSAL).exists():
        return
    new = folder / f".{_UNIVERSAL}"
    shutil.rmtree(new, ignore_errors=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"]
    command += ["--input_folder", str(folder / _PARTS), "--output_folder", str(new)]
    # It would take the launcher's variables for its own.
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise GLMError("bad_data", f"{folder} can't be rearranged for other processes: {reason}", field="out")
    new.rename(folder / _UNIVERSAL)


def settings(recipe: Recipe) -> dict[str, Any]:
    """DeepSpeed's configuration for a recipe."""
    scale = recipe.scale
    zero: dict[str, Any] = {"stage": scale.zero}
    if scale.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    found: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # a step ends where `update` is called
        "gradient_clipping": recipe.optimizer.clip if scale.zero else 0.0,  # stage 0's are clipped in `update`
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if scale.precision == "bf16":
        found["bf16"] = {"enabled": True}
    elif scale.precision == "fp16":
        found["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": _LOSS_SCALE_POWER}
    return found


def _optimizer(recipe: Recipe, model: GLM, grid: Grid) -> torch.optim.Optimizer:
    options = recipe.optimizer
    rates = options.learning_rate, options.embedding_learning_rate, options.weight_decay
    if options.kind == "muon":
        groups = parameter_groups(model, *rates)
        return MuonAdamW(groups, options.learning_rate, rank=grid.rank, copies=grid.data_size)
    if recipe.lora is not None:
        return torch.optim.AdamW(lora.parameters(model), rates[0], betas=(0.9, 0.95), weight_decay=rates[2])
    return torch.optim.AdamW(adamw_groups(model, *rates), options.learning_rate, betas=(0.9, 0.95))
