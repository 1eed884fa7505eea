# SPDX-License-Identifier: Apache-2.0
"""`decode_chunk` as one graph: prefill with BOAs, six passes of K rows, choices and statistics.

Or, with drafts, as one graph for the prefill with all 7 K rows of a guess (drafts.py) and another
for those rows alone, which is replayed until the guess was right.

The cache has fixed columns. The prompt fills those of a bucket from the left, as far as it goes;
behind the bucket each pass has K columns of its own, one per action:

    | prompt ............ padding | BOA x K | value 1 x K | ... | value 6 x K |

All passes over a draft have all of those columns.

Padding costs rows and columns, and nobody sees it: prompt rows see earlier columns only, and the
rows of actions are told how long the prompt is. That length, and where the rows of a pass start,
lie in a tensor on the device (inputs.py), so one graph serves all prompts of a bucket.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from worldvla_ros.errors import InferenceError, TokenError
from worldvla_ros.model.decoded import (
    DecodedChunk,
    Ids,
    checked_ids,
    choose_bins,
    token_statistics,
)
from worldvla_ros.model.engine.drafts import ChunkDraft
from worldvla_ros.model.engine.graphs import Graphs
from worldvla_ros.model.engine.inputs import PassInputs
from worldvla_ros.model.engine.layers import COLUMN_MULTIPLE, bias_of
from worldvla_ros.model.engine.network import Rows, StaticNetwork, Weights, round_up
from worldvla_ros.model.image_places import NO_PLACE
from worldvla_ros.model.kv_cache import common_prefix_length
from worldvla_ros.model.transformer import Transformer
from worldvla_ros.tokens.vocab import ACTION_BLOCK_LENGTH, VALUES_PER_ACTION


class StaticChunkDecoder:
    """Decodes chunks of K actions in fixed shapes; on a CUDA device each is one graph replay.

    With drafts it is one to seven, and the host waits for each of them.

    A prompt whose beginning is in the cache takes the short graph, over `newest_rows` rows; any
    other is computed whole.
    """

    def __init__(self, model: Transformer, num_actions: int, *, prompt_buckets: Sequence[int],
                 newest_rows: int, weights: Weights = 'dense', compiled: bool | None = None,
                 choice: str = 'greedy', drafts: bool = False) -> None:
        """Build the engine for a model in evaluation mode.

        :param prompt_buckets: prompt lengths to build graphs for; a prompt takes the next larger.
        :param newest_rows: rows of the prompt that are left to compute after `prefill`: newest
            image and separator.
        :param weights: see `StaticNetwork`.
        :param choice: see `choose_bins`.
        :param drafts: guess that the chunk will be the last one and correct the guess, see
            drafts.py: fewer passes over a network whose chunks resemble each other. The result is
            the same, but for what other shapes round otherwise in formats shorter than float32.
        """
        if num_actions < 1:
            raise TokenError(f'a chunk has at least one action, got num_actions={num_actions}')
        self._vocabulary, self._num_actions = model.config.vocabulary, num_actions
        self._places = model.places
        self._choice, self._drafts = choice, drafts
        self._buckets = sorted({round_up(length) for length in prompt_buckets})
        self._newest_rows = round_up(newest_rows)
        longest = self._buckets[-1]
        self._network = StaticNetwork(
            model, self._width(longest), weights=weights, compiled=compiled,
            num_positions=longest + num_actions * ACTION_BLOCK_LENGTH)
        self._graphs = Graphs(model.device)
        self._inputs = PassInputs(longest, self._vocabulary.bos, model.device)
        self._draft = ChunkDraft(num_actions, self._vocabulary, model.device)
        self._device = model.device
        self._cached: list[int] = []

    @property
    def captures(self) -> int:
        """Graphs captured so far; after every path was run once it stays the same."""
        return self._graphs.captures

    @torch.no_grad()
    def prefill(self, prefix_ids: Ids) -> int:
        """Compute the beginning of a later prompt ahead of time; return the rows computed."""
        prefix = checked_ids(prefix_ids, self._vocabulary)
        if prefix == self._cached[:len(prefix)]:
            return 0
        bucket = self._bucket(len(prefix))
        self._inputs.load(prefix, 0, bucket, self._places(prefix))
        self._run(('prefix', bucket), partial(self._prefix_pass, bucket), prefix)
        return bucket

    @torch.no_grad()
    def decode(self, prompt_ids: Ids) -> DecodedChunk:
        """Return what `decode_chunk` returns for prompt ids [P]; `rows` counts the padding too."""
        prompt = checked_ids(prompt_ids, self._vocabulary)
        bucket = self._bucket(len(prompt))
        # The separator's row is always computed, as in `decode_chunk`.
        start = common_prefix_length(self._cached, prompt[:-1])
        rows = self._newest_rows
        if start < len(prompt) - rows or len(prompt) < rows:
            start, rows = 0, bucket
        else:  # as many as the shape has, the first of them once more and to the same values
            start = len(prompt) - rows
        self._inputs.load(prompt[start:], start, rows, self._places(prompt, start=start))
        key = ('chunk', bucket, 'whole' if rows == bucket else 'newest frame')
        of_actions = VALUES_PER_ACTION * self._num_actions
        if self._drafts:
            outputs, passes = self._corrected(key, bucket, rows, prompt)
            of_actions *= passes
        else:
            outputs = self._run(key, partial(self._chunk, bucket, rows), prompt)
            passes = VALUES_PER_ACTION
        token_ids, log_probs, entropy, margin = (output.clone() for output in outputs)
        return DecodedChunk(token_ids=token_ids, log_probs=log_probs, entropy=entropy,
                            margin=margin, violations=None, prefill_s=0.0,
                            rows=rows + of_actions, passes=passes)

    def forget(self) -> None:
        """Drop and overwrite all that is cached, NaN too, and the draft."""
        self._cached = []
        self._network.clear()
        self._draft.forget()

    def warm_up(self) -> None:
        """Capture every graph, so that no later call has to."""
        for bucket in self._buckets:
            prompt = [self._vocabulary.bos] * bucket
            for prefix in (prompt, [self._vocabulary.eoi, *prompt[1:]]):
                self._cached = []
                self.prefill(prefix)
                self.decode(prompt)
            if self._drafts:  # whether those chunks took it was up to the draft
                self._again(bucket, prompt)
        self.forget()

    def _run(self, key: Hashable, function: Callable[[], tuple[Tensor, ...]], ids: list[int]
             ) -> tuple[Tensor, ...]:
        """Run a graph that leaves the keys and values of these ids in the cache."""
        self._cached = []  # a run that fails leaves columns half written
        outputs = self._graphs.run(key, function)
        self._cached = ids
        return outputs

    def _corrected(self, key: Hashable, bucket: int, rows: int, prompt: list[int]
                   ) -> tuple[tuple[Tensor, ...], int]:
        """Run passes over the draft until it is right; return what `_chunk` does, and how many."""
        right, *outputs = self._run(key, partial(self._draft_with_prompt, bucket, rows), prompt)
        passes = 1
        while passes < VALUES_PER_ACTION and not right:
            right, *outputs = self._again(bucket, prompt)
            passes += 1
        return tuple(outputs), passes

    def _again(self, bucket: int, prompt: list[int]) -> tuple[Tensor, ...]:
        """Run one more pass over the draft, whose prompt is in the cache."""
        return self._run(('again', bucket), partial(self._draft_alone, bucket), prompt)

    def _bucket(self, length: int) -> int:
        """Return the smallest bucket that holds a prompt."""
        for bucket in self._buckets:
            if length <= bucket:
                return bucket
        raise InferenceError(f'the prompt has {length} tokens, the engine was built for '
                             f'{self._buckets[-1]}; use a shorter instruction or build it for '
                             f'longer prompts')

    def _width(self, bucket: int) -> int:
        """Return the columns of a prompt's bucket and of all passes after it."""
        return round_up(bucket + VALUES_PER_ACTION * self._num_actions, COLUMN_MULTIPLE)

    def _prompt_rows(self, bucket: int, rows: int) -> tuple[Tensor, Rows]:
        """Return the positions [rows] of the prompt's pass, also their columns, and what they see.

        Padding there is only behind whole prompts, and it stays in the bucket.
        """
        place = torch.arange(rows, device=self._device)
        if rows == bucket:  # `start` is 0
            return place, Rows(slice(0, rows), None)
        start = self._inputs.start
        return start + place, Rows(slice(0, rows),
                                   self._network.causal_bias(rows, bucket, start))

    def _prefix_pass(self, bucket: int) -> tuple[Tensor, ...]:
        """Store keys and values of a prefix; no row is asked what comes next."""
        place, seen = self._prompt_rows(bucket, bucket)
        self._network.rows(self._inputs.ids(bucket), place, place, [seen],
                           needed=Rows(slice(0, 0), None), places=self._inputs.places(bucket))
        return ()

    def _chunk(self, bucket: int, rows: int) -> tuple[Tensor, ...]:
        """Return token ids [K, 7], and their log-probabilities, entropies and margins."""
        network, vocabulary = self._network, self._vocabulary
        action = torch.arange(self._num_actions, device=self._device)
        first_position = self._inputs.end + ACTION_BLOCK_LENGTH * action
        biases = self._action_biases(bucket, action)
        hidden = self._behind_prompt(bucket, rows, torch.full_like(action, vocabulary.boa),
                                     first_position, biases[0])
        logits = [network.logits(hidden, vocabulary.bins)]
        bins: list[Tensor] = []
        for step in range(1, VALUES_PER_ACTION):
            bins.append(choose_bins(logits[-1], step - 1, self._choice))
            tokens = bins[-1] + vocabulary.bin_start
            hidden = network.rows(tokens, first_position + step,
                                  bucket + step * self._num_actions + action,
                                  [Rows(slice(None), biases[step])])
            logits.append(network.logits(hidden, vocabulary.bins))
        bins.append(choose_bins(logits[-1], VALUES_PER_ACTION - 1, self._choice))
        return self._described(torch.stack(logits), torch.stack(bins))

    def _draft_with_prompt(self, bucket: int, rows: int) -> tuple[Tensor, ...]:
        """Run the prompt and the draft behind it; see `_judged` for what it returns."""
        return self._judged(self._behind_prompt(bucket, rows, *self._draft_rows(bucket)))

    def _draft_alone(self, bucket: int) -> tuple[Tensor, ...]:
        """Run the draft, whose prompt is in the cache; see `_judged` for what it returns."""
        tokens, positions, bias = self._draft_rows(bucket)
        columns = bucket + torch.arange(len(tokens), device=self._device)
        return self._judged(self._network.rows(tokens, positions, columns,
                                               [Rows(slice(None), bias)]))

    def _draft_rows(self, bucket: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return tokens and positions [7 K] of the draft, value by value, and their bias."""
        action = torch.arange(self._num_actions, device=self._device)
        step = torch.arange(VALUES_PER_ACTION, device=self._device)[:, None]
        positions = self._inputs.end + ACTION_BLOCK_LENGTH * action + step
        return (self._draft.tokens().flatten(), positions.flatten(),
                self._action_biases(bucket, action).flatten(0, 1))

    def _judged(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Return whether the draft was right, bool [], and what `_chunk` does; improve it."""
        logits = self._network.logits(hidden, self._vocabulary.bins).unflatten(
            0, (VALUES_PER_ACTION, self._num_actions))
        bins = torch.stack([choose_bins(of_value, value, self._choice)
                            for value, of_value in enumerate(logits)])
        return (self._draft.improve(bins), *self._described(logits, bins))

    def _behind_prompt(self, bucket: int, rows: int, tokens: Tensor, positions: Tensor,
                       bias: Tensor) -> Tensor:
        """Run the prompt's pass with rows of actions; return the hidden states of those."""
        place, prompt = self._prompt_rows(bucket, rows)
        columns = bucket + torch.arange(len(tokens), device=self._device)
        own = Rows(slice(rows, rows + len(tokens)), bias)
        return self._network.rows(
            torch.cat((self._inputs.ids(rows), tokens)), torch.cat((place, positions)),
            torch.cat((place, columns)), [prompt, own], needed=own,
            places=torch.cat((self._inputs.places(rows), torch.full_like(tokens, NO_PLACE))))

    def _described(self, logits: Tensor, bins: Tensor) -> tuple[Tensor, ...]:
        """Return tokens [K, 7] and statistics of logits [7, K, bins] and the choices [7, K]."""
        chosen = bins.T
        return (chosen + self._vocabulary.bin_start,
                *token_statistics(logits.transpose(0, 1), chosen).values())

    def _action_biases(self, bucket: int, action: Tensor) -> Tensor:
        """Return [7, K, columns]: at each step an action sees the prompt and its own tokens."""
        column = torch.arange(self._width(bucket), device=action.device)
        step = torch.arange(VALUES_PER_ACTION, device=action.device)[:, None, None]
        behind = column - bucket
        own = ((behind >= 0) & (behind % self._num_actions == action[:, None])
               & (behind // self._num_actions <= step))
        return bias_of((column < self._inputs.end) | own, self._network.dtype)
