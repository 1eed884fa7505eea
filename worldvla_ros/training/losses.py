# SPDX-License-Identifier: Apache-2.0
"""The loss of both branches: cross entropy of labelled tokens, weighted, plus a small z-loss.

    L = L_action + 0.04 L_world + 1e-5 mean(logsumexp(logits)^2)

The paper writes the first two terms; the public implementation realises them with weights per
class (0.04 for image codes) inside one mean, which divides by the sum of the weights and so
balances the branches only by what a batch happens to hold. Here that is one option, and a mean
per branch is the default. Means are over the batch of all processes, however it is split; the
public one is over the share of each GPU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from worldvla_ros.config import bounded
from worldvla_ros.model.transformer import Transformer
from worldvla_ros.tokens.vocab import Vocabulary

IGNORED = -100
"""Label of a token that is not counted."""

WEIGHTINGS = ('per_branch', 'published', 'uniform')

_ROW_STEP = 32  # by which rows are left out
_LEAST_SUM = 1e-6  # of a branch without labels, whose loss is 0


@dataclass(frozen=True)
class LossConfig:
    """How the tokens of a batch enter the loss."""

    weighting: str = bounded(
        'per_branch', choices=WEIGHTINGS,
        doc='mean per branch; the public class weights in one mean; or all tokens alike')
    world_weight: float = bounded(
        0.04, minimum=0.0, doc='weight of the world branch, or of image codes (paper: alpha)')
    bin_smoothing: float = bounded(
        0.0, minimum=0.0, unit='bin',
        doc='standard deviation of the target over neighbouring action bins; 0: one bin')
    z_loss_weight: float = bounded(1e-5, minimum=0.0, doc='of mean squared log-partition')
    aim_weight: float = bounded(
        0.0, minimum=0.0,
        doc='of looking at what the action is for (see aims); 0: it is not taught')
    reach_weight: float = bounded(
        0.0, minimum=0.0,
        doc='of telling how far from the hand that is (see aims); 0: it is not asked')


@dataclass(frozen=True)
class LossTerms:
    """One batch's loss and what it is made of; all are float32 scalars.

    The first three of a share of a batch are what it adds: their mean over all shares is that of
    the whole batch.
    """

    total: Tensor  # what is minimised
    cross_entropy: Tensor  # [nat] weighted, of smoothed targets where bin_smoothing is given
    z_loss: Tensor  # mean squared log-partition [nat^2], without its weight
    action: Tensor  # [nat] mean of -log p(label) of the action branch's tokens; NaN without any
    world: Tensor  # [nat] likewise of the world branch; neither is smoothed
    action_accuracy: Tensor  # share of the action branch's tokens that greedy would choose
    world_accuracy: Tensor  # likewise of the world branch
    looking: Tensor  # share of a head's attention that is on the aim; NaN where it is not taught
    reach: Tensor  # [m] mean error of what is told of near aims; NaN where it is not asked


@dataclass(frozen=True)
class Targets:
    """The labelled tokens of a batch [B, S], in row-major order.

    They are looked for where the batch is made: a GPU's host would have to wait for the number.
    """

    ids: Tensor  # int64 [N]
    rows: Tensor  # int64 [N], that predict them, of the B * (S - skipped) rows of the last layer
    skipped: int  # rows at the start of each sequence that predict none, see `rows_before_labels`

    def to(self, device: torch.device | str) -> 'Targets':
        """Return them on a device."""
        return Targets(self.ids.to(device, non_blocking=True),
                       self.rows.to(device, non_blocking=True), self.skipped)


def find_targets(labels: Tensor, skipped: int) -> Targets:
    """Return the tokens of labels int64 [B, S] that are not IGNORED; s is predicted by row s - 1.

    :param skipped: up to `rows_before_labels(labels)`.
    """
    sequence, row = (labels[:, 1 + skipped:] != IGNORED).nonzero(as_tuple=True)
    return Targets(labels[sequence, 1 + skipped + row],
                   sequence * (labels.shape[1] - skipped) + row, skipped)


def rows_before_labels(labels: Tensor) -> int:
    """Return how many rows at the start predict no labelled token in any sequence [B, S].

    Rounded down, so that layers that are compiled meet few shapes.
    """
    labelled = (labels[:, 1:] != IGNORED).any(0).nonzero()
    return int(labelled[0]) // _ROW_STEP * _ROW_STEP if len(labelled) else 0


def last_rows(model: Transformer, input_ids: Tensor, skipped: int, mask: Tensor | None = None,
              states_after: dict[int, Tensor] | None = None) -> Tensor:
    """Return the hidden states [B, S - skipped, H] from which a batch [B, S] is learned.

    The last layer does not compute the rows that are skipped, which saves a sixth of a small
    network's work, and in the others they attend without a mask, since they are prompts, which
    are causal.

    :param mask: bool [B, S, S], True where a row may attend; None is causal.
    :param states_after: as of `Transformer.rows`.
    """
    return model.rows(input_ids, mask=mask, keep_last=input_ids.shape[1] - skipped,
                      causal_rows=skipped, states_after=states_after)


def labelled_logits(model: Transformer, hidden: Tensor, targets: Targets) -> Tensor:
    """Return logits float32 [N, V] of the N labelled tokens of a batch.

    Only rows that predict a labelled token pass the output layer: a prompt's logits over the
    whole vocabulary would cost more memory than all activations.

    :param hidden: what `last_rows` returns.
    """
    return model.logits(hidden.flatten(0, 1).index_select(0, targets.rows))


def loss_terms(logits: Tensor, labels: Tensor, is_world: Tensor, vocabulary: Vocabulary,
               config: LossConfig, sums: Tensor | None = None) -> LossTerms:
    """Return the loss of logits [N, V] for labels [N], of which some belong to the world branch.

    :param is_world: bool [N].
    :param sums: `label_sums` of the whole batch by its number of shares, where this is one of
        them; None: this is the whole.
    """
    if sums is None:
        sums = label_sums(labels, is_world, vocabulary, config)
    log_partition = logits.logsumexp(-1)
    nll = log_partition - _target_logits(logits, labels, vocabulary, config.bin_smoothing)
    z_loss = log_partition.square().sum() / sums[2]
    cross_entropy = _cross_entropy(nll, labels, is_world, vocabulary, config, sums)
    with torch.no_grad():
        of_label = log_partition - _target_logits(logits, labels, vocabulary, 0.0)
        correct = (logits.argmax(-1) == labels).float()
        shown = torch.stack([of_label, correct])
        of_world = is_world.float()
        action, action_accuracy = (shown * (1 - of_world)).sum(1) / (1 - of_world).sum()
        world, world_accuracy = (shown * of_world).sum(1) / of_world.sum()
    return LossTerms(
        total=cross_entropy + config.z_loss_weight * z_loss, cross_entropy=cross_entropy,
        z_loss=z_loss.detach(), action=action, world=world, action_accuracy=action_accuracy,
        world_accuracy=world_accuracy, looking=torch.full_like(action, torch.nan),
        reach=torch.full_like(action, torch.nan))


def _target_logits(logits: Tensor, labels: Tensor, vocabulary: Vocabulary, smoothing: float
                   ) -> Tensor:
    """Return the logit of each label [N], for action bins as a mean over their neighbours.

    Bins are ordered, and a miss by one is no miss for the robot. Cross entropy with a target q is
    logsumexp(z) - sum(q z); q is a Gaussian over the bins, cut at the ends.
    """
    chosen = logits.gather(-1, labels[:, None])[:, 0]
    if smoothing == 0:
        return chosen
    bins = vocabulary.bins
    distance = torch.arange(len(bins), device=logits.device).float()
    targets = (-(distance - distance[:, None]).square() / (2 * smoothing ** 2)).softmax(-1)
    is_bin = (labels >= bins.start) & (labels < bins.stop)
    target = targets[torch.where(is_bin, labels - bins.start, 0)]
    smoothed = (target * logits[:, bins.start:bins.stop]).sum(-1)
    return torch.where(is_bin, smoothed, chosen)


def class_weights(vocabulary: Vocabulary, image_weight: float) -> Tensor:
    """Return the public implementation's weight per token id, float32 [V].

    It weights ids [3, 8195) of Chameleon's layout: the image codes are [4, 8196), so it is off by
    one at both ends. That is kept, except where the id before the codes is an action bin, as in
    our compact layout: that bin must count in full.
    """
    shift = 0 if vocabulary.code_start - 1 in vocabulary.bins else 1
    weights = torch.ones(vocabulary.size)
    weights[vocabulary.codes.start - shift:vocabulary.codes.stop - shift] = image_weight
    return weights


def label_sums(labels: Tensor, is_world: Tensor, vocabulary: Vocabulary, config: LossConfig
               ) -> Tensor:
    """Return what the loss of labels [N] is divided by, float32 [3].

    The weights of the action branch's labels, those of the world branch's, and N. They add up
    over the shares of a batch, of which one may lack a branch.
    """
    weights = _label_weights(labels, vocabulary, config)
    return torch.stack([torch.where(is_world, 0.0, weights).sum(),
                        torch.where(is_world, weights, 0.0).sum(),
                        torch.ones_like(weights).sum()])


def _label_weights(labels: Tensor, vocabulary: Vocabulary, config: LossConfig) -> Tensor:
    if config.weighting == 'published':
        return class_weights(vocabulary, config.world_weight).to(labels.device)[labels]
    return torch.ones(labels.shape, device=labels.device)


def _cross_entropy(nll: Tensor, labels: Tensor, is_world: Tensor, vocabulary: Vocabulary,
                   config: LossConfig, sums: Tensor) -> Tensor:
    action, world, _ = sums
    if config.weighting != 'per_branch':
        weights = _label_weights(labels, vocabulary, config)
        return (weights * nll).sum() / (action + world)
    return (torch.where(is_world, 0.0, nll).sum() / action.clamp(min=_LEAST_SUM)
            + config.world_weight * torch.where(is_world, nll, 0.0).sum()
            / world.clamp(min=_LEAST_SUM))
