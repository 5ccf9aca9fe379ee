"""GLM-130B's choices for stability and what stands against each: the models of an ablation, made of engine/glm's parts.

The recipe (arXiv 2210.02414, sections 2.2 and 3.3, appendix B): post-LN with DeepNorm's residual, a tenth of the gradient for the
looked-up embeddings, the softmax of the attention in fp32. Every other variant differs from it in one choice. All variants draw
the same random numbers for their weights and have the same number of parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.errors import GLMError
from engine.glm.attention import MaskedAttention, packed_visible
from engine.glm.config import Config
from engine.glm.model import GLM, Attention, Layer, Rotary, initialise
from engine.glm.parallel import SINGLE
from engine.training.data import Batch
from engine.training.loss import shrunk


@dataclass(frozen=True, slots=True)
class Variant:
    """norm: deepnorm; post, whose residual is not scaled; pre, whose residual no LayerNorm touches. embedding_gradient: the share
    that reaches the looked-up embeddings. softmax: the type that the attention's softmax runs in; all else is fp32."""

    name: str
    norm: Literal["deepnorm", "post", "pre"] = "deepnorm"
    embedding_gradient: float = 0.1
    softmax: Literal["fp32", "fp16"] = "fp32"


RECIPE = "glm-130b"
VARIANTS = {
    variant.name: variant
    for variant in (
        Variant(RECIPE),
        Variant("no-shrink", embedding_gradient=1.0),
        Variant("pre-ln", norm="pre"),
        Variant("post-ln", norm="post"),
        Variant("fp16-softmax", softmax="fp16"),
    )
}


def find_variant(name: str) -> Variant:
    """GLMError bad_request for a name that is none."""
    if name not in VARIANTS:
        raise GLMError(
            "bad_request", f"variants are {', '.join(VARIANTS)}: {name!r} is not among them.", field="variants"
        )
    return VARIANTS[name]


