"""The GLM network, exactly as GLM-130B computes it.

Each layer: a = LN(x); x = a * alpha + attention(a); m = LN(x); x = m * alpha + feed_forward(m), alpha = sqrt(2 * layers)
(DeepNorm, arXiv 2203.00555: the residual is the LayerNorm's output). The projection to query, key and value is
interleaved per head. Rotary embedding over the whole head, "half" variant. GeGLU with exact gelu on the second half.
Logits from the tied embedding. Biases everywhere.

The caller hands in the attention (see attention.py), so that training, full forward passes and cached decoding are one
code path; `run` goes from any layer to any other, so that a long prefill can pause between layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.glm.attention import MaskedAttention, prefix_visible
from engine.glm.config import Config, Quantization, check_split
from engine.glm.parallel import SINGLE, Ranks, partition, scale_slice, slices
from engine.glm.projection import Projection
from engine.glm.quantize import QuantizedLinear

Attention = Callable[[int, Tensor, Tensor, Tensor], Tensor]
Rotary = tuple[Tensor, Tensor]


def rotary_table(positions: Tensor, head_dim: int, precision: str) -> Rotary:
    """(cos, sin), each positions.shape + (head_dim,). "fp16" rounds every step to fp16 as GLM-130B's own code does."""
    dtype = torch.float16 if precision == "fp16" else torch.float32
    exponents = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    inverse_frequencies = (1.0 / 10000**exponents).to(dtype)
    angles = positions.to(dtype).unsqueeze(-1) * inverse_frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(states: Tensor, rotary: Rotary) -> Tensor:
    """Rotate (batch, length, heads, head_dim) by the tables of `GLM.rotary`."""
    cos, signed_sin = rotary
    first, second = states.chunk(2, dim=-1)
    # In place: of a long prompt these are among the largest tensors there are.
    return (states * cos).add_(torch.cat((second, first), dim=-1).mul_(signed_sin))


# Weights are not drawn when a module is made: `initialise` or checkpoint.load writes every one of them, and drawing 130
# billion numbers to throw them away takes minutes.
class Linear(Projection, nn.Linear):
    """packed: another form of the weight that takes its place for serving (prepacked.py)."""

    packed: Projection | None = None

    def reset_parameters(self) -> None:
        pass

    def product(self, states: Tensor) -> Tensor:
        """Without the bias."""
        return F.linear(states, self.weight) if self.packed is None else self.packed.product(states)

    def forward(self, states: Tensor) -> Tensor:
        """With the bias."""
        return F.linear(states, self.weight, self.bias) if self.packed is None else self.packed(states)

    def plus(self, states: Tensor, residual: Tensor) -> Tensor:
        return super().plus(states, residual) if self.packed is None else self.packed.plus(states, residual)

    def gated(self, states: Tensor) -> Tensor:
        return super().gated(states) if self.packed is None else self.packed.gated(states)


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        pass


def linear(
    columns: int, rows: int, quantization: Quantization | None, split_columns: bool, ranks: Ranks, **factory: Any
) -> Linear | QuantizedLinear:
    """A rank's part of a layer's matrix that has `rows` x `columns` in that rank."""
    if quantization is None:
        return Linear(columns, rows, **factory)
    whole = columns * ranks.size if split_columns else columns
    groups = quantization.groups(whole, split_columns)
    if split_columns:
        part = scale_slice(groups, ranks.rank, ranks.size)
        groups = part.stop - part.start
    return QuantizedLinear(columns, rows, quantization.bits, groups, **factory)


def product(states: Tensor, weight: Tensor) -> Tensor:
    """states times the transposed weight. A weight of another type is converted some rows at a time, for it may be large."""
    if weight.dtype == states.dtype:
        return F.linear(states, weight)
    return torch.cat([F.linear(states, rows.to(states.dtype)) for rows in weight.split(2048)], dim=-1)


