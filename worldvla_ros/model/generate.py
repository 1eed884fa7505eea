# SPDX-License-Identifier: Apache-2.0
"""Decoding of a chunk of actions: in parallel, in order, or by the public greedy loop.

A chunk of K actions takes 7 passes. The prefill runs over the prompt and K BOA tokens packed
behind it and gives the first value of every action; six passes of K rows give the others. This
is exact because no action sees another (see attention_mask.py); action i starts at position
P + 9 i, as if the actions before it had been written out. EOA is never computed: the grammar is
forced, and `certify` counts where the free model would have left it.
"""

import time
from typing import Literal

import torch
from torch import Tensor

from worldvla_ros.errors import TokenError
from worldvla_ros.model.attention_mask import (
    action_chunk_mask_row,
    causal_mask,
    packed_decode_mask,
    packed_prefill_mask,
)
from worldvla_ros.model.decoded import (
    DecodedChunk,
    Ids,
    checked_ids,
    choose_bins,
    token_statistics,
)
from worldvla_ros.model.kv_cache import KVCache
from worldvla_ros.model.transformer import Transformer
from worldvla_ros.tokens.vocab import ACTION_BLOCK_LENGTH, VALUES_PER_ACTION


def chunk_capacity(prompt_length: int, num_actions: int) -> int:
    """Return the KV rows that a chunk needs: prompt, then BOA, seven values and EOA each."""
    return prompt_length + num_actions * ACTION_BLOCK_LENGTH


def generate_chunk(model: Transformer, prompt_ids: Ids, num_actions: int,
                   cache: KVCache | None = None) -> Tensor:
    """Return the greedy action tokens int64 [K, 7] after prompt ids [P]."""
    return decode_chunk(model, prompt_ids, num_actions, cache=cache).token_ids


@torch.inference_mode()
def prefill(model: Transformer, prefix_ids: Ids, cache: KVCache) -> int:
    """Put a prefix of a later prompt into the cache ahead of time; return the rows computed."""
    prefix = checked_ids(prefix_ids, model.config.vocabulary)
    cached = cache.rewind_to_common_prefix(prefix)
    if cached < len(prefix):
        ids = torch.tensor(prefix[cached:], device=model.device)[None]
        model.rows(ids, places=model.places(prefix, start=cached),
                   cache=cache, keep_last=0)
        cache.keep_prefix(prefix)
    return len(prefix) - cached


@torch.inference_mode()
def decode_chunk(model: Transformer, prompt_ids: Ids, num_actions: int, *,
                 cache: KVCache | None = None, certify: bool = False,
                 choice: str = 'greedy') -> DecodedChunk:
    """Decode K actions in parallel, forcing the grammar (BOA, seven action bins, EOA) x K.

    :param prompt_ids: [P], ending with the separator.
    :param cache: reused between calls; rows of an equal prefix are not computed again.
    :param certify: also compare every token with the argmax over the whole vocabulary, which
        takes one pass more (values and EOA of all actions) and the full head in every pass.
    :param choice: see `choose_bins`.
    """
    vocabulary, started = model.config.vocabulary, time.perf_counter()
    prompt, cache = _prompt_and_cache(model, prompt_ids, num_actions, cache)
    # The separator's row is always computed: it predicts the first BOA.
    cached = cache.rewind_to_common_prefix(prompt[:-1])
    positions = (len(prompt) + torch.arange(num_actions, device=model.device)
                 * ACTION_BLOCK_LENGTH)
    states = [_prefill_with_boas(model, prompt, positions, cache)[0]]
    prefill_s = time.perf_counter() - started

    mask = packed_decode_mask(len(prompt), num_actions, ACTION_BLOCK_LENGTH, model.device)
    logits = [model.logits(states[0][1:], vocabulary.bins)]
    bins = [choose_bins(logits[0], 0, choice)]
    for step in range(1, VALUES_PER_ACTION):
        columns = len(prompt) + num_actions * (step + 1)
        tokens = bins[-1] + vocabulary.bin_start
        states.append(model.rows(tokens[None], positions=positions + step,
                                 mask=mask[:, :columns], cache=cache)[0])
        logits.append(model.logits(states[-1], vocabulary.bins))
        bins.append(choose_bins(logits[-1], step, choice))
    token_ids = torch.stack(bins) + vocabulary.bin_start
    violations = None
    if certify:
        states.append(_grammar_pass(model, token_ids[-1], positions, mask, cache))
        violations = _violations(model, token_ids, states)
    cache.keep_prefix(prompt)
    return DecodedChunk(
        token_ids=token_ids.T,
        **token_statistics(torch.stack(logits, dim=1), torch.stack(bins, dim=1)),
        violations=violations, prefill_s=prefill_s,
        rows=len(prompt) - cached + num_actions * (VALUES_PER_ACTION + 2 * certify),
        passes=VALUES_PER_ACTION + certify)


