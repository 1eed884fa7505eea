# SPDX-License-Identifier: Apache-2.0
"""The loss: numbers and gradients of the public implementation, and how branches are weighed."""

from itertools import pairwise

from golden_data import golden
import numpy as np
import pytest
from tiny_models import tiny_model
import torch

from worldvla_ros.model.attention_mask import action_chunk_mask
from worldvla_ros.model.checkpoint import load_model
from worldvla_ros.tokens.vocab import Vocabulary
from worldvla_ros.training.losses import (
    IGNORED,
    WEIGHTINGS,
    LossConfig,
    class_weights,
    find_targets,
    label_sums,
    labelled_logits,
    last_rows,
    loss_terms,
    rows_before_labels,
)

COMPACT = Vocabulary.compact(num_text_tokens=40, num_codes=64)
WEIGHTING = {'weighted': 'published', 'plain': 'uniform'}


@pytest.fixture(scope='module')
def published():
    return np.load(golden('train_batch.npz'))


def batch(data):
    ids, labels = (torch.from_numpy(data[name]) for name in ('input_ids', 'padded_labels'))
    masks = torch.zeros(*ids.shape, ids.shape[1], dtype=torch.bool)
    for row, (sequence, length) in enumerate(zip(ids, data['lens'], strict=True)):
        masks[row] = torch.ones_like(masks[row]).tril()  # padding: seen by padding only
        masks[row, :length, :length] = action_chunk_mask(sequence[:length])
    return ids, labels, masks


def logits_of(model, ids, targets, masks=None):
    return labelled_logits(model, last_rows(model, ids, targets.skipped, masks), targets)


def test_a_prompt_attends_without_a_mask_as_it_does_with_one(published):
    model = load_model(golden('model.safetensors').parent)
    ids, labels, masks = batch(published)
    skipped = rows_before_labels(labels)
    assert skipped > 0
    with torch.no_grad():
        masked = logits_of(model, ids, find_targets(labels, 0), masks)
        split = logits_of(model, ids, find_targets(labels, skipped), masks)
        whole = model.rows(ids, mask=masks, causal_rows=skipped)
        torch.testing.assert_close(whole, model.rows(ids, mask=masks))
    torch.testing.assert_close(split, masked)


@pytest.mark.parametrize('prompt', [0, 1, 40, 97])
def test_rows_before_the_first_label_are_left_out_of_the_last_layer_alone(prompt):
    model = tiny_model()
    ids = torch.randint(4, 30, (3, 100), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, IGNORED)
    labels[0, prompt + 1:] = ids[0, prompt + 1:]
    labels[1, -2:] = ids[1, -2:]
    rows = []
    model.model.layers[-1].mlp.register_forward_pre_hook(lambda _, x: rows.append(x[0].shape[1]))
    targets = find_targets(labels, rows_before_labels(labels))
    logits = logits_of(model, ids, targets)
    assert rows[0] == 100 - prompt // 32 * 32

    counted = labels[:, 1:] != IGNORED
    torch.testing.assert_close(logits, model(ids)[:, :-1][counted], rtol=1e-4, atol=1e-5)
    assert torch.equal(targets.ids, ids[:, 1:][counted])


def test_a_batch_without_labels_has_no_logits():
    model = tiny_model()
    ids = torch.full((2, 40), 5)
    labels = torch.full_like(ids, IGNORED)
    targets = find_targets(labels, rows_before_labels(labels))
    logits = logits_of(model, ids, targets)
    assert logits.shape == (0, model.config.vocabulary.size) and targets.ids.shape == (0,)


def branch_of(data, labels):
    """Say for each labelled token whether its sequence is a world-model sample."""
    is_world = torch.tensor([name.startswith('w') for name in data['case_names']])
    counted = labels[:, 1:] != IGNORED
    return is_world[:, None].expand_as(counted)[counted]


@pytest.mark.parametrize('name', WEIGHTING)
def test_losses_and_gradients_equal_the_published_ones(published, name):
    model = load_model(golden('model.safetensors').parent).requires_grad_(True)
    ids, labels, masks = batch(published)
    targets = find_targets(labels, rows_before_labels(labels))
    logits = logits_of(model, ids, targets, masks)
    terms = loss_terms(logits, targets.ids, branch_of(published, labels), model.config.vocabulary,
                       LossConfig(weighting=WEIGHTING[name]))
    terms.total.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])

    for term, value in (('c_loss', terms.cross_entropy), ('z_loss', terms.z_loss),
                        ('total', terms.total), ('grad_norm', norm)):
        assert value.item() == pytest.approx(float(published[f'{name}_{term}']), rel=2e-5), term
    for key, weight in (('grad_q_norm0_w', model.model.layers[0].self_attn.q_norm.weight),
                        ('grad_norm_w', model.model.norm.weight)):
        np.testing.assert_allclose(weight.grad, published[f'{name}_{key}'], atol=1e-5, rtol=1e-4)


def test_the_loss_of_each_token_equals_the_published_one(published):
    model = load_model(golden('model.safetensors').parent)
    ids, labels, masks = batch(published)
    targets = find_targets(labels, 0)
    with torch.no_grad():
        logits = logits_of(model, ids, targets, masks)
    np.testing.assert_array_equal(targets.ids, published['nll_labels'])
    nll = torch.nn.functional.cross_entropy(logits, targets.ids, reduction='none')
    np.testing.assert_allclose(nll, published['nll'], atol=1e-4)


