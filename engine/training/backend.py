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
from engine.training.data import Batch
from engine.training.loss import LossModule
from engine.training.optimizer import MuonAdamW, adamw_groups, parameter_groups
from engine.training.recipe import Recipe
from engine.training.streams import rows_of

_WEIGHTS = "weights.pt"
_PARTS, _UNIVERSAL = "zero", "universal"  # folders of a state from stage 1 on: each rank's part; any number of ranks'
_LOSS_SCALE_POWER = 16  # fp16 begins at 2 ** 16 and halves it until nothing overflows


class Backend:
    """model: whole, in fp32; it belongs to the backend from then on."""

    def __init__(self, recipe: Recipe, model: GLM, rank: int, world: int) -> None:
        import deepspeed

        self.recipe, self.model, self.rank, self.world = recipe, model, rank, world
        self._zero = recipe.scale.zero
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if device is not None:
            model.to(device)
        if recipe.scale.compile:
            for layer in model.layers:
                layer.compile()
        module = LossModule(model, checkpointing=recipe.scale.checkpointing)
        if self._zero == 3:  # the logits read the embedding outside of its own forward
            deepspeed.zero.register_external_parameter(module, model.word_embeddings.weight)
        self.optimizer = _optimizer(recipe, model)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        try:
            self._engine, *_ = deepspeed.initialize(
                model=module, optimizer=self.optimizer, config=settings(recipe), dist_init_required=False
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
            # DeepSpeed averages over ranks: times their number it is the sum.
            self._engine.backward(loss * (self.world / count))
            total += float(loss.detach())
        return total

    def norm_before(self) -> float | None:
        """Of the gradient of the whole step, if it can be known before the update."""
        if self._zero:
            return None
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        if self.world > 1:
            for gradient in gradients:
                torch.distributed.all_reduce(gradient)
                gradient /= self.world
        return float(torch.nn.utils.get_total_norm(gradients))

    def embedding_norm(self) -> float | None:
        """Of the embedding's gradient, where `norm_before` is known."""
        gradient = self.model.word_embeddings.weight.grad
        return None if self._zero or gradient is None else float(gradient.norm())

    def update(self, share: float) -> float | None:
        """One step of the optimiser with a share of the peak learning rates. Returns the gradient's norm where it is known now."""
        for group, peak in zip(self._engine.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * share
        self._engine.step()
        return float(self._engine.get_global_grad_norm()) if self._zero else None

    def discard(self) -> None:
        """Forget the gradients instead."""
        self._engine.zero_grad()

    @property
    def loss_scale(self) -> float | None:
        """Of fp16."""
        return float(self._engine.loss_scale()) if self.recipe.scale.precision == "fp16" else None

    @property
    def skipped(self) -> int:
        """Updates that fp16's scaling left out, since the start of this process."""
        return int(self._engine.skipped_steps)

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[GLM | None]:
        """The model on the CPU in rank 0, None in the others; all must ask."""
        import deepspeed

        if self._zero < 3:
            yield self.model if self.rank == 0 else None
            return
        copy = GLM(self.model.config) if self.rank == 0 else None
        targets = dict(copy.named_parameters()) if copy is not None else {}
        for name, parameter in self.model.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]), torch.no_grad():
                if copy is not None:
                    targets[name].copy_(parameter)
        yield copy

    def save(self, folder: Path) -> None:
        """Weights and optimiser; called in all ranks."""
        if self._zero:
            self._engine.save_checkpoint(str(folder), tag=_PARTS, save_latest=False)
        elif self.rank == 0:
            state = {"model": self._trained(), "optimizer": self.optimizer.state_dict()}
            torch.save(state, folder / _WEIGHTS)

    def _trained(self) -> dict[str, torch.Tensor]:
        """What changes in training: an adapter's base doesn't."""
        if self.recipe.lora is None:
            return self.model.state_dict()
        return {name: matrix.detach() for name, matrix in lora.named_parameters(self.model).items()}

    def load(self, folder: Path) -> None:
        """What `save` wrote, by any number of ranks. GLMError bad_data if it was another kind of stage's, or can't be
        rearranged."""
        whole = folder / _WEIGHTS
        if whole.exists() != (self._zero == 0):
            message = f"{folder} was saved with another ZeRO stage: go on with that one."
            raise GLMError("bad_data", message, field="scale.zero")
        if self._zero:
            tag = _PARTS
            if len(list((folder / _PARTS).glob("*zero_pp_rank_*_optim_states.pt"))) != self.world:
                tag = _UNIVERSAL
                if self.rank == 0:
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
        state = torch.load(whole, map_location=self.model.device, weights_only=True)
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
        "gradient_clipping": recipe.optimizer.clip,
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


def _optimizer(recipe: Recipe, model: GLM) -> torch.optim.Optimizer:
    options = recipe.optimizer
    rates = options.learning_rate, options.embedding_learning_rate, options.weight_decay
    if options.kind == "muon":
        return MuonAdamW(parameter_groups(model, *rates), options.learning_rate)
    if recipe.lora is not None:
        return torch.optim.AdamW(lora.parameters(model), rates[0], betas=(0.9, 0.95), weight_decay=rates[2])
    return torch.optim.AdamW(adamw_groups(model, *rates), options.learning_rate, betas=(0.9, 0.95))
