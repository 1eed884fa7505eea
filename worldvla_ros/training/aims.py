# SPDX-License-Identifier: Apache-2.0
"""Teach a network to look: where an action is for, in the picture and from the hand.

From the labels of actions alone a small network learns which way the hand goes in each task, and
not to look where things are: that pays only once it can tell where they are, which no label says.
Demonstrations of the simulator's expert have it (`AIMS`): what the action is for, which is where a
grasp is, or where what is held shall come. So, where each action of a chunk begins,

- the first head of the middle layer is asked to attend to the image code in which the aim is. What
  is there, and with `TransformerConfig.image_grid` where that is, then is a value that later
  layers can use. This adds nothing to the network.
- a small head, which only the training run keeps, is asked how far the aim is from the hand: a
  code is 16 pixels wide, some 10 cm on the table.

Nothing is asked where a recording has no aims. Ours: the paper has no such terms.
"""

import torch
from torch import Tensor, nn
import torch.nn.functional as F

from worldvla_ros.model.transformer import Layer, rotary_table, rotate
from worldvla_ros.tokens.vocab import ACTION_BLOCK_LENGTH

HEAD = 0  # of the layer, that is told where to look
UNKNOWN = -1  # aim of a sequence without one
_SCALE = 0.05  # [m] from the hand that is 1 to the head
_QUADRATIC = 0.5  # of the scale: smaller errors count squared, larger ones by their size
_NEAR = 0.10  # [m] from the hand, up to which errors are reported
_HIDDEN = 256


def looking_layer(num_layers: int) -> int:
    """Return the index of the layer that is told where to look: half of them come before."""
    return num_layers // 2


def beginnings(begins: Tensor, counts: Tensor, num_actions: int) -> Tensor:
    """Return the rows int64 [B, K] where actions begin, the last one's again in shorter chunks.

    :param begins: int64 [B], row of the first action.
    :param counts: int64 [B], actions that there are.
    """
    action = torch.arange(num_actions, device=begins.device)
    return begins[:, None] + ACTION_BLOCK_LENGTH * torch.minimum(
        action, (counts[:, None] - 1).clamp(min=0))


def gaze_scores(layer: Layer, states: Tensor, rows: Tensor, theta: float) -> Tensor:
    """Return what HEAD of a layer attends to before the softmax, float32 [B, K, S].

    Each action of a chunk looks where it begins, and sees the prompt; -inf elsewhere.

    :param states: what the layer is given, [B, S, hidden].
    :param rows: int64 [B, K], as of `beginnings`.
    :param theta: base of the rotary positions.
    """
    attention, x = layer.self_attn, layer.input_layernorm(states)
    batch, length = x.shape[:2]
    place = torch.arange(length, device=x.device)
    looking = x[torch.arange(batch, device=x.device)[:, None], rows]
    # All heads pass the norm, of which each may have a row of its own.
    by_head = (-1, (attention.num_heads, attention.head_dim))
    q = attention.q_norm(attention.q_proj(looking).unflatten(*by_head))[:, :, HEAD:HEAD + 1]
    k = attention.k_norm(attention.k_proj(x).unflatten(*by_head))[:, :, HEAD:HEAD + 1]
    cos, sin = rotary_table(place, attention.head_dim, theta, x.dtype)
    q = rotate(q, (cos[0, rows], sin[0, rows]))
    k = rotate(k, (cos, sin))
    with torch.autocast(x.device.type, enabled=False):  # it would go back to bfloat16
        scores = torch.einsum('bqhd,bkhd->bqk', q.float(), k.float()) * attention.head_dim ** -0.5
    return scores.masked_fill((place >= rows[:, :1])[:, None], float('-inf'))


def gaze_loss(scores: Tensor, aims: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross entropy with the aims, and the share of attention that is on them.

    :param scores: as of `gaze_scores`.
    :param aims: int64 [B], the token of each sequence to look at, UNKNOWN where there is none.
    :param count: how many there are in the whole batch, by the number of its shares.
    """
    known = (aims != UNKNOWN)[:, None]
    index = aims.clamp(min=0)[:, None, None].expand(-1, scores.shape[1], 1)
    # A sequence that looks nowhere has no finite score: nothing of it may enter, NaN least of all.
    scores = torch.where(known[..., None], scores, 0.0)
    of_aim = torch.where(known, F.log_softmax(scores, dim=-1).gather(-1, index)[..., 0], 0.0)
    share = torch.where(known, of_aim.detach().exp(), 0.0).mean(1).sum() / known.sum()
    return -of_aim.mean(1).sum() / count.clamp(min=1e-6), share


class ReachHead(nn.Module):
    """Tells how far the aim is from the hand, from hidden states of the last layer."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden_size, _HIDDEN), nn.GELU(),
                                    nn.Linear(_HIDDEN, 3))

    def forward(self, hidden: Tensor, away: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss, and the mean error [m] of those within 10 cm, NaN without any.

        :param hidden: float32 [B, K, H].
        :param away: float32 [B, 3] [m], NaN where not known.
        :param count: how many are known in the whole batch, by the number of its shares.
        """
        known = is_known(away)
        wanted = (away.nan_to_num() / _SCALE)[:, None].expand(-1, hidden.shape[1], -1)
        told = self.layers(hidden)
        errors = F.smooth_l1_loss(told, wanted, beta=_QUADRATIC, reduction='none').mean((1, 2))
        loss = torch.where(known, errors, 0.0).sum() / count.clamp(min=1e-6)
        with torch.no_grad():
            near = is_near(away).float()
            error = ((told - wanted).norm(dim=2).mean(1) * near).sum() * _SCALE / near.sum()
        return loss, error


def is_known(away: Tensor) -> Tensor:
    """Return which of the displacements [B, 3] are known, bool [B]."""
    return ~away.isnan().any(1)


def is_near(away: Tensor) -> Tensor:
    """Return which of the displacements [B, 3] are known and those whose errors are reported."""
    return away.norm(dim=1) < _NEAR  # NaN is not