def test_class_weights_turn_the_published_token_losses_into_the_published_mean(published):
    weights = class_weights(Vocabulary(), 0.04).numpy()[published['nll_labels']]
    assert weights[published['nll_labels'] == 8195] == 1  # the public range is off by one
    mean = np.average(published['nll'], weights=weights)
    assert mean == pytest.approx(float(published['weighted_c_loss']), rel=1e-5)


def test_every_action_bin_of_a_compact_vocabulary_counts_in_full():
    weights = class_weights(COMPACT, 0.04)
    assert (weights[list(COMPACT.bins)] == 1).all()
    assert torch.allclose(weights[list(COMPACT.codes)], torch.tensor(0.04))


def random_terms(weighting, is_world):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(is_world), COMPACT.size, generator=generator, requires_grad=True)
    labels = torch.randint(0, COMPACT.size, (len(is_world),), generator=generator)
    return logits, loss_terms(logits, labels, torch.tensor(is_world), COMPACT,
                              LossConfig(weighting=weighting, z_loss_weight=0.0))


def test_a_mean_per_branch_does_not_depend_on_how_many_tokens_the_other_has():
    _, terms = random_terms('per_branch', [False, False] + [True] * 50)
    expected = terms.action + 0.04 * terms.world
    assert terms.total.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize('is_world', [[True] * 4, [False] * 4])
def test_a_batch_of_one_branch_has_a_finite_loss_and_gradient(is_world):
    logits, terms = random_terms('per_branch', is_world)
    terms.total.backward()
    assert torch.isfinite(terms.total) and torch.isfinite(logits.grad).all()
    assert torch.isnan(terms.action) == is_world[0] and torch.isnan(terms.world) != is_world[0]


@pytest.mark.parametrize('weighting', WEIGHTINGS)
@pytest.mark.parametrize('ends', [[6, 9], [1, 2, 11], [3, 6, 9]])
def test_the_mean_of_the_shares_of_a_batch_is_the_whole(weighting, ends):
    """Shares of unequal size, of which some lack a branch."""
    config = LossConfig(weighting=weighting, z_loss_weight=0.1)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(12, COMPACT.size, generator=generator, requires_grad=True)
    labels = torch.randint(0, COMPACT.size, (12,), generator=generator)
    is_world = torch.arange(12) >= 9
    whole = loss_terms(logits, labels, is_world, COMPACT, config).total
    bounds = list(pairwise([0, *ends, 12]))
    sums = sum(label_sums(labels[a:b], is_world[a:b], COMPACT, config) for a, b in bounds)
    shares = [loss_terms(logits[a:b], labels[a:b], is_world[a:b], COMPACT, config,
                         sums / len(bounds)).total for a, b in bounds]
    mean = sum(shares) / len(bounds)
    torch.testing.assert_close(mean, whole)
    for one, other in zip(*(torch.autograd.grad(loss, logits) for loss in (mean, whole)),
                          strict=True):
        torch.testing.assert_close(one, other)


def test_the_z_loss_pulls_the_partition_towards_one():
    logits = torch.zeros(3, COMPACT.size, requires_grad=True)
    labels, is_world = torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.bool)
    plain, with_z = (loss_terms(logits, labels, is_world, COMPACT, LossConfig(z_loss_weight=w))
                     for w in (0.0, 1e-2))
    log_partition = np.log(COMPACT.size)
    assert with_z.total.item() - plain.total.item() == pytest.approx(1e-2 * log_partition ** 2,
                                                                     rel=1e-4)


def test_smoothed_targets_make_a_near_bin_better_than_a_far_one():
    label = torch.tensor([COMPACT.bins.start + 100])
    one = torch.zeros(1, dtype=torch.bool)

    def loss(peak, smoothing):
        logits = torch.zeros(1, COMPACT.size)
        logits[0, COMPACT.bins.start + peak] = 5.0
        return loss_terms(logits, label, one, COMPACT, LossConfig(
            bin_smoothing=smoothing, z_loss_weight=0.0)).total.item()

    assert loss(101, 0.0) == pytest.approx(loss(150, 0.0))
    assert loss(100, 2.0) < loss(101, 2.0) < loss(104, 2.0) < loss(150, 2.0)
    assert loss(100, 1e-3) == pytest.approx(loss(100, 0.0), rel=1e-5)


def test_what_is_logged_of_each_branch_is_not_smoothed():
    """Pins a bug: the action column depended on bin_smoothing, and runs could not be compared."""
    labels = torch.tensor([COMPACT.bins.start + 100, COMPACT.bins.start, COMPACT.codes.start])
    logits = torch.randn(3, COMPACT.size, generator=torch.Generator().manual_seed(0))
    is_world = torch.tensor([False, False, True])
    plain, smooth = (loss_terms(logits, labels, is_world, COMPACT, LossConfig(bin_smoothing=s))
                     for s in (0.0, 2.0))
    nll = -logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]
    assert smooth.action.item() == pytest.approx(nll[:2].mean().item(), rel=1e-5)
    assert smooth.world.item() == pytest.approx(nll[2].item(), rel=1e-5)
    assert smooth.cross_entropy.item() != pytest.approx(plain.cross_entropy.item(), rel=1e-3)


def test_smoothing_leaves_other_tokens_alone():
    logits, labels = torch.randn(3, COMPACT.size), torch.tensor([COMPACT.eoa, COMPACT.separator,
                                                                 COMPACT.codes.start])
    is_world = torch.tensor([False, False, True])
    plain, smooth = (loss_terms(logits, labels, is_world, COMPACT, LossConfig(bin_smoothing=s))
                     for s in (0.0, 2.0))
    assert smooth.total.item() == pytest.approx(plain.total.item())