class SelfAttention(nn.Module):
    """Projections around an attention that the caller brings. Of several ranks, each has its share of the heads."""

    def __init__(self, config: Config, layer: int, ranks: Ranks, **factory: Any) -> None:
        super().__init__()
        self.layer, self.heads, self.head_dim = layer, config.heads // ranks.size, config.head_dim
        self.ranks = ranks
        own = config.hidden // ranks.size
        self.query_key_value = linear(config.hidden, 3 * own, config.quantization, False, ranks, **factory)
        self.dense = linear(own, config.hidden, config.quantization, True, ranks, **factory)

    def forward(
        self,
        states: Tensor,
        rotary: Rotary,
        attention: Attention,
        residual: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """The residual, if there is one, plus what attention brings; to the `wanted` positions alone, if they are given."""
        batch, length, _ = states.shape
        # (batch, length, heads, 3, head_dim): the three parts of a head lie side by side
        mixed = self.query_key_value(self.ranks.enter(states)).view(batch, length, -1, 3, self.head_dim)
        query, key, value = mixed.unbind(3)
        context = attention(self.layer, rotate(query, rotary), rotate(key, rotary), value).reshape(batch, length, -1)
        if wanted is not None:
            context, residual = (part if part is None else part[:, wanted] for part in (context, residual))
        return summed(self.dense, context, self.ranks, residual)


class FeedForward(nn.Module):
    """GeGLU: u, g = halves of W x; output = V (u * gelu(g)). Of several ranks, each has its share of the inner width."""

    def __init__(self, config: Config, ranks: Ranks, **factory: Any) -> None:
        super().__init__()
        self.ranks = ranks
        own = config.inner // ranks.size
        self.dense_h_to_4h = linear(config.hidden, 2 * own, config.quantization, False, ranks, **factory)
        self.dense_4h_to_h = linear(own, config.hidden, config.quantization, True, ranks, **factory)

    def forward(self, states: Tensor, residual: Tensor | None = None) -> Tensor:
        """The residual, if there is one, plus the output."""
        inner = self.dense_h_to_4h.gated(self.ranks.enter(states))
        return summed(self.dense_4h_to_h, inner, self.ranks, residual)


def summed(layer: Linear | QuantizedLinear, states: Tensor, ranks: Ranks, residual: Tensor | None = None) -> Tensor:
    """A layer that is split by columns: the ranks' products are summed, bias and residual are added once."""
    if ranks.size == 1:
        return layer(states) if residual is None else layer.plus(states, residual)
    total = ranks.reduce(layer.product(states)) + layer.bias
    return total if residual is None else residual + total


class Layer(nn.Module):
    """One transformer layer, post-LN with DeepNorm's residual.

    whole: runs the layer in one call where it can, and gives None where it can't (native_layer.py).
    """

    whole: Callable[[Tensor, Rotary, Attention, Tensor | None], Tensor | None] | None = None

    def __init__(self, config: Config, layer: int, ranks: Ranks, **factory: Any) -> None:
        super().__init__()
        self.alpha = math.sqrt(2 * config.layers)
        self.input_layernorm = nn.LayerNorm(config.hidden, eps=config.layernorm_epsilon, **factory)
        self.attention = SelfAttention(config, layer, ranks, **factory)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden, eps=config.layernorm_epsilon, **factory)
        self.mlp = FeedForward(config, ranks, **factory)

    def forward(self, hidden: Tensor, rotary: Rotary, attention: Attention, wanted: Tensor | None = None) -> Tensor:
        """wanted: (n,) positions whose hidden states are asked for; None: all."""
        found = None if self.whole is None else self.whole(hidden, rotary, attention, wanted)
        if found is not None:
            return found
        states = self.input_layernorm(hidden)
        hidden = self.attention(states, rotary, attention, states * self.alpha, wanted)
        states = self.post_attention_layernorm(hidden)
        return self.mlp(states, states * self.alpha)


