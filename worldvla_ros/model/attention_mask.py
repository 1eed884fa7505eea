# SPDX-License-Identifier: Apache-2.0
"""Who may attend to whom: the published action-chunk mask, and its packed form for decoding.

The mask (variant 3 of the public implementation) is causal, except that an action block after
the last image sees no earlier action block. With a prompt P and three actions A, B, C:

          P A B C                                     P  boaA boaB boaC  a1 b1 c1
        P x . . .                                   P x   .    .    .    .  .  .
        A x x . .         packed for decoding:   boaA x   x    .    .    .  .  .
        B x . x .                                boaB x   .    x    .    .  .  .
        C x . . x                                boaC x   .    .    x    .  .  .
                                                   a1 x   x    .    .    x  .  .
                                                   b1 x   .    x    .    .  x  .
                                                   c1 x   .    .    x    .  .  x

No action sees another, so all of them are decoded at once: the rows of one step are stored next
to each other, and the prompt is kept, and read, once for all. True means: may attend.
"""

import torch
from torch import Tensor

from worldvla_ros.errors import TokenError
from worldvla_ros.tokens.vocab import Vocabulary


class BlockMismatchError(TokenError, ValueError):
    """Begin and end tokens of action or image blocks cannot be paired."""


def causal_mask(rows: int, columns: int, device: torch.device | str = 'cpu') -> Tensor:
    """Return bool [rows, columns] in which the last row sees every column."""
    column = torch.arange(columns, device=device)
    return column <= column[columns - rows:, None]


def action_chunk_mask(ids: Tensor, vocabulary: Vocabulary | None = None) -> Tensor:
    """Return the published mask, bool [S, S], for token ids [S].

    Blocks pair the n-th begin token with the n-th end token. A missing last end means that the
    block runs to the end of the sequence, one extra end is dropped; a mismatch of two or more
    raises BlockMismatchError (a ValueError), as in the public implementation.
    """
    ids = torch.as_tensor(ids)
    return _mask_rows(ids, torch.arange(len(ids), device=ids.device), vocabulary)


def action_chunk_mask_row(ids: Tensor, vocabulary: Vocabulary | None = None) -> Tensor:
    """Return the last row, bool [S], of the published mask: what the next token may see."""
    ids = torch.as_tensor(ids)
    return _mask_rows(ids, torch.tensor([len(ids) - 1], device=ids.device), vocabulary)[0]


def _mask_rows(ids: Tensor, rows: Tensor, vocabulary: Vocabulary | None) -> Tensor:
    """Return some rows, bool [R, S], of the published mask for token ids [S]."""
    if ids.ndim != 1:
        raise TokenError(f'expected token ids [S], got shape {tuple(ids.shape)}')
    vocabulary = vocabulary or Vocabulary()
    first, last = _blocks(ids, vocabulary.boa, vocabulary.eoa, 'action')
    image_ends = _blocks(ids, vocabulary.boi, vocabulary.eoi, 'image')[1]
    last_image_end = image_ends[-1:] if len(image_ends) else image_ends.new_full((1,), -1)

    position = torch.arange(len(ids), device=ids.device)[:, None]
    inside = (first <= position) & (position <= last)  # [S, blocks]: token lies in the block
    restricted = inside[rows] & (first > last_image_end)
    # A row in a restricted block i must not see a column in a block j < i.
    earlier = torch.ones(len(first), len(first), device=ids.device).tril(-1)
    hidden = restricted.float() @ earlier @ inside.float().T > 0
    return (position[:, 0] <= rows[:, None]) & ~hidden


def packed_prefill_mask(prompt_length: int, cached: int, num_actions: int,
                        device: torch.device | str = 'cpu') -> Tensor:
    """Return bool [P - cached + K, P + K]: the rest of the prompt, then one BOA per action.

    :param cached: prompt rows that are already in the KV cache.
    """
    rows, columns = prompt_length - cached + num_actions, prompt_length + num_actions
    mask = causal_mask(rows, columns, device)
    mask[-num_actions:, -num_actions:] = torch.eye(num_actions, dtype=torch.bool, device=device)
    return mask


def packed_decode_mask(prompt_length: int, num_actions: int, num_steps: int,
                       device: torch.device | str = 'cpu') -> Tensor:
    """Return bool [K, P + K * num_steps]: each action sees the prompt and its own tokens.

    The mask of step s is the slice of its first P + K * (s + 1) columns.
    """
    prompt = torch.ones(num_actions, prompt_length, dtype=torch.bool, device=device)
    own = torch.eye(num_actions, dtype=torch.bool, device=device).repeat(1, num_steps)
    return torch.cat((prompt, own), dim=1)


def _blocks(ids: Tensor, begin: int, end: int, name: str) -> tuple[Tensor, Tensor]:
    """Return the first and last position of every block, paired in order."""
    first = (ids == begin).nonzero()[:, 0]
    last = (ids == end).nonzero()[:, 0]
    if len(first) == len(last) + 1:
        last = torch.cat((last, last.new_full((1,), len(ids) - 1)))
    elif len(first) == len(last) - 1:
        last = last[:-1]
    elif len(first) != len(last):
        raise BlockMismatchError(f'{len(first)} {name} blocks begin ({begin}) and {len(last)} '
                                 f'end ({end}); expected counts that differ by one at most')
    return first, last
