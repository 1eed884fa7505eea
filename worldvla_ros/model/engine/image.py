# SPDX-License-Identifier: Apache-2.0
"""The rows of an imagined frame in fixed shapes: one graph for the prompt, one for a window."""

import torch
from torch import Tensor

from worldvla_ros.errors import InferenceError
from worldvla_ros.model.engine.graphs import Graphs
from worldvla_ros.model.engine.inputs import PassInputs
from worldvla_ros.model.engine.layers import COLUMN_MULTIPLE, bias_of
from worldvla_ros.model.engine.network import Rows, StaticNetwork, Weights, round_up
from worldvla_ros.model.transformer import Transformer
from worldvla_ros.tokens.vocab import IMAGE_HEAD_LENGTH


class StaticImageRows:
    """`ImageRows` for prompts up to a length; every pass has as many rows as the widest.

    The column of a row is its position. A pass that is padded leaves rubbish behind its last
    row, where the next pass writes before anything looks.
    """

    def __init__(self, model: Transformer, longest_prompt: int, image_tokens: int, window: int, *,
                 weights: Weights = 'dense', compiled: bool | None = None) -> None:
        """Build the engine for a model in evaluation mode.

        :param longest_prompt: tokens before the image's first code.
        :param image_tokens: codes and row ends of an image.
        :param window: rows of one pass over a draft at most.
        """
        self.vocabulary = model.config.vocabulary
        self.free_rows = self._window = round_up(window)
        self._longest_prompt = longest_prompt
        self._prompt_rows = round_up(longest_prompt + self._window, COLUMN_MULTIPLE)
        self._columns = round_up(longest_prompt + image_tokens + self._window, COLUMN_MULTIPLE)
        self._network = StaticNetwork(model, self._columns, weights=weights, compiled=compiled,
                                      num_positions=self._columns)
        self._graphs = Graphs(model.device)
        self._inputs = PassInputs(self._prompt_rows, self.vocabulary.bos, model.device)
        self._device = model.device
        self._places = model.places
        self._prompt_length = 0

    @property
    def captures(self) -> int:
        """Graphs captured so far; two once an image was decoded."""
        return self._graphs.captures

    def start(self, prompt: list[int], tokens: list[int]) -> Tensor:
        """Return logits float32 [1 + n, codes] of the prompt's last row and of n tokens."""
        ids = prompt + tokens
        if len(prompt) > self._longest_prompt or len(tokens) >= self._window:
            raise InferenceError(f'the engine was built for prompts of {self._longest_prompt} '
                                 f'tokens and a window of {self._window}, got a prompt of '
                                 f'{len(prompt)} tokens and {len(tokens)} drafted ones')
        self._prompt_length = len(prompt)
        self._inputs.load(ids, 0, self._prompt_rows, self._places(ids))
        logits, = self._graphs.run('prompt', self._prompt_pass)
        return logits[self._window - 1 - len(tokens):]

    def extend(self, tokens: list[int], kept: int) -> Tensor:
        """Drop all but `kept` tokens after the prompt; return logits [n, codes] of n more."""
        if len(tokens) > self._window:
            raise InferenceError(f'the engine was built for a window of {self._window} rows, got '
                                 f'{len(tokens)} tokens')
        self._inputs.load(tokens, self._prompt_length + kept, self._window,
                          self._places(tokens, within=IMAGE_HEAD_LENGTH + kept))
        logits, = self._graphs.run('window', self._window_pass)
        return logits[:len(tokens)]

    def forget(self) -> None:
        """Overwrite all keys and values, NaN too."""
        self._network.clear()

    def _prompt_pass(self) -> tuple[Tensor, ...]:
        """Return the logits of the last rows of the sequence, as many as a window has."""
        place = torch.arange(self._prompt_rows, device=self._device)
        last = (self._inputs.end - self._window + place[:self._window]).clamp(min=0)
        seen = bias_of(place <= last[:, None], self._network.dtype)
        return self._logits(place, Rows(slice(None), None), Rows(last, seen))

    def _window_pass(self) -> tuple[Tensor, ...]:
        """Return the logits of a window of rows."""
        place = self._inputs.start + torch.arange(self._window, device=self._device)
        seen = self._network.causal_bias(self._window, self._columns, self._inputs.start)
        return self._logits(place, Rows(slice(None), seen), None)

    def _logits(self, place: Tensor, rows: Rows, needed: Rows | None) -> tuple[Tensor, ...]:
        hidden = self._network.rows(self._inputs.ids(len(place)), place, place, [rows], needed,
                                    self._inputs.places(len(place)))
        return (self._network.logits(hidden, self.vocabulary.codes),)
