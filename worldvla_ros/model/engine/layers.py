# SPDX-License-Identifier: Apache-2.0
"""One decoder layer in three steps: project and store, attend, finish.

Queries, keys and values come from one matrix product, gate and up from another. `project` and
`finish` hold all small operations around the products, so that a compiler can fuse them; they
are functions of a layer, so that what is compiled for one serves all layers.
"""

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from worldvla_ros.model.engine.linear import DenseLinear, Fp8Linear
from worldvla_ros.model.transformer import Layer, rotate

HIDDEN = -1e9
"""Bias of a column that a row may not see. Finite, so that no row sums to NaN."""


class FusedLayer(nn.Module):
    """A layer of the transformer with its projections stacked; the transformer shares them."""

    def __init__(self, layer: Layer, linear: type[DenseLinear] | type[Fp8Linear]) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.num_heads, self.head_dim = attention.num_heads, attention.head_dim
        self.input_layernorm = layer.input_layernorm
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.qkv = linear(_stacked(attention.q_proj, attention.k_proj, attention.v_proj))
        self.o = linear(attention.o_proj.weight.detach())
        self.gate_up = linear(_stacked(mlp.gate_proj, mlp.up_proj))
        self.down = linear(mlp.down_proj.weight.detach())


def project(layer: FusedLayer, x: Tensor, rotary: tuple[Tensor, Tensor], columns: Tensor,
            keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v [1, heads, S, head_dim] of x [1, S, hidden]; store k and v.

    :param rotary: cos and sin [1, S, 1, head_dim].
    :param columns: int64 [S], where in keys and values [1, heads, capacity, head_dim] they go.
    """
    fused = layer.qkv(layer.input_layernorm(x))
    q, k, v = fused.unflatten(-1, (3, layer.num_heads, layer.head_dim)).unbind(2)
    q = rotate(layer.q_norm(q), rotary).transpose(1, 2)
    k = rotate(layer.k_norm(k), rotary).transpose(1, 2)
    v = v.transpose(1, 2)
    keys.index_copy_(2, columns, k)
    values.index_copy_(2, columns, v)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return [1, heads, S, head_dim]; bias [S, columns] is added to the scores, None is causal."""
    mask = None if bias is None else bias.expand(1, q.shape[1], *bias.shape)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=bias is None)


def finish(layer: FusedLayer, x: Tensor, attended: Tensor) -> Tensor:
    """Return x [1, S, hidden] after output projection and feed-forward block."""
    x = x + layer.o(attended.transpose(1, 2).flatten(2))
    gate, up = layer.gate_up(layer.post_attention_layernorm(x)).chunk(2, dim=-1)
    return x + layer.down(F.silu(gate) * up)


def bias_of(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what attention adds to its scores: 0 where allowed is True, else HIDDEN."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, HIDDEN)


def _stacked(*linears: nn.Linear) -> Tensor:
    """Return the weights one below the other; the linears go on as views of it, not copies.

    Those that another engine has stacked before are returned as they lie in memory.
    """
    weights = [linear.weight.detach() for linear in linears]
    ends = [weight.data_ptr() + weight.nbytes for weight in weights]
    storages = {weight.untyped_storage().data_ptr() for weight in weights}
    if len(storages) == 1 and ends[:-1] == [weight.data_ptr() for weight in weights[1:]]:
        rows = sum(len(weight) for weight in weights)
        return weights[0].as_strided((rows, weights[0].shape[1]), weights[0].stride())
    stacked = torch.cat(weights)
    parts = stacked.split([len(weight) for weight in weights])
    for linear, part in zip(linears, parts, strict=True):
        linear.weight = nn.Parameter(part, requires_grad=linear.weight.requires_grad)
    return stacked
