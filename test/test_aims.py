# SPDX-License-Identifier: Apache-2.0
"""Where a network is taught to look, and what it is asked of how far that is."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_models import VOCABULARY, action_prompt, tiny_model
import torch
from training_data import episode, tiny_tokenizer
from training_runs import TINY, tiny_config, weights

from worldvla_ros.errors import ConfigError
from worldvla_ros.model.image_tokenizer import save_image_tokenizer
from worldvla_ros.tokens.vocab import IMAGE_HEAD_LENGTH
from worldvla_ros.training.aims import (
    HEAD,
    UNKNOWN,
    ReachHead,
    beginnings,
    gaze_loss,
    gaze_scores,
)
from worldvla_ros.training.experiment import build_experiment
from worldvla_ros.training.held_out import held_out_values
from worldvla_ros.training.run_folder import read_metrics
from worldvla_ros.training.samples import aim_cell
from worldvla_ros.training.settings import OptimizerConfig
from worldvla_ros.training.store_writing import write_store
from worldvla_ros.training.train import train
from worldvla_ros.training.trainer import Trainer


@pytest.mark.parametrize(('aim', 'cell'), [
    ((0.0, 0.0), (0, 0)), ((0.99, 0.0), (0, 3)), ((0.3, 0.6), (1, 1)), ((1.0, 0.5), None),
    ((0.5, -0.01), None), ((np.nan, 0.5), None)])
def test_an_aim_is_in_a_cell_of_the_picture_or_outside(aim, cell):
    assert aim_cell(np.array(aim), (2, 4)) == cell


@pytest.mark.parametrize('qk_norm_rows', [1, 2, 4])
def test_scores_are_those_of_the_head_itself(qk_norm_rows):
    model = tiny_model(layers=3, qk_norm_rows=qk_norm_rows)
    prompt = action_prompt(np.random.default_rng(0), 1, (1, 2))
    ids = torch.tensor([*prompt, VOCABULARY.boa, *[VOCABULARY.bin_start] * 7, VOCABULARY.eoa,
                        VOCABULARY.boa])[None]
    layer, attended = model.model.layers[1], []
    layer.self_attn.attend = lambda q, k, v, bias: attended.append((q, k)) or v
    states = {0: torch.empty(0)}
    model.rows(ids, states_after=states)
    rows = beginnings(torch.tensor([len(prompt)]), torch.tensor([2]), 2)
    scores = gaze_scores(layer, states[0], rows, model.config.rope_theta)
    q, k = attended[0]
    expected = q[0, HEAD] @ k[0, HEAD].T * model.config.head_dim ** -0.5
    for action, row in enumerate((len(prompt), len(prompt) + 9)):
        torch.testing.assert_close(scores[0, action, :len(prompt)], expected[row, :len(prompt)],
                                   rtol=1e-4, atol=1e-5)
        assert (scores[0, action, len(prompt):] == -torch.inf).all(), 'only the prompt counts'
    with torch.autocast('cpu', torch.bfloat16):  # as in training, where they were bfloat16, too
        assert gaze_scores(layer, states[0], rows, model.config.rope_theta).dtype == torch.float32


def test_only_known_aims_count_and_nothing_else_spoils_the_gradient():
    scores = torch.zeros(3, 2, 4)
    scores[1] = -torch.inf  # a sequence that begins with an action, or of another branch
    scores.requires_grad_(True)
    loss, share = gaze_loss(scores, torch.tensor([2, UNKNOWN, 0]), torch.tensor(2.0))
    loss.backward()
    assert loss.item() == pytest.approx(np.log(4)) and share.item() == pytest.approx(0.25)
    assert scores.grad.isfinite().all() and (scores.grad[1] == 0).all()
    assert (scores.grad[0, :, 2] < 0).all()


def test_reach_is_measured_near_the_hand_and_learned_at_any_distance():
    torch.manual_seed(0)
    head = ReachHead(8)
    away = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [np.nan] * 3])
    loss, error = head(torch.randn(3, 2, 8), away, torch.tensor(2.0))
    loss.backward()
    assert 0 < error.item() < 0.1 < loss.item()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
    assert beginnings(torch.tensor([4, 5]), torch.tensor([3, 1]), 3).tolist() == [
        [4, 13, 22], [5, 5, 5]]


def aimed_episode(number):
    """Return an episode that says where its aim is: in a cell that the brightest code marks."""
    one, rng = episode(number), np.random.default_rng(number)
    frames = np.full_like(one.frames, 40)
    aims = np.empty((len(frames), 5))
    for frame, aim in zip(frames, aims, strict=True):
        row, column = rng.integers(0, 4, 2)
        frame[16 * row:16 * row + 16, 16 * column:16 * column + 16] = 250
        aim[:] = (column + 0.5) / 4, (row + 0.5) / 4, 0.02 * column, 0.02 * row, 0.01
    return replace(one, frames=frames, aims=aims)


def taught(folder, steps, **weights):
    config = tiny_config(folder, steps=steps, branches=('action',), history_length=1)
    return replace(config, data=replace(config.data, batch_size=16),
                   loss=replace(config.loss, **weights),
                   model=replace(TINY, image_places=True, dropout=0.0, hidden_size=64,
                                 intermediate_size=128),
                   optimizer=OptimizerConfig(learning_rate=4e-3, warmup_steps=10),
                   run=replace(config.run, save_every=steps // 2, log_every=10,
                               evaluate_every=steps))


@pytest.fixture
def store(tmp_path):
    save_image_tokenizer(tiny_tokenizer(), tmp_path / 'tokenizer')
    return write_store(tmp_path / 'store', [aimed_episode(i) for i in range(12)],
                       tiny_tokenizer(), 64)


def test_samples_know_the_token_that_the_aim_is_in(store, tmp_path):
    table = build_experiment(taught(tmp_path, 2, aim_weight=1.0)).train
    for index in range(0, len(table), 7):
        sample = table[index]
        first = int(np.flatnonzero(sample.ids == table._builder.prompts.vocabulary.boi)[-1])
        row, column = divmod(sample.aim - first - IMAGE_HEAD_LENGTH, 5)
        np.testing.assert_allclose(sample.away, [0.02 * column, 0.02 * row, 0.01], atol=1e-6)


def test_a_head_learns_to_look_and_the_network_to_tell_how_far(store, tmp_path):
    train(taught(tmp_path, 160, aim_weight=1.0, reach_weight=1.0))
    looking, reach = (np.array([float(row[name]) for row in read_metrics(tmp_path / 'run')
                                if row['split'] == 'train']) for name in ('looking', 'reach'))
    assert looking[-1] > 0.8 > 0.3 > looking[0]
    assert reach[-1] < 0.6 * reach[0]


def test_held_out_looking_and_reach_do_not_depend_on_how_a_batch_is_split(tmp_path):
    """Pins a bug: a part with one known aim weighed as much as one with many."""
    demos = [aimed_episode(i) for i in range(12)]
    for one in demos:
        one.aims[5:] = np.nan  # of the eight steps at which a chunk begins
    save_image_tokenizer(tiny_tokenizer(), tmp_path / 'tokenizer')
    write_store(tmp_path / 'store', demos, tiny_tokenizer(), 64)
    trainer = Trainer(build_experiment(taught(tmp_path, 2, aim_weight=1.0, reach_weight=1.0)))
    at_once, in_parts = (held_out_values(trainer._loss_of_one, trainer._experiment,
                                         trainer._collate, at_once=most, decode=False)
                         for most in (16, 5))
    for name in ('looking', 'reach'):
        assert in_parts[name] == pytest.approx(at_once[name], rel=1e-4)


def test_a_run_that_goes_on_has_the_head_as_it_was(store, tmp_path):
    results = []
    for output, lengths in (('whole', (4,)), ('parts', (2, 4))):
        for steps in lengths:
            config = taught(tmp_path, 4, aim_weight=1.0, reach_weight=1.0)
            config = replace(
                config, optimizer=replace(config.optimizer, schedule='constant'),
                run=replace(config.run, steps=steps, save_every=2, evaluate_every=4,
                            output=str(tmp_path / output)))
            train(config)
        results.append(weights(tmp_path / output / 'final'))
    assert results[0] == results[1]


def test_a_network_that_cannot_be_taught_is_refused(store, tmp_path):
    config = taught(tmp_path, 2, aim_weight=1.0)
    with pytest.raises(ConfigError, match='two layers or more'):
        train(replace(config, model=replace(config.model, num_layers=1)))
    with pytest.raises(ConfigError, match=r"need run\.parallel 'ddp'"):
        replace(config, run=replace(config.run, parallel='fsdp'))
