# SPDX-License-Identifier: Apache-2.0
"""The policy's way to a chunk: plain passes on a CPU, replayed graphs on a CUDA device."""

from typing import Protocol, get_args

import torch

from worldvla_ros.errors import InferenceError
from worldvla_ros.model.decoded import DecodedChunk, Ids
from worldvla_ros.model.engine.chunk import StaticChunkDecoder
from worldvla_ros.model.engine.linear import require_fp8
from worldvla_ros.model.engine.network import Weights
from worldvla_ros.model.generate import (
    chunk_capacity,
    decode_chunk,
    decode_chunk_in_order,
    prefill,
)
from worldvla_ros.model.transformer import Transformer


class ChunkDecoder(Protocol):
    """Decodes chunks and remembers, between calls, the keys and values of what it has seen."""

    def prefill(self, prefix_ids: Ids) -> int:
        """Compute the beginning of a later prompt ahead of time; return the rows computed."""

    def decode(self, prompt_ids: Ids) -> DecodedChunk:
        """Return the chunk after prompt ids [P]."""

    def forget(self) -> None:
        """Drop all that is remembered, NaN too; the next prompt is computed whole."""

    def warm_up(self) -> None:
        """Do what only the first call of each shape needs."""


class EagerChunkDecoder:
    """Plain passes over a growing KV cache, with the action-chunk mask or without."""

    def __init__(self, model: Transformer, num_actions: int, longest_prompt: int,
                 chunk_mask: bool = True, choice: str = 'greedy') -> None:
        """Allocate the cache.

        :param chunk_mask: False for a network that was trained to see earlier actions.
        :param choice: see `choose_bins`.
        """
        self._model, self._num_actions, self._choice = model, num_actions, choice
        self._decode = decode_chunk if chunk_mask else decode_chunk_in_order
        self._cache = model.new_cache(chunk_capacity(longest_prompt, num_actions))

    def prefill(self, prefix_ids: Ids) -> int:
        """Compute the beginning of a later prompt ahead of time; return the rows computed."""
        return prefill(self._model, prefix_ids, self._cache)

    def decode(self, prompt_ids: Ids) -> DecodedChunk:
        """Return the chunk after prompt ids [P]."""
        return self._decode(self._model, prompt_ids, self._num_actions, cache=self._cache,
                            choice=self._choice)

    def forget(self) -> None:
        """Drop the rows of the cache; no pass reads rows that it does not keep."""
        self._cache.keep_prefix([])

    def warm_up(self) -> None:
        """Do nothing: plain passes have no shapes to prepare."""


def chunk_decoder(model: Transformer, num_actions: int, *, prompt_lengths: tuple[int, ...],
                  newest_rows: int, chunk_mask: bool = True, choice: str = 'greedy',
                  weights: str = 'dense', drafts: bool = False) -> ChunkDecoder:
    """Return the fastest decoder for the device that the model is on.

    Raises InferenceError for weights that there are not, or not here.

    :param prompt_lengths: lengths that prompts come in, the longest among them.
    :param newest_rows: rows left to compute once all but the newest frame was prefilled.
    :param chunk_mask: False for a network that was trained without it.
    :param choice: see `choose_bins`.
    :param weights: 'dense' is exact. 'fp8' multiplies in 8 bits, see `Fp8Linear`; only the engine
        of fixed shapes can, so it needs a CUDA device (of compute capability 8.9), bfloat16 and
        the chunk mask.
    :param drafts: see `StaticChunkDecoder`; plain passes take none, and their result is the same.
    """
    checked = checked_weights(weights, model.device, model.dtype)
    if checked == 'fp8':
        require_chunk_mask(chunk_mask)
    if model.device.type == 'cuda' and chunk_mask:
        return StaticChunkDecoder(model, num_actions, prompt_buckets=prompt_lengths,
                                  newest_rows=newest_rows, weights=checked, choice=choice,
                                  drafts=drafts)
    return EagerChunkDecoder(model, num_actions, max(prompt_lengths), chunk_mask, choice)


def checked_weights(weights: str, device: str | torch.device, dtype: torch.dtype) -> Weights:
    """Return the kind of weights; InferenceError for one that there is not, or not here.

    :param dtype: of the network.
    """
    if weights == 'dense':
        return 'dense'
    if weights != 'fp8':
        raise InferenceError(f'weights must be one of {get_args(Weights)}, got {weights!r}')
    if torch.device(device).type != 'cuda':
        raise InferenceError(f"weights 'fp8' need a CUDA device, and the device is {device}; "
                             f"use the device 'cuda' or the weights 'dense'")
    require_fp8(torch.device(device), dtype)
    return 'fp8'


def require_chunk_mask(chunk_mask: bool) -> None:
    """Raise InferenceError for a network that the engine, and so weights of 8 bits, is not for."""
    if not chunk_mask:
        raise InferenceError("weights 'fp8' need a checkpoint that was trained with the "
                             "action-chunk mask, and this one was not (chunk_mask in its "
                             "policy.json); use the weights 'dense'")
