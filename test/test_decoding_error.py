# SPDX-License-Identifier: Apache-2.0
"""The error of decoded actions: what a policy would do, not what its loss promises."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_models import tiny_model
from training_data import IMAGE_SIZE, episode, small_store, tiny_tokenizer
from training_runs import tiny_config

from worldvla_ros.model.generate import decode_chunk, decode_chunk_in_order
from worldvla_ros.model.image_tokenizer import save_image_tokenizer
from worldvla_ros.tokens.action_tokenizer import (
    LIBERO_MAXIMUM,
    LIBERO_MINIMUM,
    ActionTokenizer,
)
from worldvla_ros.tokens.sequence import action_block
from worldvla_ros.tokens.vocab import ACTION_BLOCK_LENGTH
from worldvla_ros.training.decoding_error import decoding_errors
from worldvla_ros.training.experiment import build_experiment
from worldvla_ros.training.run_folder import read_metrics
from worldvla_ros.training.samples import Sample
from worldvla_ros.training.store_writing import write_store
from worldvla_ros.training.train import train

MODEL = tiny_model()
VOCABULARY = MODEL.config.vocabulary
TOKENIZER = ActionTokenizer(LIBERO_MINIMUM, LIBERO_MAXIMUM, VOCABULARY)
PROMPT = np.array([VOCABULARY.bos, 5, 6, VOCABULARY.separator])


def sample(action_ids):
    """Return the sample in which the expert does these actions [K, 7] after PROMPT."""
    blocks = [action_block(ids, VOCABULARY) for ids in action_ids]
    target = np.concatenate([*blocks, [VOCABULARY.separator]])
    labelled = np.arange(len(PROMPT) + len(target)) >= len(PROMPT)
    return Sample(np.concatenate([PROMPT, target]), labelled, 'action')


@pytest.mark.parametrize(('chunk_mask', 'decode'), [(True, decode_chunk),
                                                    (False, decode_chunk_in_order)])
@pytest.mark.parametrize('choice', ['greedy', 'mean'])
def test_it_is_measured_on_chunks_decoded_as_the_policy_does(chunk_mask, decode, choice):
    said = decode(MODEL, PROMPT, 3, choice=choice).token_ids.numpy()
    same = decoding_errors(MODEL, [sample(said)], TOKENIZER, chunk_mask=chunk_mask, choice=choice)
    assert same == {'motion_error': 0.0, 'gripper_error': 0.0}

    middle = VOCABULARY.bin_start + 127
    expert = said.copy()
    expert[0, 2] += 51 if expert[0, 2] < middle else -51  # 0.4 of half a range, of 18 values
    expert[1, 6] = VOCABULARY.bin_start + (250 if expert[1, 6] <= middle else 3)  # 1 of 3 steps
    errors = decoding_errors(MODEL, [sample(expert)], TOKENIZER, chunk_mask=chunk_mask,
                             choice=choice)
    assert errors['motion_error'] == pytest.approx(0.4 / 18 ** 0.5, abs=1e-4)
    assert errors['gripper_error'] == pytest.approx(1 / 3)


def test_actions_that_are_not_learned_do_not_count():
    said = decode_chunk(MODEL, PROMPT, 3).token_ids.numpy()
    expert = said.copy()
    expert[1:] = VOCABULARY.bin_start + 5
    one = sample(expert)
    begin = len(PROMPT) + ACTION_BLOCK_LENGTH
    one.labelled[begin:begin + 2 * ACTION_BLOCK_LENGTH] = False
    assert decoding_errors(MODEL, [one], TOKENIZER, chunk_mask=True, choice='greedy') == {
        'motion_error': 0.0, 'gripper_error': 0.0}


def test_chunks_of_several_lengths_are_measured_together():
    """Pins a bug: with data.short_chunks a run ended in an error, at its last evaluation."""
    said = decode_chunk(MODEL, PROMPT, 3).token_ids.numpy()
    wrong = said[:1].copy()
    wrong[0, 6] = VOCABULARY.bin_start + (250 if said[0, 6] <= VOCABULARY.bin_start + 127 else 3)
    errors = decoding_errors(MODEL, [sample(said), sample(wrong)], TOKENIZER, chunk_mask=True,
                             choice='greedy')
    assert errors == {'motion_error': 0.0, 'gripper_error': pytest.approx(1 / 4)}


def test_without_samples_of_the_action_branch_there_is_none():
    assert decoding_errors(MODEL, [], TOKENIZER, chunk_mask=True, choice='greedy') == {}


def test_training_logs_it_for_held_out_episodes(tmp_path):
    save_image_tokenizer(tiny_tokenizer(), tmp_path / 'tokenizer')
    demos = [episode(number) for number in range(10)]  # of which one is held out
    write_store(tmp_path / 'store', demos, tiny_tokenizer(), IMAGE_SIZE)
    config = tiny_config(tmp_path, steps=3)
    held_out = [row for row in run_and_read(config) if row['split'] == 'held_out']
    assert all(0 < float(row['motion_error']) < 2 for row in held_out) and held_out
    assert all(0 <= float(row['gripper_error']) <= 1 for row in held_out)
    world_alone = replace(config, run=replace(config.run, output=str(tmp_path / 'world')),
                          data=replace(config.data, branches=('world',)))
    assert all(row['motion_error'] == '' for row in run_and_read(world_alone))


def run_and_read(config):
    """Train, and return the rows of metrics.csv."""
    return read_metrics(train(config).parent)


def test_samples_are_spread_evenly_over_the_episodes_of_a_branch(tmp_path):
    small_store(tmp_path)
    table = build_experiment(tiny_config(tmp_path)).train
    for branch in ('action', 'world'):
        chosen = table.evenly(branch, 7)
        assert {one.branch for one in chosen} == {branch} and len(chosen) == 7
    assert len(table.evenly('action', 10_000)) < 10_000
    assert table.evenly('video', 3) == []
    first = next(one for one in (table[i] for i in range(len(table))) if one.branch == 'action')
    assert np.array_equal(table.evenly('action', 5)[0].ids, first.ids)
