# SPDX-License-Identifier: Apache-2.0
"""One decoder layer in three steps: project and store, attend, finish.

Queries, keys and values come from one matrix product, gate and up from another. `project` and
`finish` hold all small operations around the products, so that a compiler can fuse them; they
are functions of a layer, so that what is compiled for one serves all layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from worldvla_ros.model.engine.linear import DenseLinear, Fp8Linear
from worldvla_ros.model.transformer import Layer, rotate

HIDDEN = -1e9
"""Bias of a column that a row may not see. Finite, so that no row sums to NaN; see `bias_of`."""

SPLITS = 4
"""Parts of the columns that few rows attend to at once: 32 heads alone leave a GPU mostly idle."""

FEW_ROWS = 128  # a draft of ten actions has 70
COLUMN_MULTIPLE = 16 * SPLITS  # attention kernels want the columns of a bias in multiples of 8


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


class Attended(NamedTuple):
    """What some rows attend to, as the kernel leaves it; `merged` puts the parts together."""

    parts: Tensor  # [P, heads, S, head_dim], each part's attention to its share of the columns
    log_sums: Tensor | None  # float32 [P, heads, S], logs of their sums of exponentials; None: P=1


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Attended:
    """Let q [1, heads, S, head_dim] attend to k and v [1, heads, columns, head_dim].

    :param bias: [S, columns], added to the scores; None is causal.
    """
    if bias is None:
        return Attended(F.scaled_dot_product_attention(q, k, v, is_causal=True), None)
    if len(bias) <= FEW_ROWS and bias.shape[1] % COLUMN_MULTIPLE == 0:
        return _attend_in_parts(q, k, v, bias)
    return Attended(F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None, None].expand(
        1, q.shape[1], *bias.shape)), None)


def _attend_in_parts(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Attended:
    """Attend to each part of the columns apart.

    The public function does not return the sums, so the kernels below it are called.
    """
    k, v = (x.unflatten(2, (SPLITS, -1))[0].transpose(0, 1) for x in (k, v))
    q = q.expand(SPLITS, *q.shape[1:])
    mask = bias.unflatten(1, (SPLITS, -1)).transpose(0, 1)[:, None].expand(
        SPLITS, q.shape[1], len(bias), -1)
    if q.is_cuda:
        out, log_sums, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, mask, True)
        log_sums = log_sums[..., :len(bias)]  # the kernel pads the rows
    else:
        out, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, attn_mask=mask)
    return Attended(out, log_sums)


def merged(attended: Attended) -> Tensor:
    """Return [1, heads, S, head_dim]: the parts weighed by their sums of exponentials."""
    parts, log_sums = attended
    if log_sums is None:
        return parts
    shares = log_sums.softmax(0)[..., None]
    return (parts * shares).sum(0, keepdim=True).to(parts.dtype)


def finish(layer: FusedLayer, x: Tensor, groups: Sequence[Attended]) -> Tensor:
    """Return x [1, S, hidden] after output projection and feed-forward block.

    :param groups: what the rows attend to, all rows in order.
    """
    attended = torch.cat([merged(group) for group in groups], 2)
    x = x + layer.o(attended.transpose(1, 2).flatten(2))
    gate, up = layer.gate_up(layer.post_attention_layernorm(x)).chunk(2, dim=-1)
    return x + layer.down(F.silu(gate) * up)


def bias_of(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what attention adds to its scores: 0 where allowed is True, else HIDDEN.

    float16 ends before; half of its least number leaves room for the score.
    """
    hidden = max(HIDDEN, torch.finfo(dtype).min / 2)
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, hidden)


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
