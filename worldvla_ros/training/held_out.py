# SPDX-License-Identifier: Apache-2.0
"""How good the network is on the episodes that training does not see."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from worldvla_ros.training.aims import UNKNOWN, is_near
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
                    at_once: int, decode: bool) -> dict[str, float]:
    """Return TERMS over the first batches of the held-out episodes, without dropout.

    The batches are smaller where a branch of these episodes cannot fill its share, and lack one
    that has no sample at all. The loss stays in evaluation mode.

    :param collate: puts some samples of a table into batches.
    :param at_once: most samples that pass the network together; it changes no value, but a
        training step has room for no more.
    :param decode: whether the errors of decoded chunks come with them, for which the weights must
        be whole.
    """
    table, config, pretrained = experiment.held_out, experiment.config, experiment.pretrained
    assert table is not None
    share = config.data.world_share
    size = fitting_batch(table, share, config.data.batch_size)
    loss.eval()
    rows = []
    for i in range(min(config.run.evaluation_batches, len(table) // size)):
        indices = table.batch(size, share, 0, i).tolist()
        count = -(-size // at_once)
        rows.append(_terms_of_parts(loss, [collate(table, indices[part::count])
                                           for part in range(count)]))
    values = dict(zip(TERMS, torch.stack(rows).nanmean(0).tolist(), strict=True))
    if not decode:
        return values
    return values | decoding_errors(
        pretrained.model, table.evenly('action', DECODED_SAMPLES), pretrained.action_tokenizer,
        chunk_mask=pretrained.settings.chunk_mask, choice=pretrained.settings.bin_choice)


def _terms_of_parts(loss: LossOfBatch, parts: Sequence[Sequence[Batch]]) -> Tensor:
    """Return TERMS [T] of a batch that passes the network in parts, as if it were at once."""
    device = loss.model.device
    sums = loss.sums([batch for part in parts for batch in part]).to(device) / len(parts)
    rows, counts = [], []
    for part in parts:
        terms = loss([batch.to(device) for batch in part], sums)
        rows.append(torch.stack([getattr(terms, name) for name in TERMS]))
        counts.append(_counted(part))
    values = torch.stack(rows)
    # [P, T]: means by what they count, else by the parts that have a value
    weights = torch.tensor(counts, device=device) * ~values.isnan()
    return torch.where(weights > 0, values * weights, 0.0).sum(0) / weights.sum(0)


def _counted(part: Sequence[Batch]) -> list[int]:
    """Return of how many tokens or sequences each of TERMS is the mean; 1 for sums of them."""
    is_world = torch.cat([batch.target_is_world for batch in part])
    found = {'action': ~is_world, 'world': is_world,
             'looking': torch.cat([batch.aims != UNKNOWN for batch in part]),
             'reach': torch.cat([is_near(batch.away) for batch in part])}
    counts = {name: int(which.sum()) for name, which in found.items()}
    return [counts.get(name.removesuffix('_accuracy'), 1) for name in TERMS]