class GLM(nn.Module):
    """A GLM of any size, or one rank's part of it. hidden states: (batch, length, hidden), the same in all ranks.

    Made without weights: see `Linear`. With `config.quantization` the layers' matrices are QuantizedLinear.
    """

    def __init__(
        self,
        config: Config,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        ranks: Ranks = SINGLE,
    ) -> None:
        super().__init__()
        check_split(config, ranks.size)
        self.config, self.ranks = config, ranks
        factory = {"device": device, "dtype": dtype}
        self.word_embeddings = Embedding(config.vocabulary // ranks.size, config.hidden, **factory)
        self.layers = nn.ModuleList(Layer(config, layer, ranks, **factory) for layer in range(config.layers))
        self.final_layernorm = nn.LayerNorm(config.hidden, eps=config.layernorm_epsilon, **factory)
        # Runs all layers in one call where it can, and gives None where it can't (native_layer.py).
        self.whole: Callable[[Tensor, Rotary, Attention], Tensor | None] | None = None
        self.head: Callable[[Tensor], Tensor] | None = None  # in place of the product with the embedding

    @property
    def device(self) -> torch.device:
        return self.word_embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden states. The embedding may be stored in a shorter one."""
        return self.final_layernorm.weight.dtype

    def embed(self, ids: Tensor) -> Tensor:
        """(batch, length) ids -> (batch, length, hidden)."""
        if self.ranks.size == 1:
            return self.word_embeddings(ids).to(self.dtype)
        own = self.word_embeddings.num_embeddings
        local = ids - self.ranks.rank * own
        elsewhere = (local < 0) | (local >= own)
        hidden = self.word_embeddings(local.masked_fill(elsewhere, 0)).to(self.dtype)
        return self.ranks.reduce(hidden.masked_fill(elsewhere.unsqueeze(-1), 0))

    def rotary(self, positions: Tensor) -> Rotary:
        """What `rotate` takes for positions (batch, length): cos, and sin with the sign of its half, in the type of the hidden
        states; each (batch, length, 1, head_dim)."""
        cos, sin = rotary_table(positions, self.config.head_dim, self.config.rotary_precision)
        first, second = sin.chunk(2, dim=-1)
        cos, signed_sin = (table[:, :, None].to(self.dtype) for table in (cos, torch.cat((-first, second), dim=-1)))
        return cos, signed_sin

    def ready_layers(self, first: int, last: int | None) -> Iterable[Layer]:
        """Layers first .. last-1, one after the other, each with its weights in place while it is the current one."""
        return self.layers[first:last]

    def run(
        self,
        hidden: Tensor,
        rotary: Rotary,
        attention: Attention,
        first: int = 0,
        last: int | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Layers first .. last-1 on hidden states. wanted: (n,) positions that are asked for; of the others the model's last layer
        only makes keys and values, and (batch, n, hidden) comes back from it."""
        if self.whole is not None and (first, last) in ((0, None), (0, self.config.layers)):
            found = self.whole(hidden, rotary, attention)
            if found is not None:
                return found
        for number, layer in enumerate(self.ready_layers(first, last), first):
            if wanted is not None and number == self.config.layers - 1:
                hidden = layer(hidden, rotary, attention, wanted)
            else:
                hidden = layer(hidden, rotary, attention)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states after the last layer -> (..., vocabulary), in every rank."""
        states = self.ranks.enter(self.final_layernorm(hidden))
        own = product(states, self.word_embeddings.weight) if self.head is None else self.head(states)
        return self.ranks.gather(own)

    def forward(
        self, ids: Tensor, positions: Tensor, context_length: Tensor | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """Logits (batch, length, vocabulary) of whole sequences.

        ids, positions: (batch, length). The mask is GLM's own for context_length (batch,), or `visible`
        (batch, 1, length, length), True where a row sees a column.
        """
        if visible is None:
            assert context_length is not None
            visible = prefix_visible(ids.shape[1], context_length)
        return self.logits(self.run(self.embed(ids), self.rotary(positions), MaskedAttention(visible)))


def initialise(model: GLM, generator: torch.Generator) -> None:
    """Fresh weights: DeepNorm's Xavier gains ((2 * layers) ** -0.5 for value, output and feed-forward, 1 for query and
    key), zero biases, embedding N(0, 0.02) (GLM-130B, section 2.2). A rank gets its part of what one rank
    alone would get."""
    config = model.config
    small = (2 * config.layers) ** -0.5
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in GLM(config).named_parameters()}
    with torch.no_grad():
        for name, own in model.named_parameters():
            # One whole matrix at a time: the numbers don't depend on the ranks.
            parameter = own if own.shape == shapes[name] else own.new_empty(shapes[name])
            if "layernorm" in name:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            elif name.endswith("bias"):
                parameter.zero_()
            elif name == "word_embeddings.weight":
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                # A fused matrix stands for several square or gated ones: its gain counts one part's rows.
                parts = 3 if "query_key_value" in name else 2 if "dense_h_to_4h" in name else 1
                rows, columns = parameter.shape
                std = math.sqrt(2.0 / (rows // parts + columns))
                parameter.normal_(0.0, std, generator=generator)
                if "query_key_value" in name:
                    parameter.view(config.heads, 3, config.head_dim, columns)[:, 2].mul_(small)
                else:
                    parameter.mul_(small)
            if parameter is not own:
                ranks = model.ranks
                pieces = slices(partition(name), parameter.shape, ranks.rank, ranks.size)
                own.copy_(torch.cat([parameter[piece] for piece in pieces]))