@torch.inference_mode()
def decode_chunk_in_order(model: Transformer, prompt_ids: Ids, num_actions: int, *,
                          cache: KVCache | None = None, choice: str = 'greedy'
                          ) -> DecodedChunk:
    """Decode K actions one after the other, each seeing those before it, in 7 K passes.

    For networks that were trained without the action-chunk mask. The grammar is forced as in
    `decode_chunk`, and the result means the same.
    """
    vocabulary, started = model.config.vocabulary, time.perf_counter()
    prompt, cache = _prompt_and_cache(model, prompt_ids, num_actions, cache)
    cached = cache.rewind_to_common_prefix(prompt)
    written = [*prompt, vocabulary.boa]
    waiting = len(written) - cached  # tokens whose rows are yet to be computed
    logits: list[Tensor] = []
    bins: list[Tensor] = []
    rows, prefill_s = 0, 0.0
    for _ in range(num_actions):
        for value in range(VALUES_PER_ACTION):
            start = len(written) - waiting
            hidden = model.rows(torch.tensor(written[start:], device=model.device)[None],
                                places=model.places(written, start=start), cache=cache,
                                keep_last=1)
            prefill_s = prefill_s or time.perf_counter() - started
            rows += waiting
            logits.append(model.logits(hidden[0, -1], vocabulary.bins))
            bins.append(choose_bins(logits[-1], value, choice))
            written.append(int(bins[-1]) + vocabulary.bin_start)
            waiting = 1
        written += [vocabulary.eoa, vocabulary.boa]
        waiting += 2
    cache.keep_prefix(prompt)
    shape = (num_actions, VALUES_PER_ACTION)
    chosen = torch.stack(bins).unflatten(0, shape)
    return DecodedChunk(token_ids=chosen + vocabulary.bin_start,
                        **token_statistics(torch.stack(logits).unflatten(0, shape), chosen),
                        violations=None, prefill_s=prefill_s,
                        rows=rows, passes=num_actions * VALUES_PER_ACTION)


def _prompt_and_cache(model: Transformer, prompt_ids: Ids, num_actions: int,
                      cache: KVCache | None) -> tuple[list[int], KVCache]:
    """Return the checked prompt and a cache, the one given or a new one that fits the chunk."""
    prompt = checked_ids(prompt_ids, model.config.vocabulary)
    if num_actions < 1:
        raise TokenError(f'a chunk has at least one action, got num_actions={num_actions}')
    if cache is None:
        cache = model.new_cache(chunk_capacity(len(prompt), num_actions))
    return prompt, cache


def _prefill_with_boas(model: Transformer, prompt: list[int], boa_positions: Tensor,
                       cache: KVCache) -> Tensor:
    """Run the uncached prompt and K BOAs; return the states of the separator and the BOAs."""
    num_actions = len(boa_positions)
    cached, length = cache.length, len(prompt)
    ids = prompt[cached:] + [model.config.vocabulary.boa] * num_actions
    positions = torch.cat((torch.arange(cached, length, device=model.device), boa_positions))
    return model.rows(torch.tensor(ids, device=model.device)[None], positions=positions,
                      places=model.places(prompt + ids[length - cached:], start=cached),
                      mask=packed_prefill_mask(length, cached, num_actions, model.device),
                      cache=cache, keep_last=num_actions + 1)


def _grammar_pass(model: Transformer, last_values: Tensor, positions: Tensor, mask: Tensor,
                  cache: KVCache) -> Tensor:
    """Return the states [2K, hidden] of the last value and of EOA of every action."""
    eoa = torch.full_like(last_values, model.config.vocabulary.eoa)
    num_actions, end = len(last_values), mask.shape[1]
    after_value = mask.clone()
    after_value[:, end - num_actions:] = False
    after_boa = VALUES_PER_ACTION
    return model.rows(torch.cat((last_values, eoa))[None],
                      positions=torch.cat((positions + after_boa, positions + after_boa + 1)),
                      mask=torch.cat((after_value, mask)), cache=cache)[0]


def _violations(model: Transformer, values: Tensor, states: list[Tensor]) -> Tensor:
    """Count the tokens of the forced chunk in whose place the free model says another.

    :param values: [7, K] the chosen action tokens.
    :param states: the last hidden states of every row before a forced token, pass by pass.
    """
    vocabulary, num_actions = model.config.vocabulary, values.shape[1]
    after_eoa = values.new_full((num_actions,), vocabulary.boa)
    after_eoa[-1] = vocabulary.separator
    forced = torch.cat((values.new_full((1,), vocabulary.boa), values.reshape(-1),
                        values.new_full((num_actions,), vocabulary.eoa), after_eoa))
    chosen_freely = torch.cat([model.logits(rows).argmax(-1) for rows in states])
    return (chosen_freely != forced).sum()


@torch.inference_mode()
def generate_free(model: Transformer, prompt_ids: Ids, max_new_tokens: int,
                  attention: Literal['action_chunk', 'causal'] = 'action_chunk') -> Tensor:
    """Return what the public implementation's greedy loop emits, the stop token included.

    One pass per token over the whole vocabulary, no grammar. The prefill and every step use the
    last row of the mask for all of their rows, as that loop does; its ValueError for output
    whose blocks cannot be paired is kept (BlockMismatchError).
    """
    vocabulary = model.config.vocabulary
    ids = checked_ids(prompt_ids, vocabulary)
    if attention not in ('action_chunk', 'causal'):
        raise TokenError(f"attention must be 'action_chunk' or 'causal', got {attention!r}")
    cache = model.new_cache(len(ids) + max_new_tokens)
    start = len(ids)
    while len(ids) < start + max_new_tokens:
        rows = len(ids) - cache.length
        mask = causal_mask(rows, len(ids))
        if attention == 'action_chunk':
            mask &= action_chunk_mask_row(torch.tensor(ids), vocabulary)
        hidden = model.rows(torch.tensor(ids[-rows:], device=model.device)[None],
                            places=model.places(ids, start=len(ids) - rows),
                            mask=mask.to(model.device), cache=cache, keep_last=1)
        ids.append(int(model.logits(hidden[0, -1]).argmax()))
        if ids[-1] == vocabulary.separator:
            break
    return torch.tensor(ids[start:], dtype=torch.int64)
