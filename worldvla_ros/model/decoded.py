# SPDX-License-Identifier: Apache-2.0
"""What decoding takes and gives: prompt ids in, tokens with the model's confidence out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from worldvla_ros.errors import TokenError
from worldvla_ros.tokens.vocab import Vocabulary

Ids = Tensor | np.ndarray | Sequence[int]


@dataclass(frozen=True, eq=False)
class DecodedChunk:
    """The tokens of one chunk with what the model thought of them."""

    token_ids: Tensor  # [K, 7] int64 vocabulary ids
    log_probs: Tensor  # [K, 7] float32 [nat], among the action bins
    entropy: Tensor  # [K, 7] float32 [nat], over the action bins
    margin: Tensor  # [K, 7] float32, best logit minus second best
    violations: Tensor | None  # int64 []: tokens at which the free model differs; None: not asked
    prefill_s: float  # host time of the prefill [s]; on a GPU the work may still be under way
    rows: int  # rows that went through the network, all passes together


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """The codes of one imagined frame with what the model thought of them."""

    codes: Tensor  # [2h, 2w] int64 code indices
    log_probs: Tensor  # [2h, 2w] float32 [nat], among the image codes
    entropy: Tensor  # [2h, 2w] float32 [nat], over the image codes
    margin: Tensor  # [2h, 2w] float32, best logit minus second best
    passes: int  # forward passes, the one over the prompt included


def token_statistics(logits: Tensor) -> dict[str, Tensor]:
    """Return log-probability of the choice, entropy and top-2 margin of logits [..., bins]."""
    log_probs = logits.log_softmax(-1)
    best = logits.topk(2, dim=-1).values
    return {'log_probs': log_probs.amax(-1),
            'entropy': -(log_probs.exp() * log_probs).sum(-1),
            'margin': best[..., 0] - best[..., 1]}


def checked_ids(token_ids: Ids, vocabulary: Vocabulary) -> list[int]:
    """Return prompt ids [P] as a list; raises TokenError for another shape or a foreign id."""
    ids = token_ids.cpu().numpy() if isinstance(token_ids, Tensor) else np.asarray(token_ids)
    if ids.ndim != 1 or ids.size == 0 or not np.issubdtype(ids.dtype, np.integer):
        raise TokenError(f'expected prompt ids int64 [P], got shape {ids.shape} {ids.dtype}')
    if ids.min() < 0 or ids.max() >= vocabulary.size:
        raise TokenError(f'prompt ids must lie in [0, {vocabulary.size}), got '
                         f'{ids.min()} to {ids.max()}')
    listed: list[int] = ids.tolist()
    return listed
