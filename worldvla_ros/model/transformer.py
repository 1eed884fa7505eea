# SPDX-License-Identifier: Apache-2.0
"""The Chameleon decoder: configuration and network, bottom-up, ids in and logits out.

What differs from a textbook Llama: queries and keys pass a LayerNorm over each head (weight and
bias, either shared by all heads or one row per head) before the rotary embedding. Module names
give the state-dict keys of the released checkpoints. Checked in float32 against transformers' own
Chameleon, and against numbers of the public implementation where those are at hand (see
test/golden_data.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from worldvla_ros.model.attention_mask import causal_mask
from worldvla_ros.model.image_places import NO_PLACE, image_places
from worldvla_ros.model.kv_cache import KVCache
from worldvla_ros.tokens.vocab import Vocabulary

QK_NORM_EPS = 1e-5  # hard-coded in the public implementation


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of the network; the defaults are Chameleon-7B."""

    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    qk_norm_rows: int = 1  # 1: shared by all heads; num_heads: one row per head
    tie_word_embeddings: bool = False
    image_grid: tuple[int, int] | None = None  # rows and columns of codes of every image, each
    #                                            place with an embedding; None: as released
    vocabulary: Vocabulary = field(default_factory=Vocabulary)

    @property
    def head_dim(self) -> int:
        """Values per attention head."""
        return self.hidden_size // self.num_heads


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of matrix products with x: autocast's where that is on, as in training."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attend from q [B, heads, S, D] to k and v [B, heads, T, D].

    :param bias: [1 or B, 1, S, T], added to the scores; None: causal, S equals T.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=bias is None)


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 and cast before the gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axis."""
        dtype = product_dtype(x)  # once, not for each product that reads it
        return self.weight.to(dtype) * F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(dtype)


class HeadNorm(nn.Module):
    """LayerNorm over head_dim with a learned row per group of heads (qk-norm)."""

    def __init__(self, rows: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(rows, head_dim))
        self.bias = nn.Parameter(torch.zeros(rows, head_dim))
        # A shared row broadcasts by itself; between the extremes, neighbours share a row.
        self.heads_per_row = num_heads // rows if rows > 1 else 1

    def forward(self, x: Tensor) -> Tensor:  # [B, S, heads, head_dim]
        """Normalize each head."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if self.heads_per_row > 1:
            weight = weight.repeat_interleave(self.heads_per_row, 0)
            bias = bias.repeat_interleave(self.heads_per_row, 0)
        with torch.autocast(x.device.type, enabled=False):  # it would go on in float32
            return (F.layer_norm(x, x.shape[-1:], eps=QK_NORM_EPS) * weight.to(x.dtype)
                    + bias.to(x.dtype))


def rotary_table(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype
                 ) -> tuple[Tensor, Tensor]:
    """Return cos and sin [1, S, 1, head_dim] for positions [S], computed in float32."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    angle = positions.float()[:, None] * (1.0 / theta ** exponent)
    angle = torch.cat((angle, angle), dim=-1)[None, :, None]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Apply the rotary embedding in the "rotate half" layout to [B, S, heads, head_dim]."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class AskedRows(NamedTuple):
    """The rows of a pass whose results are asked for, and what they may attend to."""

    which: slice  # of all rows of the pass
    causal: int  # of them, at the start: they see the rows up to themselves, without a mask
    bias: Tensor | None  # [1 or B, 1, S, T], added to the scores of the others; None: causal, too


class Attention(nn.Module):
    """Multi-head attention with qk-norm and rotary positions."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        size, self.layer = config.hidden_size, layer
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)
        self.q_norm = HeadNorm(config.qk_norm_rows, config.num_heads, config.head_dim)
        self.k_norm = HeadNorm(config.qk_norm_rows, config.num_heads, config.head_dim)
        self.attend = attend

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], asked: AskedRows,
                cache: KVCache | None) -> Tensor:
        """Attend from the asked rows of x [B, S, hidden] to the cached rows and to all of x."""
        queries = x[:, asked.which]
        cos, sin = rotary
        q = rotate(self.q_norm(self._heads(self.q_proj(queries))),
                   (cos[:, asked.which], sin[:, asked.which])).transpose(1, 2)
        k = rotate(self.k_norm(self._heads(self.k_proj(x))), rotary).transpose(1, 2)
        v = self._heads(self.v_proj(x)).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        if q.shape[2] == 0:
            return queries
        out = self.attend(q[:, :, asked.causal:], k, v, asked.bias)
        if asked.causal:
            start = self.attend(q[:, :, :asked.causal], k[:, :, :asked.causal],
                                v[:, :, :asked.causal], None)
            out = torch.cat((start, out), dim=2)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim))


