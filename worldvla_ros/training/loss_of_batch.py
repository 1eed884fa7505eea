# SPDX-License-Identifier: Apache-2.0
"""Network and loss of one batch as one module, which is what data parallelism wraps."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worldvla_ros.model.transformer import Transformer
from worldvla_ros.training.batches import Batch, batch_mask
from worldvla_ros.training.losses import (
    LossConfig,
    LossTerms,
    label_sums,
    labelled_logits,
    loss_terms,
)

TERMS = ('total', 'cross_entropy', 'z_loss', 'action', 'world', 'action_accuracy',
         'world_accuracy')
"""Of LossTerms, in the order of the logs."""


class LossOfBatch(nn.Module):
    """A transformer that returns its loss."""

    def __init__(self, model: Transformer, config: LossConfig, dtype: torch.dtype,
                 chunk_mask: bool = True) -> None:
        super().__init__()
        self.model, self._config = model, config
        self._dtype, self._chunk_mask = dtype, chunk_mask

    def forward(self, batches: Sequence[Batch], sums: Tensor | None = None) -> LossTerms:
        """Return the loss of these batches as if they were one, each padded to its own length.

        Matrix products in the dtype, the loss in float32.
        :param sums: see `loss_terms`.
        """
        logits = torch.cat([self._logits(batch) for batch in batches])
        return loss_terms(logits, *_targets(batches), self.model.config.vocabulary, self._config,
                          sums)

    def sums(self, batches: Sequence[Batch]) -> Tensor:
        """Return `label_sums` of these batches, float32 [3]."""
        return label_sums(*_targets(batches), self.model.config.vocabulary, self._config)

    def _logits(self, batch: Batch) -> Tensor:
        mask = batch_mask(batch.input_ids, self.model.config.vocabulary, self._chunk_mask)
        with torch.autocast(self.model.device.type, self._dtype,
                            enabled=self._dtype != torch.float32):
            return labelled_logits(self.model, batch.input_ids, batch.targets, mask)


def _targets(batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Return ids [N] of the labelled tokens of all batches, and whether they are the world's."""
    return (torch.cat([batch.targets.ids for batch in batches]),
            torch.cat([batch.target_is_world for batch in batches]))