class PostNormLayer(Layer):
    """Post-LN as it was first: the same layer with an unscaled residual."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__(config, layer, SINGLE)
        self.alpha = 1.0


class PreNormLayer(Layer):
    """Pre-LN: x + attention(LN(x)), then x + feed_forward(LN(x)). The parts, and so the parameters, are the same."""

    def forward(self, hidden: Tensor, rotary: Rotary, attention: Attention) -> Tensor:
        hidden = hidden + self.attention(self.input_layernorm(hidden), rotary, attention)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


def make_model(variant: Variant, config: Config, seed: int) -> GLM:
    """The variant's model in fp32 with fresh weights: DeepNorm's for any of the same numbers, then with the gains that
    belong to the variant's norm. Post-LN: Xavier's, 1 everywhere. Pre-LN: 1, and (2 * layers) ** -0.5 for the two matrices that
    write into the residual (GPT-2's)."""
    model = GLM(config)
    if variant.norm == "post":
        model.layers = nn.ModuleList(PostNormLayer(config, layer) for layer in range(config.layers))
    elif variant.norm == "pre":
        model.layers = nn.ModuleList(PreNormLayer(config, layer, SINGLE) for layer in range(config.layers))
    initialise(model, torch.Generator().manual_seed(seed))
    if variant.norm != "deepnorm":
        _undo_gains(model, outputs=variant.norm == "post")
    return model


def _undo_gains(model: GLM, outputs: bool) -> None:
    """Divide DeepNorm's gain out again: of value and the gated matrix, and of those that write into the residual."""
    config = model.config
    gain = math.sqrt(2 * config.layers)
    with torch.no_grad():
        for layer in model.layers:
            fused = layer.attention.query_key_value.weight
            fused.view(config.heads, 3, config.head_dim, config.hidden)[:, 2].mul_(gain)
            layer.mlp.dense_h_to_4h.weight.mul_(gain)
            if outputs:
                layer.attention.dense.weight.mul_(gain)
                layer.mlp.dense_4h_to_h.weight.mul_(gain)


def scores_of(query: Tensor, key: Tensor) -> Tensor:
    """What the softmax sees, (batch, heads, length, length), of (batch, length, heads, head_dim)."""
    return query.transpose(1, 2) @ key.permute(0, 2, 3, 1) / math.sqrt(query.shape[-1])


class HalfSoftmaxAttention(MaskedAttention):
    """Attention whose scores are rounded to fp16 and whose softmax rounds to fp16 after every operation, backward too."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        scores = scores_of(query, key).masked_fill(~self.visible, -math.inf).half()
        powers = (scores - scores.detach().amax(dim=-1, keepdim=True)).exp()
        shares = powers / powers.sum(dim=-1, keepdim=True)  # a score beyond 65504 is inf, and inf - inf no number
        return (shares.to(value.dtype) @ value.transpose(1, 2)).transpose(1, 2)


def half_softmax_bound(largest_score: float, columns: int) -> float:
    """How far HalfSoftmaxAttention's context is from the exact one, at most, for values of at most 1.

    largest_score: of all absolute scores, below 65504. With u = 2 ** -11, fp16's unit roundoff, and t = 2 ** -25, half of its
    smallest number: a score is off by u S and its difference from the largest, at most 2 S (1 + u), by u times that, so each
    power is within exp(+-e), e = u S + 2 u S (1 + u), and is rounded once more (u, or t where it is tiny). The sum is at least 1,
    is added in fp32 and rounded once. So the shares, which add up to 1, are off by d in all before their own rounding:

        r = exp(e) (1 + u) - 1;  g = u + columns * 2 ** -23
        d = (2 (r (1 + columns t) / (1 - r) + columns t) + g) / (1 - g);  bound = d + u (1 + d) + columns t

    infinite where r reaches 1, from scores of about 470 on: there fp16 promises nothing.
    """
    unit, tiny = 2.0**-11, 2.0**-25
    exponent = unit * largest_score * (1 + 2 * (1 + unit))
    ratio = math.exp(min(exponent, 1.0)) * (1 + unit) - 1
    if ratio >= 1 or largest_score >= 65504:
        return math.inf
    total = unit + columns * 2.0**-23
    before = (2 * (ratio * (1 + columns * tiny) / (1 - ratio) + columns * tiny) + total) / (1 - total)
    return before + unit * (1 + before) + columns * tiny


@dataclass(frozen=True, slots=True)
class Inputs:
    """A batch as tensors."""

    ids: Tensor
    positions: Tensor
    targets: Tensor
    visible: Tensor

    @staticmethod
    def of(batch: Batch) -> Inputs:
        visible = packed_visible(torch.from_numpy(batch.document), torch.from_numpy(batch.context))
        return Inputs(
            *(torch.from_numpy(array) for array in (batch.ids, batch.positions, batch.targets)), visible=visible
        )


def variant_loss(model: GLM, inputs: Inputs, variant: Variant) -> tuple[Tensor, Tensor]:
    """(mean cross-entropy over the targets, the looked-up embeddings before their gradient is shrunk)."""
    looked_up = model.embed(inputs.ids)
    attention = (HalfSoftmaxAttention if variant.softmax == "fp16" else MaskedAttention)(inputs.visible)
    hidden = model.run(shrunk(looked_up, variant.embedding_gradient), model.rotary(inputs.positions), attention)
    asked = inputs.targets >= 0
    return F.cross_entropy(model.logits(hidden[asked]), inputs.targets[asked]), looked_up


class _ScoreMeter(MaskedAttention):
    """Remembers the largest absolute score that a row sees."""

    largest = 0.0

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen = scores_of(query, key).abs().masked_fill(~self.visible, 0.0)
        self.largest = max(self.largest, float(seen.max()))
        return super().__call__(layer, query, key, value)


@torch.no_grad()
def look_inside(model: GLM, inputs: Inputs) -> dict:
    """`largest_score` of the attention, and `hidden`: the root mean square of the hidden states behind each layer."""
    meter, rotary = _ScoreMeter(inputs.visible), model.rotary(inputs.positions)
    hidden, sizes = model.embed(inputs.ids), []
    for layer in model.layers:
        hidden = layer(hidden, rotary, meter)
        sizes.append(float(hidden.square().mean().sqrt()))
    return {"largest_score": meter.largest, "hidden": sizes}
