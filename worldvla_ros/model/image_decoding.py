# SPDX-License-Identifier: Apache-2.0
"""Decoding of an imagined frame, several codes per pass where a draft of it is right.

A frame resembles the one before it, so the old codes serve as a draft of the new ones. One pass
runs over a window of drafted tokens; the network's own choices are compared with the draft, and
the longest part that agrees is kept, with the choice after it, which is right in any case:

    draft           17  4   4  25 ...
    network says    17  4   9  31 ...      three codes in one pass: 17, 4 and 9

Every kept code is the greedy choice after kept codes, so the result is that of one code per pass
(greedy speculative decoding; its choices past the first mismatch become the new draft, as in
Jacobi decoding). Where the best two logits tie up to rounding, a pass over more rows may choose
the other, as between any two matrix kernels.
"""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from worldvla_ros.errors import TokenError
from worldvla_ros.model.decoded import DecodedImage, Ids, checked_ids, token_statistics
from worldvla_ros.model.engine.image import StaticImageRows
from worldvla_ros.model.kv_cache import KVCache
from worldvla_ros.model.transformer import Transformer
from worldvla_ros.tokens.vocab import IMAGE_HEAD_LENGTH, Vocabulary

MAX_WINDOW = 64
"""Rows of one pass over a draft; an H200 reads the weights of 7B in the time of 184 rows."""


class ImageRows(Protocol):
    """Runs the rows of one image after a prompt and returns their logits over the image codes."""

    vocabulary: Vocabulary
    free_rows: int  # rows of a pass that cost little more than one

    def start(self, prompt: list[int], tokens: list[int]) -> Tensor:
        """Return logits float32 [1 + n, codes] of the prompt's last row and of n tokens."""

    def extend(self, tokens: list[int], kept: int) -> Tensor:
        """Drop all but `kept` tokens after the prompt; return logits [n, codes] of n more."""

    def forget(self) -> None:
        """Drop all that is remembered of earlier images, NaN too."""


class EagerImageRows:
    """ImageRows by plain passes of the network over a growing KV cache."""

    free_rows = 8

    def __init__(self, model: Transformer, cache: KVCache) -> None:
        """Take a cache with room for the prompt and the whole image block."""
        self.vocabulary = model.config.vocabulary
        self._model, self._cache = model, cache
        self._prompt_length = 0

    def start(self, prompt: list[int], tokens: list[int]) -> Tensor:
        """Return logits float32 [1 + n, codes] of the prompt's last row and of n tokens."""
        self._prompt_length = len(prompt)
        cached = self._cache.rewind_to_common_prefix(prompt[:-1])
        ids = prompt + tokens
        logits = self._logits(ids[cached:], 1 + len(tokens),
                              self._model.places(ids, start=cached))
        self._cache.keep_prefix(prompt)
        self._cache.advance(len(tokens))
        return logits

    def extend(self, tokens: list[int], kept: int) -> Tensor:
        """Drop all but `kept` tokens after the prompt; return logits [n, codes] of n more."""
        self._cache.truncate(self._prompt_length + kept)
        return self._logits(tokens, len(tokens),
                            self._model.places(tokens, within=IMAGE_HEAD_LENGTH + kept))

    def forget(self) -> None:
        """Drop the rows of the cache; no pass reads rows that it does not keep."""
        self._cache.keep_prefix([])

    def _logits(self, ids: list[int], keep_last: int, places: Tensor | None) -> Tensor:
        hidden = self._model.rows(torch.tensor(ids, device=self._model.device)[None],
                                  places=places, cache=self._cache, keep_last=keep_last)
        return self._model.logits(hidden[0], self.vocabulary.codes)


def image_rows(model: Transformer, prompt_length: int, grid_hw: tuple[int, int]) -> ImageRows:
    """Return the fastest way to run rows on the device that the model is on.

    :param prompt_length: tokens of the longest prompt, BOI not among them.
    """
    capacity = image_capacity(prompt_length, grid_hw)
    if model.device.type == 'cuda':
        before_codes = prompt_length + IMAGE_HEAD_LENGTH
        return StaticImageRows(model, before_codes, capacity - before_codes, MAX_WINDOW)
    return EagerImageRows(model, model.new_cache(capacity))


