# SPDX-License-Identifier: Apache-2.0
"""The transformer over a KV cache of fixed size: rows in, hidden states out, nothing decided."""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from worldvla_ros.model.engine.layers import (
    Attended,
    FusedLayer,
    attend,
    bias_of,
    finish,
    project,
)
from worldvla_ros.model.engine.linear import DenseLinear, Fp8Linear
from worldvla_ros.model.image_places import NO_PLACE
from worldvla_ros.model.transformer import Layer, Transformer, rotary_table

Weights = Literal['dense', 'fp8']
_LINEAR: dict[Weights, type[DenseLinear] | type[Fp8Linear]] = {
    'dense': DenseLinear, 'fp8': Fp8Linear}
ROW_MULTIPLE = 16  # rows of a padded pass


class Rows(NamedTuple):
    """Some rows of a pass, and what they see."""

    which: slice | Tensor  # consecutive rows, or their indices int64 [n]
    bias: Tensor | None  # [n, columns] over the first columns of the cache; None: causal among
    #                      themselves, as at the start of a sequence


class StaticNetwork:
    """Fused weights and the keys and values of `capacity` columns.

    Columns are places in memory; a row's rotary position is given apart.
    """

    def __init__(self, model: Transformer, capacity: int, *, num_positions: int,
                 weights: Weights = 'dense', compiled: bool | None = None) -> None:
        """Share the weights of a model in evaluation mode.

        :param num_positions: rotary positions that rows may have.
        :param weights: 'fp8' multiplies the layers in 8 bits, which is faster and not exact.
        :param compiled: fuse small operations by torch.compile; default: on a CUDA device.
        """
        self.vocabulary, self.device, self.dtype = (
            model.config.vocabulary, model.device, model.dtype)
        self._embed, self._norm, self._logits = model.model.embed, model.model.norm, model.logits
        layers = cast(Iterable[Layer], model.model.layers)  # ModuleList has no type of its items
        self._layers = [FusedLayer(layer, _LINEAR[weights]).eval() for layer in layers]
        shape = (1, model.config.num_heads, capacity, model.config.head_dim)
        self._keys, self._values = (
            [torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in self._layers]
            for _ in range(2))
        self._rotary = rotary_table(torch.arange(num_positions, device=self.device),
                                    model.config.head_dim, model.config.rope_theta, self.dtype)
        self._project, self._finish = project, finish
        if self.device.type == 'cuda' if compiled is None else compiled:
            self._project = torch.compile(project, dynamic=False, fullgraph=True)
            self._finish = torch.compile(finish, dynamic=False, fullgraph=True)

    def rows(self, ids: Tensor, positions: Tensor, columns: Tensor, groups: Sequence[Rows],
             needed: Rows | None = None, places: Tensor | None = None) -> Tensor:
        """Run one pass over ids [S] and return the hidden states [n, hidden] of the needed rows.

        :param positions: rotary positions int64 [S].
        :param columns: int64 [S], where the keys and values of each row go.
        :param groups: all rows in order.
        :param needed: the rows that the last layer computes; None: all.
        :param places: in images, int64 [S]; None: no row is of one.
        """
        x = self._embed(ids, torch.full_like(ids, NO_PLACE) if places is None else places)[None]
        rotary = (self._rotary[0][:, positions], self._rotary[1][:, positions])
        last = len(self._layers) - 1
        for i, (layer, keys, values) in enumerate(zip(self._layers, self._keys, self._values,
                                                      strict=True)):
            q, k, v = self._project(layer, x, rotary, columns, keys, values)
            if i == last and needed is not None:
                # Without the strides of all rows, which would be compiled for anew.
                groups, x, q = [Rows(slice(None), needed.bias)], x[0, needed.which][None], (
                    q[:, :, needed.which])
                if x.shape[1] == 0:
                    return x[0]
            x = self._finish(layer, x, [_attend(q, k, v, keys, values, group)
                                        for group in groups])
        return self._norm(x)[0]

    def clear(self) -> None:
        """Set all keys and values to zero.

        What a mask hides has weight 0, and 0 times NaN is NaN: columns that once held NaN would
        spoil every later pass over them.
        """
        for columns in (*self._keys, *self._values):
            columns.zero_()

    def logits(self, hidden: Tensor, allowed: range) -> Tensor:
        """Return float32 logits [..., allowed] of hidden states."""
        return self._logits(hidden, allowed)

    def causal_bias(self, rows: int, columns: int, start: Tensor) -> Tensor:
        """Return the bias [rows, columns] of rows from column `start` (int64 []) on."""
        column = torch.arange(columns, device=self.device)
        row = torch.arange(rows, device=self.device)
        return bias_of(column <= start + row[:, None], self.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, group: Rows
            ) -> Attended:
    """Return what a group of rows attends to."""
    q = q[:, :, group.which]
    if group.bias is None:
        return attend(q, k[:, :, group.which], v[:, :, group.which])
    width = group.bias.shape[1]
    return attend(q, keys[:, :, :width], values[:, :, :width], group.bias)


def round_up(count: int, multiple: int = ROW_MULTIPLE) -> int:
    """Return the next multiple."""
    return -(-count // multiple) * multiple
