# SPDX-License-Identifier: Apache-2.0
"""How good the network is on the episodes that training does not see."""

from collections.abc import Callable, Sequence

import torch

from worldvla_ros.training.batches import Batch, SampleTable, fitting_batch
from worldvla_ros.training.decoding_error import decoding_errors
from worldvla_ros.training.experiment import Experiment
from worldvla_ros.training.loss_of_batch import TERMS, LossOfBatch

DECODED_SAMPLES = 64


@torch.no_grad()
@torch.compiler.set_stance(  # type: ignore[untyped-decorator]  # lacks annotations
    'force_eager')  # every prompt has another shape
def held_out_values(loss: LossOfBatch, experiment: Experiment,
                    collate: Callable[[SampleTable, list[int]], Sequence[Batch]], *,
                    decode: bool) -> dict[str, float]:
    """Return TERMS over the first batches of the held-out episodes, without dropout.

    The batches are smaller where a branch of these episodes cannot fill its share; empty where it
    has no sample at all. The loss stays in evaluation mode.

    :param collate: puts some samples of a table into batches.
    :param decode: whether the errors of decoded chunks come with them, for which the weights must
        be whole.
    """
    table, config, pretrained = experiment.held_out, experiment.config, experiment.pretrained
    assert table is not None
    share = config.data.world_share
    size = fitting_batch(table, share, config.data.batch_size)
    if size == 0:
        return {}
    loss.eval()
    rows = []
    for i in range(min(config.run.evaluation_batches, len(table) // size)):
        batches = collate(table, table.batch(size, share, 0, i).tolist())
        terms = loss([batch.to(loss.model.device) for batch in batches])
        rows.append(torch.stack([getattr(terms, name) for name in TERMS]))
    values = dict(zip(TERMS, torch.stack(rows).nanmean(0).tolist(), strict=True))
    if not decode:
        return values
    return values | decoding_errors(
        pretrained.model, table.evenly('action', DECODED_SAMPLES), pretrained.action_tokenizer,
        chunk_mask=pretrained.settings.chunk_mask, choice=pretrained.settings.bin_choice)
