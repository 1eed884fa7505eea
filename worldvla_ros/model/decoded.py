# SPDX-License-Identifier: Apache-2.0
"""What decoding takes and gives: prompt ids in, tokens with the model's confidence out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

from worldvla_ros.errors import InferenceError, TokenError
from worldvla_ros.tokens.vocab import VALUES_PER_ACTION, Vocabulary

Ids = Tensor | np.ndarray | Sequence[int]

_GRIPPER = VALUES_PER_ACTION - 1


@dataclass(frozen=True, eq=False)
class DecodedChunk:
    """The tokens of one chunk with what the model thought of them."""

    token_ids: Tensor  # [K, 7] int64 vocabulary ids
    log_probs: Tensor  # [K, 7] float32 [nat] of the choice, among the action bins
    entropy: Tensor  # [K, 7] float32 [nat], over the action bins
    margin: Tensor  # [K, 7] float32, best logit minus second best
    violations: Tensor | None  # int64 []: tokens at which the free model differs; None: not asked
    prefill_s: float  # [s] on the host until the prompt's pass was started, on a CPU until it was
    #                   done; 0 where one graph holds the whole chunk and nobody can tell
    rows: int  # rows that went through the network, all passes together
    passes: int  # forward passes, the one over the prompt included


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """The codes of one imagined frame with what the model thought of them."""

    codes: Tensor  # [2h, 2w] int64 code indices
    log_probs: Tensor  # [2h, 2w] float32 [nat], among the image codes
    entropy: Tensor  # [2h, 2w] float32 [nat], over the image codes
    margin: Tensor  # [2h, 2w] float32, best logit minus second best
    passes: int  # forward passes, the one over the prompt included


def choose_bins(logits: Tensor, value: int, choice: str = 'greedy') -> Tensor:
    """Return the bins int64 [...] that logits [..., bins] of one value of an action stand for.

    :param value: which of the seven; the last is the gripper.
    :param choice: 'greedy' is the most likely bin, as in the public implementation. 'mean' is the
        bin of the expected motion: bins are ordered, so where the network hesitates between two
        directions the mean moves carefully, and the mode jumps to one of them. The gripper is
        always greedy: half open means nothing.
    """
    if choice == 'greedy' or value == _GRIPPER:
        return logits.argmax(-1)
    bins = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    mean = (logits.softmax(-1) * bins).sum(-1)
    return mean.nan_to_num(0.0).round().long()  # always a bin; the entropy says what was NaN


def token_statistics(logits: Tensor, bins: Tensor | None = None) -> dict[str, Tensor]:
    """Return log-probability of the choice, entropy and top-2 margin of logits [..., bins].

    :param bins: the choice int64 [...]; None: the most likely.
    """
    log_probs = logits.log_softmax(-1)
    best = logits.topk(2, dim=-1).values
    chosen = (log_probs.amax(-1) if bins is None
              else log_probs.gather(-1, bins[..., None])[..., 0])
    return {'log_probs': chosen,
            'entropy': -(log_probs.exp() * log_probs).sum(-1),
            'margin': best[..., 0] - best[..., 1]}


def finite_entropy(decoded: DecodedChunk | DecodedImage, forget: Callable[[], None]
                   ) -> NDArray[np.float32]:
    """Return the entropies of what was decoded, on the host.

    Raises InferenceError where they are NaN, as all else is then, after calling `forget`.

    :param forget: of the decoder, whose cache holds NaN, too.
    """
    entropy: NDArray[np.float32] = decoded.entropy.cpu().numpy()
    if not np.isfinite(entropy).all():
        forget()
        raise InferenceError('the network computed NaN for this observation: broken weights, or '
                             'an overflow of float16; use bfloat16')
    return entropy


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
