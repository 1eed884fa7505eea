# SPDX-License-Identifier: Apache-2.0
"""Network and loss of one batch as one module, which is what data parallelism wraps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from worldvla_ros.errors import ConfigError
from worldvla_ros.model.transformer import Layer, Transformer
from worldvla_ros.training.aims import (
    UNKNOWN,
    ReachHead,
    beginnings,
    gaze_loss,
    gaze_scores,
    is_known,
    looking_layer,
)
from worldvla_ros.training.batches import Batch, batch_mask
from worldvla_ros.training.losses import (
    LossConfig,
    LossTerms,
    label_sums,
    labelled_logits,
    last_rows,
    loss_terms,
)

TERMS = ('total', 'cross_entropy', 'z_loss', 'action', 'world', 'action_accuracy',
         'world_accuracy', 'looking', 'reach')
"""Of LossTerms, in the order of the logs."""


class Looking(NamedTuple):
    """States of a batch that are taught to look."""

    middle: Tensor  # [B, S, hidden], before the layer that looks
    last: Tensor  # [B, S - skipped, hidden], of the last layer


class LossOfBatch(nn.Module):
    """A transformer that returns its loss."""

    def __init__(self, model: Transformer, config: LossConfig, dtype: torch.dtype,
                 chunk_mask: bool = True, horizon: int = 1) -> None:
        """Take what the loss of a batch depends on.

        :param horizon: actions of a chunk, which are taught where to look.
        :raises ConfigError: a network of one layer shall be taught.
        """
        super().__init__()
        if config.aim_weight > 0 and model.config.num_layers < 2:
            raise ConfigError('loss.aim_weight needs a network of two layers or more: one looks, '
                              'and those before it tell it where')
        self.model, self._config = model, config
        self._dtype, self._chunk_mask, self._horizon = dtype, chunk_mask, horizon
        self.reach_head = (ReachHead(model.config.hidden_size) if config.reach_weight > 0
                           else None)

    def forward(self, batches: Sequence[Batch], sums: Tensor | None = None) -> LossTerms:
        """Return the loss of these batches as if they were one, each padded to its own length.

        Matrix products in the dtype, the loss in float32.
        :param sums: `sums` of the whole batch by its number of shares, where these are one of
            them; None: these are the whole.
        """
        if sums is None:
            sums = self.sums(batches).to(self.model.device)
        passed = [self._passed(batch) for batch in batches]
        terms = loss_terms(torch.cat([logits for logits, _ in passed]), *_targets(batches),
                           self.model.config.vocabulary, self._config, sums[:3])
        for (_, states), batch in zip(passed, batches, strict=True):
            if states is not None:
                terms = self._with_aims(terms, states, batch, sums[3:])
        return terms

    def sums(self, batches: Sequence[Batch]) -> Tensor:
        """Return `label_sums` of these batches, and how many aims they have, float32 [5].

        In pictures, and from the hand.
        """
        labels = label_sums(*_targets(batches), self.model.config.vocabulary, self._config)
        aims = torch.stack([torch.cat([batch.aims != UNKNOWN for batch in batches]),
                            torch.cat([is_known(batch.away) for batch in batches])])
        return torch.cat([labels, aims.sum(1).to(labels)])

    def _passed(self, batch: Batch) -> tuple[Tensor, Looking | None]:
        """Return the logits of the labels, and the states that are taught to look, if any."""
        model, skipped = self.model, batch.targets.skipped
        before = looking_layer(model.config.num_layers) - 1
        states = {before: torch.empty(0)}
        mask = batch_mask(batch.input_ids, model.config.vocabulary, self._chunk_mask)
        with self._autocast():
            last = last_rows(model, batch.input_ids, skipped, mask, states)
            logits = labelled_logits(model, last, batch.targets)
        looks = self._config.aim_weight > 0 or self.reach_head is not None
        return logits, Looking(states[before], last) if looks else None

    def _with_aims(self, terms: LossTerms, states: Looking, batch: Batch, counts: Tensor
                   ) -> LossTerms:
        """Add what a batch says of its aims to the loss."""
        config, model = self._config, self.model
        rows = beginnings(batch.begins, batch.num_actions, self._horizon)
        if config.aim_weight > 0:
            layer = cast(Layer, model.model.layers[looking_layer(model.config.num_layers)])
            with self._autocast():
                scores = gaze_scores(layer, states.middle, rows, model.config.rope_theta)
            loss, share = gaze_loss(scores, batch.aims, counts[0])
            terms = replace(terms, total=terms.total + config.aim_weight * loss,
                            looking=share.where(share.isfinite(), terms.looking))
        if self.reach_head is not None:
            sequence = torch.arange(len(rows), device=rows.device)[:, None]
            last = states.last[sequence, rows - batch.targets.skipped].float()
            loss, error = self.reach_head(last, batch.away, counts[1])
            terms = replace(terms, total=terms.total + config.reach_weight * loss,
                            reach=error.where(error.isfinite(), terms.reach))
        return terms

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, self._dtype,
                              enabled=self._dtype != torch.float32)


def _targets(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Return ids [N] of the labelled tokens of all batches, and whether they are the world's."""
    return (torch.cat([batch.targets.ids for batch in batches]),
            torch.cat([batch.target_is_world for batch in batches]))