def image_capacity(prompt_length: int, grid_hw: tuple[int, int]) -> int:
    """Return the KV rows that an image needs: prompt, BOI, grid, codes and row ends."""
    height, width = grid_hw
    return prompt_length + IMAGE_HEAD_LENGTH + 2 * height * (2 * width + 1)


@torch.inference_mode()
def decode_image(model: Transformer, prompt_ids: Ids, grid_hw: tuple[int, int], *,
                 cache: KVCache | None = None, draft: np.ndarray | None = None,
                 max_window: int = MAX_WINDOW) -> DecodedImage:
    """Decode one image block, forcing its structure tokens.

    The target is the last image of the sequence, so the action-chunk mask hides nothing and
    attention is causal.

    :param draft: code indices [2h, 2w] that the image may resemble; they save passes and never
        decide. None: one pass per code.
    :param max_window: rows of one pass over the draft at most.
    """
    prompt = checked_ids(prompt_ids, model.config.vocabulary)
    if cache is None:
        cache = model.new_cache(image_capacity(len(prompt), grid_hw))
    decoded = decode_image_rows(EagerImageRows(model, cache), prompt, grid_hw, draft=draft,
                                max_window=max_window)
    cache.keep_prefix(prompt)
    return decoded


@torch.no_grad()
def decode_image_rows(rows: ImageRows, prompt: list[int], grid_hw: tuple[int, int], *,
                      draft: np.ndarray | None = None, max_window: int = MAX_WINDOW
                      ) -> DecodedImage:
    """Decode one image block with a given way to run rows; see `decode_image`.

    BOI and the grid tokens ride with the prompt, each row end with the first pass of the next
    row, so that no pass is spent on a token that is known.
    """
    vocabulary = rows.vocabulary
    body, places = _drafted_body(vocabulary, grid_hw, draft)
    if max_window < 1:
        raise TokenError(f'a window has at least one row, got max_window={max_window}')
    height, width = grid_hw
    prompt = [*prompt, vocabulary.boi, vocabulary.grid_token(height), vocabulary.grid_token(width)]
    window = 1 if draft is None else max_window
    done = kept = passes = 0  # codes that are certain; tokens whose rows are valid; passes
    chosen: list[Tensor] = []
    while done < len(places):
        first_row = kept if passes else -1  # the last row of the prompt predicts the first code
        # Codes up to `stop` are predicted by rows of the window; one always is.
        stop = max(done + 1, int(np.searchsorted(places, first_row + window, side='right')))
        tokens = body[kept:places[stop - 1]].tolist()
        logits = rows.extend(tokens, kept) if passes else rows.start(prompt, tokens)
        logits = logits[torch.from_numpy(places[done:stop] - 1 - first_row).to(logits.device)]
        predicted = logits.argmax(-1).cpu().numpy() + vocabulary.code_start
        differs = np.flatnonzero(predicted[:-1] != body[places[done:stop - 1]])
        accepted = 1 + int(differs[0]) if len(differs) else len(predicted)
        body[places[done:stop]] = predicted
        chosen.append(logits[:accepted])
        done, passes = done + accepted, passes + 1
        kept = int(places[done - 1])
        if draft is not None:
            window = min(max_window, max(rows.free_rows, 2 * accepted))
    all_logits = torch.cat(chosen)
    shape = (2 * height, 2 * width)
    codes = all_logits.argmax(-1).view(shape)
    return DecodedImage(codes=codes, **token_statistics(all_logits.unflatten(0, shape)),
                        passes=passes)


def _drafted_body(vocabulary: Vocabulary, grid_hw: tuple[int, int],
                  draft: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the tokens of an image between grid and EOI, and the places of its codes there."""
    shape = rows, columns = 2 * grid_hw[0], 2 * grid_hw[1]
    codes = np.zeros(shape, np.int64) if draft is None else np.asarray(draft, np.int64)
    if codes.shape != shape or codes.min() < 0 or codes.max() >= vocabulary.num_codes:
        raise TokenError(f'a draft of an image holds {shape} codes in [0, '
                         f'{vocabulary.num_codes}), got shape {codes.shape}')
    body = np.full((rows, columns + 1), vocabulary.new_line, np.int64)
    body[:, :columns] = codes + vocabulary.code_start
    index = np.arange(rows * columns)
    return body.reshape(-1), index + index // columns