class MLP(nn.Module):
    """SwiGLU feed-forward block."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., hidden] to [..., hidden]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], asked: AskedRows,
                cache: KVCache | None) -> Tensor:
        """Return the asked rows of x [B, S, hidden]; all rows enter the cache."""
        attended = self.self_attn(self.input_layernorm(x), rotary, asked, cache)
        x = x[:, asked.which] + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary.size, config.hidden_size)
        self.embed_places = (None if config.image_grid is None else nn.Embedding(
            1 + math.prod(config.image_grid), config.hidden_size, padding_idx=NO_PLACE))
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def embed(self, ids: Tensor, places: Tensor | None) -> Tensor:
        """Return what enters the first layer, [..., hidden], for ids and `places` [...]."""
        x: Tensor = self.embed_tokens(ids)
        return x if self.embed_places is None else x + self.embed_places(places)


class Transformer(nn.Module):
    """The language model over text, image and action tokens."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocabulary.size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and activations."""
        return self.lm_head.weight.dtype

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return logits float32 [B, S, V] of ids int64 [B, S], causal without a mask.

        :param attention_mask: bool [B, S, S], True where a row may attend to a column.
        """
        return self.logits(self.rows(input_ids, mask=attention_mask))

    def places(self, ids: Sequence[int] | Tensor, *, start: int = 0, within: int = 0
               ) -> Tensor | None:
        """Return `image_places` of ids [..., S], int64; None for a network that reads none.

        They are where the ids are, those of a list on the CPU; `rows` sends them on.
        :param start: only of the ids from there on, of a sequence whose beginning is cached.
        :param within: as of `image_places`.
        """
        if self.config.image_grid is None:
            return None
        return image_places(torch.as_tensor(ids), self.config.vocabulary, self.config.image_grid,
                            within)[..., start:]

    def rows(self, input_ids: Tensor, *, positions: Tensor | None = None,
             places: Tensor | None = None, mask: Tensor | None = None,
             cache: KVCache | None = None, keep_last: int | None = None, causal_rows: int = 0,
             states_after: dict[int, Tensor] | None = None) -> Tensor:
        """Run one pass over ids [B, S] and return the last hidden states [B, keep_last, hidden].

        :param positions: rotary positions [S], by default behind the cached rows.
        :param places: as of `places`, [S] or [B, S], of ids that begin within an image; None: they
            do not.
        :param mask: bool [S, T] or [B, S, T] over the T cached and new rows; None is causal.
        :param keep_last: rows whose result is needed. The last layer computes only these, the
            others only leave their keys and values in the cache.
        :param causal_rows: rows at the start whose mask is causal: most of a training sequence,
            and attention is cheaper without a mask. Without a cache, and all kept or none; else
            ValueError.
        :param states_after: gets the states of all rows after the layers that are its keys.
        """
        if places is None:
            places = self.places(input_ids)
        x = self.model.embed(input_ids, None if places is None else places.to(input_ids.device))
        cached = cache.length if cache is not None else 0
        length = input_ids.shape[1]
        first = 0 if keep_last is None else length - keep_last
        if causal_rows and (cache is not None or 0 < first < causal_rows):
            raise ValueError(f'causal_rows need a pass without a cache that keeps all of them or '
                             f'none, got causal_rows={causal_rows} and keep_last={keep_last} of '
                             f'{length} rows, {"a" if cache is not None else "no"} cache')
        if positions is None:
            positions = torch.arange(cached, cached + length, device=input_ids.device)
        if mask is None and (cached or keep_last):
            # The kernel's own causal mask holds only where queries and keys start together.
            mask = causal_mask(length, cached + length, input_ids.device)
        rotary = rotary_table(positions, self.config.head_dim, self.config.rope_theta,
                              product_dtype(x))
        if mask is None:
            causal_rows = 0  # all are
        bias = None if mask is None else _additive(mask[..., causal_rows:, :], product_dtype(x))
        asked = AskedRows(slice(None), causal_rows, bias)
        for number, layer in enumerate(self.model.layers[:-1]):
            x = layer(x, rotary, asked, cache)
            if states_after is not None and number in states_after:
                states_after[number] = x
        if first:
            kept = None if bias is None else bias[..., first - causal_rows:, :]
            asked = AskedRows(slice(first, None), 0, kept)
        x = self.model.layers[-1](x, rotary, asked, cache)
        if cache is not None:
            cache.advance(length)
        return self.model.norm(x)

    def logits(self, hidden: Tensor, allowed: range | None = None) -> Tensor:
        """Return float32 logits [..., V] of hidden states, or only those of the allowed ids."""
        weight = self.lm_head.weight
        if allowed is not None:
            weight = weight[allowed.start:allowed.stop]
        return F.linear(hidden, weight).float()

    def new_cache(self, capacity: int) -> KVCache:
        """Return an empty KV cache of this model's shape, dtype and device."""
        return KVCache(self.config.num_layers, self.config.num_heads, self.config.head_dim,
                       capacity, self.dtype, self.device)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where a row may attend and -inf elsewhere, with a batch and a head axis."""
    if mask.ndim == 2:
        mask = mask[None]
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill_(~mask, float('-inf'))[:, None]
